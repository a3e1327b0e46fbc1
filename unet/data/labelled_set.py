"""A labelled set: pairs of image and mask, found by layout and split.

Whatever is wrong with a file is said in one line that names the file and the remedy.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from unet.data.channels import MAX_CHANNELS, RGB, Channels
from unet.data.image import Array, DamagedError, ImageError, open_image
from unet.data.labels import LabelSet
from unet.data.layouts import PLAIN, SHAPES, Pair, Parts, pairs_of, pairs_of_coco, parts_by_layout
from unet.data.mask import open_mask, to_classes
from unet.data.open_pair import naming, open_pair
from unet.data.planes import Planes
from unet.data.png import is_deep_colour
from unet.data.settings import MaskOrientation, Part, SetSettings
from unet.data.tiff import TiffPicture
from unet.settings import RequestError
from unet.storage import store


@dataclass(frozen=True)
class LabelledSet:
    """Pairs to train on and pairs to validate on, each in order of key."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]


def find_labelled_set(
    settings: SetSettings, folder: str | None = None, trained: Mapping[str, Any] | None = None
) -> LabelledSet:
    """Return the set that `settings` names; `folder` stands in for --data. `trained`: settings that a model was trained
    by, of which it must not be split otherwise.

    Raises:
        RequestError: no such folder, no known layout, no images, unpaired files, nothing to validate on, or the model
            was trained on it.
    """
    parts = _find_parts(settings, folder)
    train, val = parts["train"](), parts["val"]() if "val" in parts else ()
    if shared := {pair.image for pair in val} & {pair.image for pair in train}:
        raise RequestError(f"--val-data {settings.val_data}: {min(shared)} is a training image too; give another set")
    labelled = LabelledSet(train, val) if val else _split(train, settings, trained)
    return orient(labelled, settings.mask_orientation)


def orient(labelled: LabelledSet, lies: MaskOrientation) -> LabelledSet:
    """Return the set with masks that lie as `lies` says where EXIF turns their images."""
    if lies == "auto":
        return labelled
    parts = labelled.train, labelled.val
    return LabelledSet(*(tuple(replace(pair, mask_orientation=lies) for pair in part) for part in parts))


def find_part(settings: SetSettings, part: Part, trained: Mapping[str, Any] | None = None) -> LabelledSet:
    """Return a part of the set that `settings` names, and nothing of the other, which may be faulty. all: both parts,
    or a set without parts as it is. `trained`: as for `find_labelled_set`.

    Raises:
        RequestError: as `find_labelled_set`, of the part alone.
    """
    parts = _find_parts(settings)
    if part != "all" and "val" not in parts:
        whole = _split(parts["train"](), settings, trained)
        whole = LabelledSet(whole.train, ()) if part == "train" else LabelledSet((), whole.val)
        return orient(whole, settings.mask_orientation)
    found = {name: find() if part in (name, "all") else () for name, find in parts.items()}
    return orient(LabelledSet(found["train"], found.get("val", ())), settings.mask_orientation)


def _find_parts(settings: SetSettings, folder: str | None = None) -> Parts:
    endings = settings.image_suffix, settings.mask_suffix
    if settings.images is not None and settings.masks is not None:
        store.check_readable(settings.images, "--images")
        layout = replace(PLAIN, image_ending=endings[0], mask_ending=endings[1])
        parts: Parts = {"train": partial(pairs_of, settings.images, settings.masks, layout)}
        if settings.masks.endswith(SHAPES) and store.exists(settings.masks):
            parts = {"train": partial(pairs_of_coco, settings.images, settings.masks)}
        else:
            store.check_readable(settings.masks, "--masks")
    else:
        parts = parts_by_layout(folder or settings.data or "", "--data", *endings)
    if settings.val_data is not None:
        given = parts_by_layout(settings.val_data, "--val-data", *endings)
        parts["val"] = given.get("val", given["train"])
    return parts


def choose_bands(
    labelled: LabelledSet, asked: tuple[int, ...] | None, log: Callable[[str], None] = print
) -> tuple[int, ...] | None:
    """Return the bands that become channels: those asked for, or those of the first image. None: RGB as displayed, if
    it is gray or in colours of 8 bits, or gray of 16. `log` is called with a line about a band that is left out.

    Raises:
        RequestError: the file cannot be used, or has too many bands.
    """
    first = (labelled.train + labelled.val)[0].image
    if asked is not None:
        return asked
    try:
        with naming(first):
            picture = open_image(store.open_file(first))
    except DamagedError:
        return None  # the check says more
    except ImageError as error:
        raise RequestError(str(error)) from None
    if isinstance(picture, TiffPicture) and picture.has_alpha:  # as GDAL marks the last of two or four bands of 8 bits
        every = " ".join(map(str, range(1, picture.band_count + 1)))
        log(f"band {picture.band_count} is marked as alpha and left out; if it is none, give --bands {every}")
    if not isinstance(picture, TiffPicture) or not picture.has_bands:
        return (1, 2, 3) if is_deep_colour(picture) else (1,) if picture.mode == "F" else None
    count = 3 if picture.is_deep_colour and not picture.has_other_bands else picture.band_count
    if count > MAX_CHANNELS:
        raise RequestError(f"{first}: has {count} bands; name up to {MAX_CHANNELS} of them with --bands")
    return tuple(range(1, count + 1))


def read_pair(pair: Pair, labels: LabelSet, *, channels: Channels = RGB) -> tuple[Planes, Array]:
    """Return image and mask (HW uint8 class indices), of one size.

    Raises:
        ImageError: names the file, what is wrong with it and the remedy.
    """
    return open_pair(pair).decode(labels, channels=channels)


def read_checked_pair(pair: Pair, labels: LabelSet, channels: Channels) -> tuple[Planes, Array]:
    """Return what `read_pair` does. Raise RequestError: the check has not read it, or it was replaced since."""
    try:
        return read_pair(pair, labels, channels=channels)
    except ImageError as error:
        raise RequestError(str(error)) from None


def read_mask(uri: str, labels: LabelSet) -> Array:
    """Return the class indices, HW uint8, of a mask file. Raise ImageError as `read_pair`."""
    with naming(uri):
        return to_classes(open_mask(store.open_file(uri)), labels)


def _split(pairs: tuple[Pair, ...], settings: SetSettings, trained: Mapping[str, Any] | None) -> LabelledSet:
    fraction = settings.val_fraction
    places = ("data", "masks")
    if trained and all(
        str(trained.get(name)).rstrip("/") == str(getattr(settings, name)).rstrip("/") for name in places
    ):
        if (other := trained.get("val_data")) is not None:
            raise RequestError(f"the model was trained on all of {settings.folder}; give --val-data {other}")
        if (before := trained.get("val_fraction", fraction)) != fraction:
            raise RequestError(f"--val-fraction {fraction}: the model was trained on some of that; give {before}")

    def is_val(pair: Pair) -> bool:
        return int.from_bytes(hashlib.sha256(pair.key.encode()).digest()[:8]) < fraction * 2**64

    val = tuple(pair for pair in pairs if is_val(pair))
    train = tuple(pair for pair in pairs if not is_val(pair))
    if not val or not train:
        raise RequestError(
            f"--val-fraction {fraction} of {len(pairs)} pairs leaves {len(train)} to train and {len(val)} to validate "
            "on; change it, add pairs or give --val-data"
        )
    return LabelledSet(train, val)
