"""The explanation of a mask: of which image, by which model and run it was made, and if it would be the same today.

What is known comes from the ledger above the mask, from what the mask says of itself, and from the index of runs.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from unet.data.image import ImageError, open_image
from unet.data.provenance import read_provenance
from unet.model.artifact import Model
from unet.segment.fingerprint import fingerprints
from unet.segment.ledger import Ledger
from unet.segment.run_index import FOLDER, read_runs
from unet.segment.run_spec import INTERNAL, recorded_format
from unet.segment.settings import MASK_SUFFIXES, ExplainSettings, SegmentSettings
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import StorageError, Vanished
from unet.storage.objects import ObjectInfo, join_uri, split_uri
from unet.storage.s3 import S3Store
from unet.storage.store import Store, open_store

DECIDING = ("precision", "tile", "tta", "mask_format")
"""Settings that are part of the fingerprint."""


@dataclass(frozen=True)
class _Mask:
    """What is found of a mask."""

    output: Store
    key: str
    """Of the mask."""
    row: Mapping[str, Any]
    """Of the ledger; {} if that does not know it."""
    info: ObjectInfo | None
    """None: it is not there."""
    said: Mapping[str, str]
    """By the mask itself."""

    @property
    def is_recorded_one(self) -> bool:
        return self.info is not None and self.info.etag == self.row.get("mask_etag")

    @property
    def made_by(self) -> int | None:
        """Number of the run that made it, or that recorded it where no more is known."""
        number: int | None = self.row.get("mask_fence") or self.row.get("fence")
        return number


def explain(settings: ExplainSettings) -> int:
    """Run the job; return its exit code. Raise RequestError if nothing is known of the mask."""
    settings = store.with_absolute_paths(settings, "output", "model", *(() if settings.output else ("mask",)))
    mask = _find(settings)
    run = _run_of(mask)
    lines = {
        "mask": _describe_mask(mask),
        "image": _describe_image(mask),
        "model": ", ".join(filter(None, (run.get("model"), f"digest {_digest(mask, run)}"))),
        "settings": _describe_settings(mask, run),
        "classes": mask.said.get("classes", "as in model.json of the model"),
        "run": _describe_run(mask, run),
        "today": "; ".join(_differences(settings, mask, run)),
    }
    for name, text in lines.items():
        print(f"{name:<10}{text}")
    return 0


def _find(settings: ExplainSettings) -> _Mask:
    """Return what is there of a mask."""
    if settings.output is not None:
        store.check_readable(settings.output, "--output", settings.output_profile)
        output, name = open_store(settings.output, profile=settings.output_profile), settings.mask
        row = _row(output, name, settings)
        if not row:
            raise RequestError(f"--output {output.uri}: nothing is recorded of {name}; give the whole key of the image")
        return _look(output, f"{name}{_suffix(output)}", row)
    folder, key = next(_folders_above(settings.mask))
    store.check_readable(folder, "--mask", settings.output_profile)
    for folder, key in _folders_above(settings.mask):
        output = open_store(folder, profile=settings.output_profile)
        ledger = _ledger(output, settings)
        if not key.startswith(INTERNAL) and any(ledger.store.list()):
            suffix = _suffix(output)
            return _look(output, key, _row(output, key.removesuffix(suffix), settings) if key.endswith(suffix) else {})
    folder, key = next(_folders_above(settings.mask))
    return _look(open_store(folder, profile=settings.output_profile), key, {})


def _look(output: Store, key: str, row: Mapping[str, Any]) -> _Mask:
    """Return a mask with what it says of itself. Raise RequestError if neither it nor a ledger says anything."""
    info, said = None, dict[str, str]()
    with suppress(Vanished):
        info = output.head(key)
        with suppress(ImageError):
            said = dict(read_provenance(open_image(output.get(key), max_pixels=sys.maxsize)))
        said |= output.metadata(key) if isinstance(output, S3Store) else {}
    if not row and not said.get("model-digest"):
        reason = "there is no such file" if info is None else "it says nothing of itself, and no ledger knows it"
        raise RequestError(f"{join_uri(output.uri, key)}: is no mask of `unet segment`: {reason}")
    return _Mask(output, key, row, info, said)


def _folders_above(uri: str) -> Iterator[tuple[str, str]]:
    """Yield the folders above a file, the nearest first, each with the key of the file there."""
    if not uri.startswith("s3://"):
        path = Path(uri)
        yield from ((str(folder), path.relative_to(folder).as_posix()) for folder in path.parents)
        return
    bucket, key = split_uri(uri)
    parts = key.split("/")
    for count in range(len(parts) - 1, -1, -1):
        if count == 0 or parts[count - 1]:  # the key of a//b.png in a is /b.png
            yield join_uri(f"s3://{bucket}", "/".join(parts[:count])), "/".join(parts[count:])


def _ledger(output: Store, settings: ExplainSettings) -> Ledger:
    return Ledger(join_uri(output.uri, f"{INTERNAL}ledger"), profile=settings.output_profile)


def _row(output: Store, key: str, settings: ExplainSettings) -> dict[str, Any]:
    """Return the row of an image in the ledger; {} if there is none."""
    for rows in _ledger(output, settings).rows(key, f"{key}\0"):
        for row in rows.filter(pc.equal(rows["key"], key)).to_pylist():
            return dict(row)
    return {}


def _suffix(output: Store) -> str:
    wanted = recorded_format(output) or "png"
    return next((suffix for name, suffix in MASK_SUFFIXES.items() if name == wanted), MASK_SUFFIXES["png"])


def _run_of(mask: _Mask) -> Mapping[str, Any]:
    """Return the run that made a mask, as the index of runs has it; or its name, or {}."""
    name = mask.said.get("run") if mask.is_recorded_one or not mask.row else None
    for run in read_runs(mask.output):
        if run["run"] == name if name else run["fence"] is not None and run["fence"] == mask.made_by:
            return run
    return {"run": name} if name else {}


def _digest(mask: _Mask, run: Mapping[str, Any]) -> str:
    return mask.said.get("model-digest") or run.get("model_digest") or "not recorded"


def _settings_of(mask: _Mask, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of a run that decide its masks; {} if they are not known."""
    with suppress(Vanished, KeyError, yaml.YAMLError):
        known = yaml.safe_load(mask.output.get(f"{FOLDER}{run['run']}/settings.yaml"))
        return {name: known[name] for name in DECIDING if name in known}
    return {}


