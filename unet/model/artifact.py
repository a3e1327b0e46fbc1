"""The model folder: `model.safetensors` (weights) and `model.json` (all else that is needed to use them).

It is all that passes from training to the other jobs. `Model.digest` is the SHA-256 of the weights file; a folder
whose weights do not match it is refused. A model that replaces another is there whole or not at all: the weights that a
description is of lie in `model.safetensors` or, while that is being replaced, in `model-DIGEST.safetensors`.
"""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from unet.data.channels import RGB, Channels
from unet.data.drift import ImageStatistics
from unet.data.labels import LabelSet
from unet.model.network import PREPROCESSING_VERSION, UNet
from unet.settings import Geometry, RequestError
from unet.storage import store
from unet.storage.faults import Denied, Unreachable, Vanished
from unet.storage.objects import join_uri

FORMAT_VERSION = 3
"""Version of model.json; a newer one is refused. A model is written as the lowest that has what it needs: 1 has images
in RGB of 8 bits, 2 a window, 3 bands."""

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
"""Names of the two files."""

_INCOMING = re.compile(r"model-[0-9a-f]{16}\.safetensors")


@dataclass
class Model:
    """A network and what is needed to apply it."""

    network: UNet
    labels: LabelSet
    geometry: Geometry
    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained."""
    scores: dict[str, Any] = field(default_factory=dict)
    """What it scored in validation."""
    digest: str = ""
    """SHA-256 of the weights file; set by `save` and `load`."""
    channels: Channels = RGB
    """What its input is made of."""
    reference: ImageStatistics | None = None
    """What its training images were like, and what it predicted in validation; None in models of before 0.2."""

    def save(self, folder: str) -> None:
        """Write the model folder. Until the description is written a reader finds the model that was there before."""
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        weights = save_tensors(tensors, {"format": "pt"})
        self.digest = hashlib.sha256(weights).hexdigest()
        channels = self.channels.to_json()
        description = {
            "format": 1 if not channels else 2 if channels.keys() == {"window"} else FORMAT_VERSION,
            "architecture": {"name": "unet", **self.network.config},
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "labels": self.labels.to_json(),
            "geometry": asdict(self.geometry),
            "preprocessing": {"version": PREPROCESSING_VERSION, "range": [-1, 1], **channels},
            "training": self.training,
            "scores": self.scores,
            **({} if self.reference is None else {"reference": self.reference.to_json()}),
            "digest": self.digest,
        }
        store.write(join_uri(folder, _incoming(self.digest)), weights)
        store.write(join_uri(folder, DESCRIPTION), json.dumps(description, indent=1).encode())
        store.write(join_uri(folder, WEIGHTS), weights)
        try:
            store.open_store(folder).delete([name for name in store.list_files(folder) if _INCOMING.fullmatch(name)])
        except Denied:  # to remove files is a right that no job needs
            store.write(join_uri(folder, _incoming(self.digest)), b"")

    @classmethod
    def load(cls, folder: str, flag: str = "--model") -> "Model":
        """Return the model of a folder; its network is on the CPU, in eval mode.

        Raises:
            RequestError: names `flag`, the folder and what is wrong with it.
            Unreachable: the storage server does not answer.
        """
        try:
            description, weights = _read(folder)
            preprocessing = description.get("preprocessing", {})
            version = preprocessing.get("version", PREPROCESSING_VERSION)
            if description["format"] > FORMAT_VERSION or version > PREPROCESSING_VERSION:
                raise RequestError(f"{flag} {folder}: was written by a newer version; update this one")
            if weights is None:
                raise RequestError(f"{flag} {folder}: {WEIGHTS} does not match {DESCRIPTION}; copy the folder again")
            architecture = {key: value for key, value in description["architecture"].items() if key != "name"}
            network = UNet(**architecture)
            network.load_state_dict(load_tensors(weights))
            labels, channels = LabelSet.from_json(description["labels"]), Channels.from_json(preprocessing)
            reference = description.get("reference")
            if reference is not None:
                reference = ImageStatistics.from_json(reference, channels.count, len(labels.classes))
            return cls(
                network=network.eval(),
                labels=labels,
                geometry=Geometry(description["geometry"]["kind"], tuple(description["geometry"]["size"])),
                training=description["training"],
                scores=description["scores"],
                digest=description["digest"],
                channels=channels,
                reference=reference,
            )
        except RequestError:
            raise
        except Unreachable as error:
            raise store.check_error(folder, flag, "read", error) from None
        except OSError as error:
            raise RequestError(
                f"{flag} {folder}: is no model folder ({error.strerror}: {DESCRIPTION} and {WEIGHTS}); "
                "name the model/ folder of a training run"
            ) from None
        except (LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise RequestError(f"{flag} {folder}: cannot be read as a model folder: {error}") from None


def _incoming(digest: str) -> str:
    """Return the name of weights whose digest `model.json` is about to hold."""
    return f"model-{digest[:16]}.safetensors"


def _read(folder: str) -> tuple[dict[str, Any], bytes | None]:
    """Return a description and the weights that it is of; None if there are none, and no save is under way.

    Raises:
        Vanished: there is no description, or no weights of any model.
    """
    text, before, found = store.read(join_uri(folder, DESCRIPTION)), b"", False
    while text != before:  # else the model was replaced while it was read
        description = json.loads(text)
        for name in (WEIGHTS, _incoming(description["digest"])):
            with suppress(Vanished):
                weights = store.read(join_uri(folder, name))
                if hashlib.sha256(weights).hexdigest() == description["digest"]:
                    return description, weights
                found = True
        before, text = text, store.read(join_uri(folder, DESCRIPTION))
    if not found:
        raise Vanished(join_uri(folder, WEIGHTS), "there is no such file")
    return description, None
