"""The masks that lie in an output, to find those that are missing or altered."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unet.segment.run_spec import hash64
from unet.storage.store import Store


class MaskIndex:
    """A hash of the key and the etag of each mask, sorted: 8 bytes a mask."""

    def __init__(self, output: Store, suffix: str) -> None:
        self._suffix = suffix
        pages = [np.array([hash64(item.key) ^ hash64(item.etag) for item in page], np.uint64) for page in output.list()]
        self._hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *pages]))

    def contains(self, keys: Sequence[str], etags: Sequence[str | None]) -> npt.NDArray[np.bool_]:
        """Return for each image key whether its mask is there, with this etag."""
        pairs = zip(keys, etags, strict=True)
        hashes = np.array([hash64(key + self._suffix) ^ hash64(etag or "") for key, etag in pairs], np.uint64)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        found: npt.NDArray[np.bool_] = first != last
        return found
