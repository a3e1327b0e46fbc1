"""How labelled sets are laid out: which files of a folder are an image and its mask, and which part they belong to.

A pair's key is its path below the image folder without the suffix. Image and mask pair by their stems, that is by key
without the endings that a layout gives to each. A published set is read as it comes.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

from unet.data.image import SUFFIXES
from unet.data.settings import MaskOrientation
from unet.settings import RequestError
from unet.storage import store
from unet.storage.objects import ObjectInfo, join_uri

MAX_NAMED = 3
"""How many files an error names before it only counts them."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask. `image` and `mask` are URIs. A pair is the same whatever its files hold."""

    key: str
    image: str
    mask: str
    sizes: tuple[int, int] = field(default=(0, 0), compare=False)
    """Of both files, when they were listed [bytes]."""
    etags: tuple[str, str] = field(default=("", ""), compare=False)
    """Of both files, when they were listed."""
    mask_orientation: MaskOrientation = field(default="auto", compare=False)
    """How the mask lies if EXIF turns the image."""


Pairs = tuple[Pair, ...]

Parts = dict[str, Callable[[], Pairs]]
"""What finds the pairs of the parts that a set has: train, and val if there is one."""


@dataclass(frozen=True)
class Layout:
    """Folders below --data, and how the files in them are named. `{part}` in a folder is one of its parts."""

    images: str
    masks: str
    train_part: str = "train"
    val_part: str = "val"
    image_ending: str = ""
    """What the names of images end with before their suffix; files with other names are not of the set."""
    mask_ending: str = ""
    """What the names of masks end with before their suffix."""
    marker: str = ""
    """A file below --data without which the set is of another layout."""
    split_lists: str | None = None
    """Folder in which train.txt and val.txt, if they exist, list the stems of each part. In a set with such a folder,
    images without a mask are left out."""

    def folders(self, part: str) -> tuple[str, str]:
        """Return the folders of a part's images and masks, below --data."""
        return self.images.format(part=part), self.masks.format(part=part)


PLAIN = Layout("images", "masks")

LAYOUTS = (
    Layout("{part}", "{part}annot"),
    Layout("{part}", "{part}_masks", mask_ending="_mask"),
    Layout("{part}", "{part}", val_part="valid", mask_ending="_mask", marker="train/_classes.csv"),
    Layout("images_prepped_{part}", "annotations_prepped_{part}", val_part="test"),
    Layout("{part}/images", "{part}/masks"),
    Layout("images/{part}", "masks/{part}"),
    Layout("img_dir/{part}", "ann_dir/{part}"),
    Layout("images/{part}", "annotations/{part}", train_part="training", val_part="validation"),
    Layout("imagesTr", "labelsTr", image_ending="_0000"),
    Layout("leftImg8bit/{part}", "gtFine/{part}", image_ending="_leftImg8bit", mask_ending="_gtFine_labelIds"),
    Layout("701_StillsRaw_full", "LabeledApproved_full", mask_ending="_L"),
    Layout("JPEGImages", "SegmentationClass", split_lists="ImageSets/Segmentation"),
    PLAIN,
)
"""Tried in this order: CamVid as it came with SegNet, Carvana, Roboflow, image-segmentation-keras, plain ones with
parts, MMSegmentation, ADE20K, nnU-Net, Cityscapes, CamVid as published, Pascal VOC, and one without parts."""


def parts_by_layout(folder: str, flag: str, image_ending: str = "", mask_ending: str = "") -> Parts:
    """Return the parts of the set in `folder`. To find the pairs of one looks at its files alone.

    `image_ending`, `mask_ending`: in place of those of the layout.

    Raises:
        RequestError: names `flag` and the folder; or, when a part is found, the files that do not pair.
    """
    store.check_readable(folder, flag)
    for layout in LAYOUTS:
        images, masks = (join_uri(folder, name) for name in layout.folders(layout.train_part))
        marked = not layout.marker or store.exists(join_uri(folder, layout.marker))
        if marked and store.exists(images) and store.exists(masks):
            endings = image_ending or layout.image_ending, mask_ending or layout.mask_ending
            layout = replace(layout, image_ending=endings[0], mask_ending=endings[1])
            if layout.split_lists is not None:
                return _parts_by_lists(images, masks, join_uri(folder, layout.split_lists), layout)
            val_images, val_masks = (join_uri(folder, name) for name in layout.folders(layout.val_part))
            parts: Parts = {"train": partial(pairs_of, images, masks, layout)}
            if val_images != images and store.exists(val_images):
                parts["val"] = partial(pairs_of, val_images, val_masks, layout)
            return parts
    known = "; ".join("{}/ + {}/".format(*layout.folders(layout.train_part)) for layout in LAYOUTS)
    raise RequestError(
        f"{flag} {folder}: holds none of the known layouts ({known}); arrange it so, or use --images and --masks"
    )


