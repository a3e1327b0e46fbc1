"""How labelled sets are laid out: which files of a folder are an image and its mask, and which part they belong to.

A pair's key is its path below the image folder without the suffix. Image and mask pair by their stems, that is by key
without the endings that a layout gives to each. A published set is read as it comes.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

from unet.data.image import SUFFIXES, suffix_of
from unet.data.settings import MaskOrientation
from unet.data.shapes import Drawing, read_coco
from unet.settings import RequestError
from unet.storage import store
from unet.storage.objects import ObjectInfo, join_uri

SHAPES = ".json"
"""What the name of a mask of labelme ends with."""

COCO_OF_ROBOFLOW, INSTANCES = "_annotations.coco.json", re.compile(r"instances_(\w+)\.json")
"""Names of COCO files of instances, the second below annotations/."""

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
    drawing: Drawing | None = field(default=None, compare=False, repr=False)
    """The shapes of the mask, where those of all images are in one file, `mask`."""


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
    mask_suffixes: tuple[str, ...] = SUFFIXES
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
    if parts := _coco_parts(folder):
        return parts
    for layout in LAYOUTS:
        images, masks = (join_uri(folder, name) for name in layout.folders(layout.train_part))
        marked = not layout.marker or store.exists(join_uri(folder, layout.marker))
        if marked and store.exists(images) and store.exists(masks):
            endings = image_ending or layout.image_ending, mask_ending or layout.mask_ending
            layout = replace(layout, image_ending=endings[0], mask_ending=endings[1])
            if layout.split_lists is not None:
                return _parts_by_lists(images, masks, join_uri(folder, layout.split_lists), layout)
            val_images, val_masks = (join_uri(folder, name) for name in layout.folders(layout.val_part))
            parts = {"train": partial(pairs_of, images, masks, layout)}
            if val_images != images and store.exists(val_images):
                parts["val"] = partial(pairs_of, val_images, val_masks, layout)
            return parts
    if parts := _labelme_parts(folder, image_ending, mask_ending):
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
    mask_files = _files_by_stem(masks, layout.mask_ending, suffixes=layout.mask_suffixes)
    if not mask_files:
        mask_files = _files_by_stem(masks, layout.mask_ending, suffixes=(SHAPES,))
    if not image_files:
        kinds = " ".join(f"{layout.image_ending}{suffix}" for suffix in SUFFIXES)
        raise RequestError(f"{images}: holds no image ({kinds}); name a folder that does")
    _refuse_unpaired("image without a mask", image_files, mask_files, masks, layout.mask_ending)
    _refuse_unpaired("mask without an image", mask_files, image_files, images, layout.image_ending)
    return _make_pairs(image_files, image_files, mask_files, layout.image_ending)


def pairs_of_coco(images: str, file: str) -> Pairs:
    """Return the pairs of a folder of images and a COCO file of instances, in order of key; images that the file does
    not name are left out.

    Raises:
        RequestError: what is wrong with the file, or an image that is missing.
    """
    folder, _, name = file.rpartition("/")
    known = next(item for item in store.list_objects(folder) if item.key == name)
    drawings, there = read_coco(store.read(file), file), {item.key: item for item in store.list_objects(images)}
    if missing := summarize(sorted(drawings.keys() - there.keys())):
        raise RequestError(f"{file}: names {missing}, which {images} lacks; add it, or name its folder with --images")
    pairs = (
        Pair(
            PurePosixPath(name).with_suffix("").as_posix(),
            join_uri(images, name),
            file,
            (there[name].size, known.size),
            (there[name].etag, known.etag),
            drawing=drawing,
        )
        for name, drawing in drawings.items()
    )
    return tuple(sorted(pairs, key=lambda pair: pair.key))


def _coco_parts(folder: str) -> Parts:
    """Return the parts of a set that is laid out as Roboflow exports COCO, or as COCO itself; none if it is not."""
    found = {part: join_uri(folder, name) for part, name in (("train", "train"), ("val", "valid"))}
    parts: Parts = {
        part: partial(pairs_of_coco, images, join_uri(images, COCO_OF_ROBOFLOW))
        for part, images in found.items()
        if store.exists(join_uri(images, COCO_OF_ROBOFLOW))
    }
    annotations, claimed = join_uri(folder, "annotations"), dict[str, str]()
    for name in store.list_files(annotations) if not parts and store.exists(annotations) else ():
        if (match := INSTANCES.fullmatch(name)) and not match[1].lower().startswith("test"):
            part = "val" if "val" in match[1].lower() else "train"
            if (other := claimed.setdefault(part, name)) != name:
                raise RequestError(
                    f"{annotations}: {other} and {name} both are a {part} part; name one with --masks, and its --images"
                )
            folders = (join_uri(folder, images) for images in (match[1], f"images/{match[1]}", "images"))
            images = next(filter(store.exists, folders), folder)
            parts[part] = partial(pairs_of_coco, images, join_uri(annotations, name))
    return parts if "train" in parts else {}


def _labelme_parts(folder: str, image_ending: str, mask_ending: str) -> Parts:
    """Return the parts of a set in which each image has a file of labelme beside it; none if there is no such file."""
    layout = Layout("", "", image_ending=image_ending, mask_ending=mask_ending, mask_suffixes=(SHAPES,))
    for train, val in ((join_uri(folder, "train"), join_uri(folder, "val")), (folder, "")):
        if store.exists(train) and any(name.endswith(SHAPES) for name in store.list_files(train)):
            parts: Parts = {"train": partial(pairs_of, train, train, layout)}
            return parts | ({"val": partial(pairs_of, val, val, layout)} if val and store.exists(val) else {})
    return {}


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


def _files_by_stem(
    folder: str, ending: str = "", other_ending: str = "", suffixes: Sequence[str] = SUFFIXES
) -> dict[str, ObjectInfo]:
    """Return the images in `folder`, or the files of other `suffixes`, their URIs as keys, by their paths below it,
    without `ending` and suffix.

    Names that end in `other_ending`, and not in `ending`, are left out. Paths are of one normal form: macOS writes an
    accent as a character of its own, most others do not.
    """
    files: dict[str, ObjectInfo] = {}
    for item in store.list_objects(folder):
        suffix = suffix_of(item.key)
        stem = unicodedata.normalize("NFC", item.key.removesuffix(suffix))
        if other_ending and stem.endswith(other_ending) and not (ending and stem.endswith(ending)):
            continue
        if suffix.lower() in suffixes and stem.endswith(ending):
            stem, uri = stem.removesuffix(ending), join_uri(folder, item.key)
            if stem in files:
                raise RequestError(
                    f"{files[stem].key} and {uri} have one stem, and files pair by it; remove one of them"
                )
            files[stem] = item._replace(key=uri)
    return files
