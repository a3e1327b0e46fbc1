"""What the driver has decided for a run, and where things lie in its output."""

from collections.abc import Iterable
from dataclasses import dataclass

from unet.segment.ledger import Ledger, hash64
from unet.segment.settings import SegmentSettings
from unet.settings import Window
from unet.storage.objects import join_uri
from unet.storage.store import Store, open_store

INTERNAL = "_segment/"
"""Prefix of the keys in the output of all that is no mask."""

LEASE_KEY = f"{INTERNAL}lease"


def mask_key(key: str) -> str:
    """Return the key in the output of the mask of an image: the whole key and a suffix, so that no two are the same."""
    return f"{key}.png"


def output_keys(key: str, outputs: Iterable[str]) -> list[str]:
    """Return the keys in the output of all that is written for an image. `outputs`: mask, overlay, confidence."""
    return [mask_key(key) if name == "mask" else f"{INTERNAL}{name}/{mask_key(key)}" for name in outputs]


@dataclass(frozen=True)
class RunSpec:
    """What the driver has decided; the same in every process of a run."""

    settings: SegmentSettings
    fingerprint: str
    """Digest of the model and of all settings that change a mask."""
    run: str
    """Name of the run."""
    fence: int
    """Number of this run among those of the output: of the rows of a key, those with the highest fence count."""
    conditional: bool = False
    """Whether the output supports writes on condition of an etag."""
    window: Window | None = None
    """The window of the model for 16-bit images."""

    @property
    def folder(self) -> str:
        """Prefix of the keys in the output of what this run leaves about itself."""
        return f"{INTERNAL}runs/{self.run}/"

    @property
    def failed_fingerprint(self) -> str:
        """Digest of all that decides whether an object fails."""
        limits = self.settings.max_pixels, self.settings.max_bytes
        return f"{hash64(self.fingerprint, *limits):016x}"

    @property
    def ledger(self) -> Ledger:
        """The ledger of the output."""
        return Ledger(join_uri(self.settings.output, f"{INTERNAL}ledger"), retry_seconds=self.settings.retry_for)

    @property
    def input_store(self) -> Store:
        """The store of the images."""
        return open_store(self.settings.input, retry_seconds=self.settings.retry_for)

    @property
    def output_store(self) -> Store:
        """The store of the masks and of all else that is written."""
        return open_store(self.settings.output, retry_seconds=self.settings.retry_for)
