"""The label set: what the values and colours of a mask file mean.

Two numberings meet here. A *value* is what a mask file holds (0..255, any order, gaps allowed). A *class index*
is what the model predicts (0..C-1, in order of value, ignore labels left out). Labels of one name are one class, and
the first of them stands for it. `IGNORE` is the class index of every pixel that is neither trained nor scored.
Everything past decoding speaks class indices only.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet.settings import RequestError

IGNORE = 255
"""Class index of pixels that are neither trained nor scored: void, and the padding that augmentation adds."""

INVALID = 254
"""Marks, in lookup tables only, a mask value or colour that no label has."""

MAX_CLASSES = 254


@dataclass(frozen=True, kw_only=True)
class Label:
    """One row of a label set."""

    value: int
    """What a mask file holds for this label, 0..255."""
    name: str
    """Name of its class. Several labels may share it."""
    color: tuple[int, int, int]
    """RGB, 0..255: the palette of written masks and the key of RGB colour masks."""
    ignore: bool = False
    """Neither trained nor scored."""


BACKGROUND, IGNORED = re.compile(r"_*background_*", re.IGNORECASE), "__ignore__"
"""Names of what is behind all shapes, and (labelme) of what is neither trained nor scored."""


@dataclass(frozen=True)
class LabelSet:
    """The labels of a set: names in order of the value of their first label, labels of one name as they were given.

    Raises:
        RequestError: a repeated or impossible value or colour, a name ignored in part, or fewer than two classes.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        for attribute, noun in (("value", "index"), ("color", "colour")):
            values = [getattr(label, attribute) for label in self.labels]
            repeated = next((value for value in values if values.count(value) > 1), None)
            if repeated is not None:
                raise RequestError(f"two labels have the {noun} {repeated}; each label needs its own")
        first = {label.name: label for label in reversed(self.labels)}
        for label in self.labels:
            if not 0 <= label.value <= 255 or not all(0 <= channel <= 255 for channel in label.color):
                raise RequestError(f"label {label.name!r}: index and colours must lie in 0..255")
            if label.ignore != first[label.name].ignore:
                raise RequestError(
                    f"label {label.name!r}: is ignored in one row and not in another; rename one of them"
                )
        ordered = sorted(self.labels, key=lambda label: first[label.name].value)
        object.__setattr__(self, "labels", tuple(ordered))
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise RequestError(f"a label set needs 2 to {MAX_CLASSES} classes besides the ignored ones")

    @cached_property
    def written_labels(self) -> tuple[Label, ...]:
        """The first label of each name, in order of value: what written masks are made of."""
        first: dict[str, Label] = {}
        for label in self.labels:
            first.setdefault(label.name, label)
        return tuple(first.values())

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """The first labels of what is trained and scored; position is the class index."""
        return tuple(label for label in self.written_labels if not label.ignore)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by class index."""
        return tuple(label.name for label in self.classes)

    @cached_property
    def colors(self) -> npt.NDArray[np.uint8]:
        """RGB by class index, [256, 3] uint8; `IGNORE` shows in the colour of the first ignored label, or black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.classes)] = [label.color for label in self.classes]
        table[IGNORE] = next((label.color for label in self.labels if label.ignore), (0, 0, 0))
        return table

    @cached_property
    def value_to_class(self) -> npt.NDArray[np.uint8]:
        """Class index by mask value, [256] uint8: `IGNORE` for ignored labels, `INVALID` for values of no label."""
        table = np.full(256, INVALID, np.uint8)
        for label in self.labels:
            table[label.value] = IGNORE if label.ignore else self.names.index(label.name)
        return table

    def with_ignored_as_classes(self) -> "LabelSet":
        """Return the same set with its ignored labels trained and scored as classes."""
        return LabelSet(tuple(Label(value=label.value, name=label.name, color=label.color) for label in self.labels))

    def to_json(self) -> list[dict[str, Any]]:
        """Return the labels as rows for model.json."""
        return [
            {"index": label.value, "name": label.name, "color": list(label.color), "ignore": label.ignore}
            for label in self.labels
        ]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> "LabelSet":
        """Return the set of which `to_json` returned `rows`."""
        labels = [
            Label(value=row["index"], name=row["name"], color=tuple(row["color"]), ignore=row["ignore"]) for row in rows
        ]
        return cls(tuple(labels))


BUILT_IN = ("binary", "camvid", "camvid32", "cityscapes", "voc")
"""Label sets that come with the package: files of label_sets/ beside this module, in the format of a user's own.

binary: 0 is background, 1 and 255 are foreground.
camvid: CamVid in 11 classes, as it came with SegNet.
camvid32: the 32 colours of CamVid as published, in the same 11 classes by SegNet's grouping; published masks hold
colours alone, so the indices from 12 on are our own.
cityscapes: the label ids in its 19 classes, in the order of the train ids; 255 is the licence plate, -1 in eight bits;
of the ignored ids several are published as black, so these are near it.
voc: Pascal VOC, the background, 20 classes, and the border around objects."""


@lru_cache
def built_in_labels(name: str) -> LabelSet:
    """Return a label set of `BUILT_IN`."""
    text = files("unet.data").joinpath(f"label_sets/{name}.csv").read_text()
    return _parse_labels(text, f"--classes {name}")


