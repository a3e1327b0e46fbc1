"""How labelled sets are laid out: which files of a folder are an image and its mask, and which part they belong to.

A pair's key is its path below the image folder without the suffix. Image and mask pair by their stems, that is by key
without the endings that a layout gives to each. A published set is read as it comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from unet.data.image import SUFFIXES
from unet.settings import RequestError
from unet.storage import store
from unet.storage.listed import join

SHOWN = 3
"""How many files an error names before it only counts them."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask. `image` and `mask` are URIs."""

    key: str
    image: str
    mask: str


Pairs = tuple[Pair, ...]


@dataclass(frozen=True)
class Layout:
    """Folders below --data, and how the files in them are named."""

    images: str
    masks: str
    val_images: str | None = None
    val_masks: str | None = None
    image_end: str = ""
    """What the names of images end with before their suffix; other files are not the set's."""
    mask_end: str = ""
    """The same of masks."""
    lists: str | None = None
    """Folder of train.txt and val.txt, which name the stems of each part where they are there. Images without a mask
    are no error: there are more of them than masks."""


PLAIN = Layout("images", "masks")

LAYOUTS = (
    Layout("train", "trainannot", "val", "valannot"),
    Layout("images_prepped_train", "annotations_prepped_train", "images_prepped_test", "annotations_prepped_test"),
    Layout("train/images", "train/masks", "val/images", "val/masks"),
    Layout("images/train", "masks/train", "images/val", "masks/val"),
    Layout(
        "leftImg8bit/train",
        "gtFine/train",
        "leftImg8bit/val",
        "gtFine/val",
        image_end="_leftImg8bit",
        mask_end="_gtFine_labelIds",
    ),
    Layout("701_StillsRaw_full", "LabeledApproved_full", mask_end="_L"),
    Layout("JPEGImages", "SegmentationClass", lists="ImageSets/Segmentation"),
    PLAIN,
)
"""Tried in this order: CamVid as it came with SegNet, image-segmentation-keras, plain ones with parts, Cityscapes,
CamVid as published, Pascal VOC, and one without parts."""


def pairs_by_layout(folder: str, flag: str) -> tuple[Pairs, Pairs]:
    """The training and the validation part of the set in `folder`; the latter may be empty.

    Raises:
        RequestError: names `flag` and the folder, or the files that do not pair.
    """
    store.check_readable(folder, flag)
    for layout in LAYOUTS:
        images, masks = join(folder, layout.images), join(folder, layout.masks)
        if store.exists(images) and store.exists(masks):
            if layout.lists is not None:
                return _listed_parts(images, masks, join(folder, layout.lists))
            train = pairs_of(images, masks, layout)
            if layout.val_images and layout.val_masks and store.exists(join(folder, layout.val_images)):
                val = join(folder, layout.val_images), join(folder, layout.val_masks)
                return train, pairs_of(*val, layout)
            return train, ()
    known = "; ".join(f"{layout.images}/ + {layout.masks}/" for layout in LAYOUTS)
    raise RequestError(
        f"{flag} {folder}: holds none of the known layouts ({known}); arrange it so, or use --images and --masks"
    )


def pairs_of(images: str, masks: str, layout: Layout = PLAIN) -> Pairs:
    """The pairs of two folders, in order of key.

    Raises:
        RequestError: no images, two files of one stem, or files that do not pair.
    """
    image_files, mask_files = _by_stem(images, layout.image_end), _by_stem(masks, layout.mask_end)
    if not image_files:
        kinds = " ".join(f"{layout.image_end}{suffix}" for suffix in SUFFIXES)
        raise RequestError(f"{images}: holds no image ({kinds}); name a folder that does")
    _refuse_unpaired("image without a mask", image_files, mask_files, _remedy(masks, layout.mask_end))
    _refuse_unpaired("mask without an image", mask_files, image_files, _remedy(images, layout.image_end))
    return _paired(image_files, image_files, mask_files, layout.image_end)


def some(names: Sequence[str]) -> str:
    """The first of `names`, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _listed_parts(images: str, masks: str, lists: str) -> tuple[Pairs, Pairs]:
    """The parts that the lists name; without lists, all that has a mask."""
    image_files, mask_files = _by_stem(images), _by_stem(masks)
    parts = []
    for name in ("train.txt", "val.txt"):
        uri = join(lists, name)
        stems = _stems_of(uri) if store.exists(uri) else []
        for folder, files in ((images, image_files), (masks, mask_files)):
            if without := sorted({*stems} - files.keys()):
                raise RequestError(
                    f"{uri}: names {some(without)}, of which {folder} has no file; add it or remove the line"
                )
        parts.append(_paired({*stems}, image_files, mask_files))
    train, val = parts
    if shared := {pair.key for pair in train} & {pair.key for pair in val}:
        raise RequestError(f"{lists}: train.txt and val.txt both name {min(shared)}; remove it from one of them")
    if train:
        return train, val
    rest = mask_files.keys() - {pair.key for pair in val}
    if not rest:
        raise RequestError(f"{masks}: holds no mask to train on; add masks, or {join(lists, 'train.txt')}")
    _refuse_unpaired("mask without an image", mask_files, image_files, _remedy(images, ""))
    return _paired(rest, image_files, mask_files), val


def _stems_of(uri: str) -> list[str]:
    """The first word of each line; more may stand behind it."""
    try:
        return [words[0] for line in store.read(uri).decode().splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{uri}: cannot be read as a list of names ({error})") from None


def _paired(stems: Iterable[str], images: Mapping[str, str], masks: Mapping[str, str], image_end: str = "") -> Pairs:
    pairs = (Pair(f"{stem}{image_end}", images[stem], masks[stem]) for stem in stems)
    return tuple(sorted(pairs, key=lambda pair: pair.key))


def _refuse_unpaired(kind: str, files: Mapping[str, str], others: Mapping[str, str], remedy: str) -> None:
    if without := sorted(files.keys() - others.keys()):
        raise RequestError(f"{kind}: {some([files[stem] for stem in without])}; {remedy} or remove this one")


def _remedy(folder: str, end: str) -> str:
    return f"add the file of the same stem{f', ending in {end},' if end else ''} to {folder}"


def _by_stem(folder: str, end: str = "") -> dict[str, str]:
    """URIs by path below `folder`, without `end` and suffix."""
    files: dict[str, str] = {}
    for key in store.list_files(folder):
        path = PurePosixPath(key)
        stem = path.with_suffix("").as_posix()
        if path.suffix.lower() in SUFFIXES and stem.endswith(end):
            stem, uri = stem.removesuffix(end), join(folder, key)
            if stem in files:
                raise RequestError(f"{files[stem]} and {uri} have one stem, and files pair by it; remove one of them")
            files[stem] = uri
    return files
