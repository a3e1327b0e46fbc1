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
from unet.data.labels import LabelSet, read_labels
from unet.data.settings import SetSettings
from unet.model.network import PREPROCESSING_VERSION, UNet
from unet.settings import Geometry, RequestError
from unet.storage import store
from unet.storage.faults import Denied, Unreachable, Vanished
from unet.storage.objects import join_uri

FORMAT_VERSION = 4
"""Version of model.json; a newer one is refused. A model is written as the lowest that has what it needs: 1 has images
in RGB of 8 bits, 2 a window, 3 bands, 4 residual blocks or an encoder."""

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
    int8: dict[str, Any] = field(default_factory=dict)
    """What `unet.model.int8` computes with, and what that costs; empty where it was not prepared for that."""
    reference: ImageStatistics | None = None
    """What its training images were like, and what it predicted in validation; None in models of before 0.2."""

    def save(self, folder: str) -> None:
        """Write the model folder. Until the description is written a reader finds the model that was there before."""
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        weights = save_tensors(tensors, {"format": "pt"})
        self.digest = hashlib.sha256(weights).hexdigest()
        description = {
            "format": self._format,
            "architecture": {"name": "unet", **self.network.config},
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "labels": self.labels.to_json(),
            "geometry": asdict(self.geometry),
            "preprocessing": {"version": PREPROCESSING_VERSION, "range": [-1, 1], **self.channels.to_json()},
            "training": self.training,
            "scores": self.scores,
            **({} if self.reference is None else {"reference": self.reference.to_json()}),
            **({"int8": self.int8} if self.int8 else {}),
            "digest": self.digest,
        }
        store.write(join_uri(folder, _incoming(self.digest)), weights)
        store.write(join_uri(folder, DESCRIPTION), json.dumps(description, indent=1).encode())
        store.write(join_uri(folder, WEIGHTS), weights)
        try:
            store.open_store(folder).delete([name for name in store.list_files(folder) if _INCOMING.fullmatch(name)])
        except Denied:  # to remove files is a right that no job needs
            store.write(join_uri(folder, _incoming(self.digest)), b"")

    @property
    def _format(self) -> int:
        """The lowest version of model.json that has what this model needs."""
        if self.network.config.keys() & {"block", "encoder"}:
            return 4
        channels = self.channels.to_json()
        return 1 if not channels else 2 if channels.keys() == {"window"} else 3

    def labels_of_set(self, data: SetSettings) -> LabelSet:
        """Return what the masks of a set mean: its own labels, or those of the model, which must have the same classes.
        Raise RequestError if it has others."""
        if data.labels is None:
            return self.labels
        labels = read_labels(data.labels)
        labels = labels.with_ignored_as_classes() if data.score_ignore else labels
        if self.labels.names != labels.names:
            theirs, ours = ", ".join(self.labels.names), ", ".join(labels.names)
            raise RequestError(
                f"--classes {data.labels}: has the classes {ours}, and the model has {theirs}; give the set's label "
                "file with the model's classes, in the same order"
            )
        return labels

    def save_int8(self, folder: str) -> None:
        """Add `int8` to the description of a folder. Raise RequestError if that is of another model by now."""
        description = json.loads(store.read(join_uri(folder, DESCRIPTION)))
        if description["digest"] != self.digest:
            raise RequestError(f"--model {folder}: was replaced meanwhile; try again")
        store.write(join_uri(folder, DESCRIPTION), json.dumps(description | {"int8": self.int8}, indent=1).encode())

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
                int8=description.get("int8", {}),
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
