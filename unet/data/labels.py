"""The label set: what the values and colours of a mask file mean.

Two numberings meet here. A *value* is what a mask file holds (0..255, any order, gaps allowed). A *class index*
is what the model predicts (0..C-1, in order of value, ignore labels left out). Labels of one name are one class, and
the first of them stands for it. `IGNORE` is the class index of every pixel that is neither trained nor scored.
Everything past decoding speaks class indices only.
"""

import csv
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
    """Return the label set named `source`: a built-in name (as in `camvid`) or the path of a CSV.

    The CSV has the columns index, name, red, green, blue and, optionally, ignore (1 or 0). Without that column
    the label named void is the ignored one. Rows of one name are one class.

    Raises:
        RequestError: names the file, the line and what is wrong with it.
    """
    if source in BUILT_IN:
        return built_in_labels(source)
    path = Path(source)
    if not path.is_file():
        known = ", ".join(BUILT_IN)
        raise RequestError(f"--classes {source}: no such file and no built-in label set; built in: {known}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--classes {source}: cannot be read as a CSV in UTF-8 ({error})") from None
    return _parse_labels(text, f"--classes {source}")


def _parse_labels(text: str, place: str) -> LabelSet:
    """Return the label set of a CSV. Raise RequestError that begins with `place`."""
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    missing = {"index", "name", "red", "green", "blue"} - set(reader.fieldnames or ())
    if missing:
        raise RequestError(
            f"{place}: no column {', '.join(sorted(missing))}; the header must read index,name,red,green,blue[,ignore]"
        )
    labels = tuple(_label(f"{place}, line {reader.line_num}", row) for row in reader)
    try:
        return LabelSet(labels)
    except RequestError as error:
        raise RequestError(f"{place}: {error}") from None


def _label(place: str, row: dict[str, str]) -> Label:
    try:
        ignore = row.get("ignore")
        return Label(
            value=int(row["index"]),
            name=row["name"].strip(),
            color=(int(row["red"]), int(row["green"]), int(row["blue"])),
            ignore=bool(int(ignore)) if ignore else row["name"].strip().lower() == "void",
        )
    except (TypeError, ValueError, AttributeError):
        raise RequestError(f"{place}: index, red, green, blue must be whole numbers, ignore 0 or 1") from None
