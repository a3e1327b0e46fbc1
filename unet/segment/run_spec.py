"""What the driver has decided for a run, and where things lie in its output."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b

from unet.data.channels import RGB, Channels
from unet.segment.ledger import Ledger
from unet.segment.manifest import Manifest
from unet.segment.object_parts import ObjectParts
from unet.segment.settings import MASK_SUFFIXES, SegmentSettings
from unet.storage.faults import Vanished
from unet.storage.objects import join_uri
from unet.storage.store import Store, open_store

INTERNAL = "_segment/"
"""Prefix of the keys in the output of all that is no mask."""

LEASE_KEY = f"{INTERNAL}lease"

FORCE_KEY = f"{INTERNAL}force"
"""Holds the fence from which on rows count for a run with --force that has not come to its end."""

EMPTY_KEY = f"{INTERNAL}empty"
"""Names the input that was empty when a run with --allow-empty last looked."""

FORMAT_KEY = f"{INTERNAL}mask-format"
"""Names the format of the masks, where it is not PNG."""

OUTPUTS = ("confidence", "mask", "overlay")
"""Files that can be written for an image."""

OBJECTS = "objects"
"""What is written besides, to files that images share."""

KNOWN_OUTPUTS = ("mask", "confidence,mask", "mask,overlay", "confidence,mask,overlay")
"""What can be written for an image together."""


def hash64(*parts: str | int) -> int:
    """Return 64 bits of BLAKE2b over the parts, joined by NUL."""
    # surrogatepass gives a file name that is no valid Unicode a hash too, which no other name has.
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def recorded_format(output: Store) -> str | None:
    """Return the format of the masks of an output, if it is not PNG."""
    with suppress(Vanished):
        return output.get(FORMAT_KEY).decode()
    return None


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
    model_digest: str = ""
    """SHA-256 of the weights of the model."""
    channels: Channels = RGB
    """What the input of the model is made of."""
    classes: tuple[str, ...] = ()
    """Names of the model's classes, by index."""
    earlier: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints by which versions before 0.2 knew the same model and settings, and the outputs that each stands for:
    these were a part of it."""
    forced_since: int | None = None
    """With --force: the fence of the first run that is to segment everything anew."""

    @property
    def mask_suffix(self) -> str:
        """What the key of an image gets to be that of its mask: of two images no two are the same."""
        return MASK_SUFFIXES[self.settings.mask_format]

    def output_keys(self, key: str, outputs: Iterable[str] = OUTPUTS) -> list[str]:
        """Return the keys in the output of the files that are written for an image."""
        return [f"{key}{self.mask_suffix}" if name == "mask" else f"{INTERNAL}{name}/{key}.png" for name in outputs]

    @property
    def folder(self) -> str:
        """Prefix of the keys in the output of what this run leaves about itself."""
        return f"{INTERNAL}runs/{self.run}/"

    @property
    def preview_folder(self) -> str:
        """Prefix of the keys in the output of what a preview leaves."""
        return f"{INTERNAL}previews/{self.run}/"

    @property
    def input(self) -> str:
        """Where the images lie, in one way of writing it."""
        return self.settings.input.rstrip("/")

    @property
    def manifest(self) -> Manifest | None:
        """What names the objects in place of a listing, if anything does."""
        uri, profile = self.settings.manifest, self.settings.input_profile
        return None if uri is None else Manifest(uri, self.input, profile)

    @property
    def failed_fingerprints(self) -> list[str]:
        """Digests of all that decides whether an object fails: today's, and those of earlier versions."""
        limits = self.settings.max_pixels, self.settings.max_bytes
        return [f"{hash64(fingerprint, *limits):016x}" for fingerprint in (self.fingerprint, *self.earlier)]

    @property
    def ledger(self) -> Ledger:
        """The ledger of the output."""
        settings, uri = self.settings, join_uri(self.settings.output, f"{INTERNAL}ledger")
        return Ledger(uri, classes=self.classes, profile=settings.output_profile, retry_seconds=settings.retry_for)

    @property
    def object_parts(self) -> ObjectParts:
        """The objects of the output."""
        settings, uri = self.settings, join_uri(self.settings.output, f"{INTERNAL}objects")
        request = f"{hash64(settings.min_area, *settings.object_classes):016x}"
        return ObjectParts(open_store(uri, profile=settings.output_profile, retry_seconds=settings.retry_for), request)

    @property
    def input_store(self) -> Store:
        """The store of the images."""
        settings = self.settings
        return open_store(settings.input, profile=settings.input_profile, retry_seconds=settings.retry_for)

    @property
    def output_store(self) -> Store:
        """The store of the masks and of all else that is written."""
        settings = self.settings
        return open_store(settings.output, profile=settings.output_profile, retry_seconds=settings.retry_for)