def pairs_of(images: str, masks: str, layout: Layout = PLAIN) -> Pairs:
    """Return the pairs of two folders, in order of key.

    Raises:
        RequestError: no images, two files of one stem, or files that do not pair.
    """
    masks_ending_here = layout.mask_ending if images == masks else ""
    image_files = _files_by_stem(images, layout.image_ending, masks_ending_here)
    mask_files = _files_by_stem(masks, layout.mask_ending)
    if not image_files:
        kinds = " ".join(f"{layout.image_ending}{suffix}" for suffix in SUFFIXES)
        raise RequestError(f"{images}: holds no image ({kinds}); name a folder that does")
    _refuse_unpaired("image without a mask", image_files, mask_files, masks, layout.mask_ending)
    _refuse_unpaired("mask without an image", mask_files, image_files, images, layout.image_ending)
    return _make_pairs(image_files, image_files, mask_files, layout.image_ending)


def summarize(names: Sequence[str]) -> str:
    """Return the first `MAX_NAMED` of `names` as text, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _parts_by_lists(images: str, masks: str, lists: str, layout: Layout) -> Parts:
    """Return the parts that the lists name; without a list for training, all other masks are trained on."""
    image_files, mask_files = _files_by_stem(images, layout.image_ending), _files_by_stem(masks, layout.mask_ending)
    stems = {name: _read_stems(join_uri(lists, f"{name}.txt")) for name in ("train", "val")}

    def listed(name: str) -> Pairs:
        for folder, files in ((images, image_files), (masks, mask_files)):
            if missing := summarize(sorted(stems[name] - files.keys())):
                uri = join_uri(lists, f"{name}.txt")
                raise RequestError(f"{uri}: names {missing}, of which {folder} has no file; add it or remove the line")
        return _make_pairs(stems[name], image_files, mask_files)

    def train() -> Pairs:
        if shared := stems["train"] & stems["val"]:
            raise RequestError(f"{lists}: train.txt and val.txt both name {min(shared)}; remove it from one of them")
        if stems["train"]:
            return listed("train")
        rest = mask_files.keys() - stems["val"]
        if not rest:
            raise RequestError(f"{masks}: holds no mask to train on; add masks, or {join_uri(lists, 'train.txt')}")
        _refuse_unpaired("mask without an image", mask_files, image_files, images, "")
        return _make_pairs(rest, image_files, mask_files)

    return {"train": train} | ({"val": partial(listed, "val")} if stems["val"] else {})


def _read_stems(uri: str) -> set[str]:
    """Return the first word of each line of a list, if there is one; in lists of one class a flag follows it."""
    if not store.exists(uri):
        return set()
    try:
        return {words[0] for line in store.read(uri).decode().splitlines() if (words := line.split())}
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{uri}: cannot be read as a list of names ({error})") from None


def _make_pairs(
    stems: Iterable[str], images: Mapping[str, ObjectInfo], masks: Mapping[str, ObjectInfo], image_ending: str = ""
) -> Pairs:
    both = ((f"{stem}{image_ending}", images[stem], masks[stem]) for stem in stems)
    pairs = (
        Pair(key, image.key, mask.key, (image.size, mask.size), (image.etag, mask.etag)) for key, image, mask in both
    )
    return tuple(sorted(pairs, key=lambda pair: pair.key))


def _refuse_unpaired(
    kind: str, files: Mapping[str, ObjectInfo], others: Mapping[str, ObjectInfo], folder: str, ending: str
) -> None:
    """Raise RequestError for files, each a `kind`, whose stems `others`, the files of `folder`, lack."""
    if unpaired := summarize([files[stem].key for stem in sorted(files.keys() - others.keys())]):
        remedy = f"add the file of the same stem{f', ending in {ending},' if ending else ''} to {folder}"
        raise RequestError(f"{kind}: {unpaired}; {remedy} or remove this one")


def _files_by_stem(folder: str, ending: str = "", other_ending: str = "") -> dict[str, ObjectInfo]:
    """Return the images in `folder`, their URIs as keys, by their paths below it, without `ending` and suffix.

    Names that end in `other_ending`, and not in `ending`, are left out. Paths are of one normal form: macOS writes an
    accent as a character of its own, most others do not.
    """
    files: dict[str, ObjectInfo] = {}
    for item in store.list_objects(folder):
        path = PurePosixPath(item.key)
        stem = unicodedata.normalize("NFC", path.with_suffix("").as_posix())
        if other_ending and stem.endswith(other_ending) and not (ending and stem.endswith(ending)):
            continue
        if path.suffix.lower() in SUFFIXES and stem.endswith(ending):
            stem, uri = stem.removesuffix(ending), join_uri(folder, item.key)
            if stem in files:
                raise RequestError(
                    f"{files[stem].key} and {uri} have one stem, and files pair by it; remove one of them"
                )
            files[stem] = replace(item, key=uri)
    return files
