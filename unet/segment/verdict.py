"""What a run that goes wrong is told: the fault of one object is its row, one that all objects share ends the run.

Faults that may pass are a StorageError (exit code 1), those that will not a RequestError (2); TooManyLost is 3.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from unet.report.segmentation import LOST, describe_endings
from unet.segment.item import Item, Outcome
from unet.segment.listing import Listing
from unet.segment.recorder import Recorder
from unet.segment.run_spec import EMPTY_KEY, RunSpec
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage import store
from unet.storage.faults import Unreachable, Vanished

MAX_SHARED_FAULTS, MAX_DENIED = 16, 1000
"""Objects one after another that may fail because storage does not answer, or denies them, before the run ends. The
second holds once an object was done: then a part of the input may be denied, and the rest is not."""

SHARE_AFTER = 1000
"""Objects to be tried before --max-failed as a share can end a run."""


CRASHED = "ended its worker each time, alone too: it crashes the decoder, or its memory does not suffice"


class TooManyLost(Exception):  # noqa: N818
    """More objects were lost than --max-failed allows."""


class FaultCounter:
    """Counts objects that failed for a fault that others would meet as well, one after another."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._in_a_row = 0
        self._any_done = False
        self._last: Outcome | None = None

    def add(self, outcomes: Sequence[tuple[Item, Outcome]]) -> None:
        """Take outcomes as they come. Raise as `check` if too many failed in a row."""
        for _, outcome in outcomes:
            if outcome.status == "done":
                self._in_a_row, self._any_done = 0, True
            if outcome.fault is not None:
                same = self._last is not None and self._last.fault == outcome.fault
                self._in_a_row, self._last = self._in_a_row + 1 if same else 1, outcome
                self.check(MAX_DENIED if self._any_done and outcome.fault == "denied" else MAX_SHARED_FAULTS)

    def check(self, most: int) -> None:
        """Raise RequestError (denied) or Unreachable if the last `most` objects have failed so."""
        if self._last is None or self._in_a_row < most:
            return
        text = f"{self._in_a_row} objects one after another met this: {self._last.error}"
        if self._last.fault == "denied":
            raise RequestError(f"{text}; allow to read the objects of --input and to write those of --output")
        raise Unreachable(self._spec.settings.input, text)


def check_lost(settings: SegmentSettings, tally: Counter[str], *, ended: bool) -> None:
    """Raise TooManyLost if more objects are lost than --max-failed allows. `tally`: objects by status; `ended`: all
    have been tried."""
    lost = sum(tally[name] for name in LOST)
    tried = lost + tally["done"]
    share = settings.max_failed.strip().endswith("%")
    early = tried >= SHARE_AFTER if share else settings.failures_allowed(tried) > 0
    if (ended or early) and lost > settings.failures_allowed(tried):
        counts = ", ".join(f"{tally[name]:,} {name}" for name in LOST)
        raise TooManyLost(
            f"{lost:,} of {tried:,} objects were lost ({counts}), more than --max-failed {settings.max_failed}"
        )


def check_listed(spec: RunSpec, listing: Listing, recorder: Recorder) -> None:
    """Raise RequestError if there was nothing to segment where something was to be expected."""
    settings = spec.settings
    where = f"--input {settings.input}"
    if settings.manifest and not listing.listed and not settings.allow_empty:
        selected = " that --include and --exclude select" if listing.not_matched else ""
        raise RequestError(
            f"--manifest {settings.manifest}: names no object of {where}{selected}; give --allow-empty if that may be"
        )
    if settings.manifest and listing.listed and recorder.counts["vanished"] == listing.listed:
        raise RequestError(
            f"--manifest {settings.manifest}: none of its {listing.listed:,} objects is in {where}; its column key "
            "holds keys relative to that"
        )
    if listing.listed or settings.allow_empty or (_was_empty(spec) and not listing.recorded):
        if not listing.listed and settings.allow_empty and settings.manifest is None:
            spec.output_store.put(EMPTY_KEY, settings.input.encode())
        return
    if listing.not_matched:
        others = describe_endings(listing.not_matched, listing.endings)
        raise RequestError(f"{where}: has no image, only files that are not looked at: {others}; see --include")
    if store.is_object(settings.input, settings.input_profile):
        raise RequestError(f"{where}: is an object; name the folder that it lies in, and --include for it alone")
    raise RequestError(f"{where}: nothing is there; correct the name, or give --allow-empty if it may be empty")


def _was_empty(spec: RunSpec) -> bool:
    with suppress(Vanished):
        return spec.output_store.get(EMPTY_KEY).decode() == spec.settings.input
    return False