def read_labels(source: str) -> LabelSet:
    """Return the label set named `source`: a built-in name (as in `camvid`) or the path of a file.

    A table has the columns index, name, red, green, blue and, optionally, ignore (1 or 0), in any order, between
    commas, semicolons or tabs. Without ignore, the label named void is the ignored one. Without index, labels count
    from 0 by row; without colours they have those of Pascal VOC's colour map. Rows of one name are one class. The
    labelmap.txt of CVAT, the _classes.csv of Roboflow, the dataset.json of nnU-Net, the labels.txt of labelme and the
    categories of a COCO file are taken too.

    Raises:
        RequestError: names the file, the line and what is wrong with it.
    """
    if source in BUILT_IN:
        return built_in_labels(source)
    path, place = Path(source), f"--classes {source}"
    if not path.is_file():
        known = ", ".join(BUILT_IN)
        raise RequestError(f"{place}: no such file and no built-in label set; built in: {known}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{place}: cannot be read as a CSV in UTF-8 ({error})") from None
    if path.suffix == ".json":
        return _parse_json(text, place)
    if path.name == "labels.txt":
        text = _from_labelme(text)
    return _parse_labels(_from_cvat(text) if path.name == "labelmap.txt" else text, place)


COLUMNS = {
    "index": ("index", "value", "pixel value", "id"),
    "name": ("name", "class", "label"),
    "red": ("red", "r"),
    "green": ("green", "g"),
    "blue": ("blue", "b"),
    "ignore": ("ignore",),
}
"""The columns of a label file, and what programs call them."""


def _parse_labels(text: str, place: str) -> LabelSet:
    """Return the label set of a table. Raise RequestError that begins with `place`."""
    lines = text.splitlines()
    header = lines[0] if lines else ""
    reader = csv.DictReader(lines, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    headings = {heading.strip().lower(): heading for heading in reader.fieldnames or ()}
    found = {column: headings[name] for column, names in COLUMNS.items() for name in names if name in headings}
    missing = {"name"} - found.keys() or {"red", "green", "blue"} - found.keys()
    if missing and (len(missing) < 3 or "name" in missing):
        raise RequestError(
            f"{place}: no column {', '.join(sorted(missing))}; the header must read index,name,red,green,blue[,ignore]"
        )
    rows = ({column: row[heading] for column, heading in found.items()} for row in reader)
    labels = tuple(_label(f"{place}, line {reader.line_num}", row, number) for number, row in enumerate(rows))
    return _label_set(labels, place)


def _label(place: str, row: dict[str, str], number: int) -> Label:
    try:
        ignore, value = row.get("ignore"), int(row.get("index", number))
        color = (int(row["red"]), int(row["green"]), int(row["blue"])) if "red" in row else color_of(value)
        name = row["name"].strip()
        return Label(
            value=value, name=name, color=color, ignore=bool(int(ignore)) if ignore else name.lower() == "void"
        )
    except (TypeError, ValueError, AttributeError):
        raise RequestError(f"{place}: index, red, green, blue must be whole numbers, ignore 0 or 1") from None


def _label_set(labels: tuple[Label, ...], place: str) -> LabelSet:
    try:
        return LabelSet(labels)
    except RequestError as error:
        raise RequestError(f"{place}: {error}") from None


def _from_cvat(text: str) -> str:
    """Return the table of a labelmap.txt, whose lines are name:red,green,blue:parts:actions."""
    rows = (line.split(":") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return "\n".join(("name,red,green,blue", *(f"{name},{color}" for name, color, *_ in rows)))


def _from_labelme(text: str) -> str:
    """Return the table of a labels.txt, whose lines are names."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    classes = [name for name in names if name != IGNORED]
    rows = [f"{index},{name},0" for index, name in enumerate(classes)]
    return "\n".join(("index,name,ignore", *rows, *([f"255,{IGNORED},1"] if IGNORED in names else [])))


def _coco_categories(content: Any) -> Sequence[tuple[int, str]]:
    """Return value and name of each label of a COCO file: its categories by their numbers, where they fit in 8 bits,
    and the background, 0. Raise what a file of another kind raises."""
    pairs = sorted((int(category["id"]), str(category["name"])) for category in content["categories"])
    numbers = [number for number, _ in pairs]
    if len(set(numbers)) < len(pairs) or numbers[0] < 1 or numbers[-1] > 255:
        pairs = [(place, name) for place, (_, name) in enumerate(pairs, 1)]
    behind = [] if any(BACKGROUND.fullmatch(name) for _, name in pairs) else [(0, "background")]
    return [*behind, *pairs]


def _parse_json(text: str, place: str) -> LabelSet:
    """Return the labels of a dataset.json: its values by name, or (version 1) its names by value; or of a COCO file."""
    try:
        content = json.loads(text)
        if "categories" in content:
            pairs: list[tuple[Any, int]] = [(name, value) for value, name in _coco_categories(content)]
        else:
            pairs = [(k, v) if isinstance(v, int) else (v, int(k)) for k, v in content["labels"].items()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise RequestError(
            f"{place}: holds no labels, each with a value, as the dataset.json of nnU-Net does, nor COCO's categories"
        ) from None
    names = [(str(name), value) for name, value in pairs]
    labels = (Label(value=v, name=name, color=color_of(v), ignore=name.lower() == "ignore") for name, v in names)
    return _label_set(tuple(labels), place)


def color_of(value: int) -> tuple[int, int, int]:
    """Return the colour of a value in the colour map of Pascal VOC: bits 0, 3, 6 of the value are the highest of red,
    1, 4, 7 of green, 2, 5 of blue."""
    red, green, blue = (
        sum((value >> (3 * place + channel) & 1) << (7 - place) for place in range(3)) for channel in range(3)
    )
    return red, green, blue
