"""What the fingerprints of the ledger stand for: _segment/models/FINGERPRINT.json, with the classes of the masks.

A run leaves it before it records a mask. Runs of versions before 0.2 left none.
"""

import json
from contextlib import suppress

from unet.data.labels import LabelSet
from unet.model.artifact import Model
from unet.segment.run_spec import INTERNAL, RunSpec
from unet.settings import RequestError
from unet.storage.faults import Vanished
from unet.storage.objects import join_uri
from unet.storage.store import open_store

FORMAT = 1
"""Format version; newer ones are refused."""

FOLDER = f"{INTERNAL}models"


def record_model(spec: RunSpec, model: Model) -> None:
    """Write what a run's fingerprint stands for, unless a newer version has."""
    store, key = spec.output_store, f"{FOLDER}/{spec.fingerprint}.json"
    with suppress(Vanished, ValueError, KeyError, TypeError):
        if json.loads(store.get(key))["format"] > FORMAT:
            return
    content = {
        "format": FORMAT,
        "model": spec.settings.model,
        "digest": model.digest,
        "labels": model.labels.to_json(),
        "earlier": list(spec.earlier),
    }
    store.put(key, json.dumps(content, indent=1).encode())


def recorded_labels(spec: RunSpec, model: Model) -> dict[str, LabelSet]:
    """Return the label sets that are recorded, and that of `model`, by fingerprint. Raise RequestError if a file is
    damaged or was written by a newer version."""
    settings, folder = spec.settings, join_uri(spec.settings.output, FOLDER)
    store = open_store(folder, profile=settings.output_profile, retry_seconds=settings.retry_for)
    found: dict[str, LabelSet] = {}
    for name in (item.key for page in store.list() for item in page if item.key.endswith(".json")):
        try:
            content = json.loads(store.get(name))
            if content["format"] > FORMAT:
                raise RequestError(f"{folder}/{name}: was written by a newer version; update this one")
            labels = LabelSet.from_json(content["labels"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise RequestError(f"{folder}/{name}: is damaged; delete it, and run the job with its model") from error
        found |= dict.fromkeys([name.removesuffix(".json"), *content["earlier"]], labels)
    return found | dict.fromkeys([spec.fingerprint, *spec.earlier], model.labels)
