"""The model folder: `model.safetensors` (weights) and `model.json` (all else that is needed to use them).

It is all that passes from training to the other jobs. `Model.digest` is the SHA-256 of the weights file; a folder
whose weights do not match it is refused.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from unet.data.labels import LabelSet
from unet.model.network import PREPROCESSING_VERSION, UNet
from unet.settings import Geometry, RequestError, Window
from unet.storage import store
from unet.storage.faults import Unreachable
from unet.storage.objects import join_uri

FORMAT_VERSION = 2
"""Version of model.json; a newer one is refused. A model without a window is written as 1, which had none."""

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
"""Names of the two files."""


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
    window: Window | None = None
    """The samples of 16-bit grayscale images that become 0 and 255; without one, images keep their high byte."""

    def save(self, folder: str) -> None:
        """Write the model folder, the description last."""
        tensors = {name: tensor.contiguous() for name, tensor in self.network.state_dict().items()}
        weights = save_tensors(tensors, {"format": "pt"})
        self.digest = hashlib.sha256(weights).hexdigest()
        window = {} if self.window is None else {"window": list(self.window)}
        description = {
            "format": 1 if self.window is None else FORMAT_VERSION,
            "architecture": {"name": "unet", **self.network.config},
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "labels": self.labels.to_json(),
            "geometry": asdict(self.geometry),
            "preprocessing": {"version": PREPROCESSING_VERSION, "range": [-1, 1], **window},
            "training": self.training,
            "scores": self.scores,
            "digest": self.digest,
        }
        store.write(join_uri(folder, WEIGHTS), weights)
        store.write(join_uri(folder, DESCRIPTION), json.dumps(description, indent=1).encode())

    @classmethod
    def load(cls, folder: str, flag: str = "--model") -> "Model":
        """Return the model of a folder; its network is on the CPU, in eval mode.

        Raises:
            RequestError: names `flag`, the folder and what is wrong with it.
            Unreachable: the storage server does not answer.
        """
        try:
            description = json.loads(store.read(join_uri(folder, DESCRIPTION)))
            weights = store.read(join_uri(folder, WEIGHTS))
            preprocessing = description.get("preprocessing", {})
            version = preprocessing.get("version", PREPROCESSING_VERSION)
            if description["format"] > FORMAT_VERSION or version > PREPROCESSING_VERSION:
                raise RequestError(f"{flag} {folder}: was written by a newer version; update this one")
            digest = hashlib.sha256(weights).hexdigest()
            if digest != description["digest"]:
                raise RequestError(f"{flag} {folder}: {WEIGHTS} does not match {DESCRIPTION}; copy the folder again")
            architecture = {key: value for key, value in description["architecture"].items() if key != "name"}
            network = UNet(**architecture)
            network.load_state_dict(load_tensors(weights))
            window = preprocessing.get("window")
            return cls(
                network=network.eval(),
                labels=LabelSet.from_json(description["labels"]),
                geometry=Geometry(description["geometry"]["kind"], tuple(description["geometry"]["size"])),
                training=description["training"],
                scores=description["scores"],
                digest=digest,
                window=None if window is None else (int(window[0]), int(window[1])),
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