def _describe_mask(mask: _Mask) -> str:
    uri = join_uri(mask.output.uri, mask.key)
    if mask.info is None:
        return f"{uri} is missing"
    state = "as it was recorded" if mask.is_recorded_one else "not the one that was recorded"
    return f"{uri}, {mask.info.size:,} bytes, etag {mask.info.etag}" + (f", {state}" if mask.row else "")


def _describe_image(mask: _Mask) -> str:
    row = mask.row
    if not row:
        return f"etag {mask.said['image-etag']}" if "image-etag" in mask.said else "not recorded"
    failed = f"; failed: {row['error']}" if row["status"] == "failed" else ""
    return f"{join_uri(row['input'] or '', row['key'])}, {row['size']:,} bytes, etag {row['etag']}{failed}"


def _describe_settings(mask: _Mask, run: Mapping[str, Any]) -> str:
    fingerprint = mask.row.get("fingerprint") or mask.said.get("fingerprint") or "not recorded"
    decided = ", ".join(f"{name} {value}" for name, value in _settings_of(mask, run).items())
    return f"fingerprint {fingerprint}" + (f" ({decided})" if decided else "")


def _describe_run(mask: _Mask, run: Mapping[str, Any]) -> str:
    if not mask.row:
        return str(run.get("run") or "not recorded")
    recorded = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(mask.row["time"]))
    number, last = run.get("fence") or mask.made_by, mask.row["fence"]
    recorded += f" by number {last}" if number != last else ""
    return f"{run.get('run') or 'of an unknown name'}, number {number}, recorded {recorded}"


def _differences(settings: ExplainSettings, mask: _Mask, run: Mapping[str, Any]) -> Iterator[str]:
    """Yield in what a mask differs from the one that would be made today, or that it does not."""
    row, found = mask.row, list[str]()
    if not row:
        yield "unknown: no ledger knows this mask"
        return
    if row["status"] == "failed":
        found.append("there is no mask of this image, which failed: --retry-failed tries it again")
    elif not mask.is_recorded_one:
        found.append("the mask is missing or altered: --verify makes it again")
    if row["input"]:
        try:
            now = open_store(row["input"], profile=settings.input_profile).head(row["key"])
            if (now.etag, now.size) != (row["etag"], row["size"]):
                found.append(f"the image has changed: {now.size:,} bytes, etag {now.etag}")
        except Vanished:
            found.append("the image is gone")
        except StorageError as error:
            found.append(f"the image cannot be asked for ({error.strerror})")
    if settings.model is not None and row["status"] == "done":
        given = {"input": "-", "output": "-", "model": settings.model} | _settings_of(mask, run)
        fingerprint, earlier = fingerprints(SegmentSettings(**given), Model.load(settings.model))
        if row["fingerprint"] not in (fingerprint, *earlier):
            found.append(f"--model gives the fingerprint {fingerprint}: model or settings differ")
    yield from found or ["the same would be made" + ("" if settings.model else "; give --model to compare the model")]
