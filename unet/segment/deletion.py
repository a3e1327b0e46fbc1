"""Deletes masks whose images are gone: only on a complete listing of the very input that the ledger records."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import pyarrow as pa

from unet.segment.listing import Listing
from unet.segment.run_spec import RunSpec
from unet.settings import RequestError
from unet.storage.faults import BadCredentials, Denied
from unet.storage.objects import Guard

BATCH = 1000
"""Images whose masks are deleted before that is recorded."""


def refusal(spec: RunSpec, listing: Listing) -> str | None:
    """Return why nothing may be deleted; None if it may."""
    orphans, allowed = listing.orphaned, spec.settings.deletions_allowed(listing.recorded)
    if not listing.listed:
        return "--prune: the input is empty, and nothing was deleted; delete the output itself if that is meant"
    if listing.foreign is not None:
        return (
            f"--prune: the ledger also records masks of {listing.foreign}, and nothing was deleted; check --input, and "
            "give each input an output of its own"
        )
    if orphans > allowed:
        return (
            f"--prune: {orphans:,} of {listing.recorded:,} masks have lost their image, more than --max-delete "
            f"{spec.settings.max_delete}, and nothing was deleted; check --input, or raise --max-delete"
        )
    return None


def delete_masks(spec: RunSpec, keys: Iterable[str], guard: Guard) -> int:
    """Delete all that was written for the images `keys`, and record it; return how many these are. `guard` is called
    before each write.

    Raises:
        RequestError: it is not allowed. Of one image at most, which goes alone, that is then recorded as begun.
    """
    output, remaining, count = spec.output_store, iter(keys), 0
    while batch := list(islice(remaining, BATCH if count else 1)):
        # First, so that a kill between the two leaves no mask recorded that is not there.
        _record(
            spec, batch, {"status": "failed", "error": "is being deleted", "mask_etag": "", "input": spec.input}, guard
        )
        guard()
        try:
            output.delete(key for image in batch for key in spec.output_keys(image) if not output.key_error(key))
        except BadCredentials:
            raise
        except Denied as error:
            raise RequestError(f"--prune: {error}; allow to delete from --output, or leave --prune out") from None
        _record(spec, batch, {"status": "removed"}, guard)
        count += len(batch)
    return count


def _record(spec: RunSpec, keys: Sequence[str], values: Mapping[str, str], guard: Guard) -> None:
    columns = {"key": keys} | {name: [value] * len(keys) for name, value in values.items()}
    spec.ledger.append(pa.table(columns), spec.fence, guard)
