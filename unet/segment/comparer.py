"""Compares the mask that a model predicts for an image with the recorded one, in the worker: masks never travel.

Stands in the place of the writer of a segmentation run, and writes nothing. Classes of two label sets are the same
where their names are; `before` and `after` are class indices of one set that has those of both.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet.data.image import Array, ImageError
from unet.data.labels import IGNORE, Label, LabelSet
from unet.data.mask import open_mask, to_classes
from unet.data.planes import Bools
from unet.model.metrics import ConfusionMatrix
from unet.model.predictor import Prediction
from unet.report.comparison import Panels, SamplePrediction, draw_panels
from unet.segment.catalogue import certainty
from unet.segment.item import Item, Outcome
from unet.segment.run_spec import RunSpec
from unet.segment.writer import Source
from unet.storage.faults import Changed, Vanished

SHOWN = 12
"""Images of the page: those that change most."""

BAND_PIXELS = 1 << 20
"""Pixels that are counted at a time: the counting takes 16 bytes for each."""

COLOR_STEP = 4_000_037
"""Coprime to the number of colours, so that steps of it meet each of them."""


@dataclass(frozen=True)
class Recorded(Item):
    """An object whose mask is recorded, and what the ledger says of that mask."""

    fingerprint: str = ""
    confidence: float | None = None
    unsure: float | None = None


@dataclass
class Comparison:
    """What was counted of one image, over the pixels with data."""

    cells: npt.NDArray[np.int64]
    """Of the matrix, class before by class after, those with pixels: their places in it, flattened."""
    counts: npt.NDArray[np.int64]
    """Pixels of these cells."""
    pixels: int
    changed: int
    confidence: float | None
    unsure: float | None
    """As in the catalogue, of the new mask."""
    panels: Panels | None = None
    """Where the image is among those of this worker that change most."""


@dataclass
class Compared(Outcome):
    """What became of an object: done, or as an `Outcome`, or its mask is missing or altered."""

    comparison: Comparison | None = None


@dataclass(frozen=True)
class Classes:
    """The classes of the new model and of the recorded masks, as one set."""

    labels: LabelSet
    """Those of the new model first, in their order."""
    recorded: Mapping[str, LabelSet]
    """The label sets of the recorded masks, by the fingerprints of the ledger."""

    @classmethod
    def joined(cls, new: LabelSet, recorded: Mapping[str, LabelSet]) -> "Classes":
        """Return the classes of all of them. A colour that is taken already is replaced.

        Raises:
            RequestError: they are more than a label set can have.
        """
        found = {label.name: label.color for labels in (new, *recorded.values()) for label in labels.classes}
        taken = {label.color for label in new.classes}
        rows = [Label(value=place, name=label.name, color=label.color) for place, label in enumerate(new.classes)]
        for name in [name for name in found if name not in new.names]:
            color = found[name]
            while color in taken:
                number = (int.from_bytes(bytes(color)) + COLOR_STEP) % (1 << 24)
                color = (number >> 16, number >> 8 & 255, number & 255)
            taken.add(color)
            rows.append(Label(value=len(rows), name=name, color=color))
        return cls(LabelSet(tuple(rows)), recorded)

    def table(self, fingerprint: str) -> Array:
        """Return the class index here by that in the recorded masks, [256] uint8; `IGNORE` stays."""
        table = np.full(256, IGNORE, np.uint8)
        names = self.recorded[fingerprint].names
        table[: len(names)] = [self.labels.names.index(name) for name in names]
        return table


class Comparer:
    """Called as a `Writer` is: with an object, its image and its prediction."""

    def __init__(self, spec: RunSpec, classes: Classes) -> None:
        self.spec, self.classes, self.output = spec, classes, spec.output_store
        self._lock = threading.Lock()
        self._highest_shares: list[float] = []
        """Of changed pixels, in the images of this worker so far."""

    def __call__(self, item: Item, source: Source, prediction: Prediction) -> Compared:
        """Compare with the recorded mask. Raise StorageError."""
        assert isinstance(item, Recorded)
        assert prediction.confidence is not None
        (key,) = self.spec.output_keys(item.key, ["mask"])
        try:
            data = self.output.get(key, item.mask_etag)
            picture = open_mask(data, max_pixels=self.spec.settings.max_pixels)
            mask = to_classes(picture, self.classes.recorded[item.fingerprint])
        except Vanished:
            return Compared("mask_missing", "its mask is not there; --verify makes it again")
        except Changed:
            return Compared("mask_altered", "its mask is not the one that was written; --verify makes it again")
        except ImageError as error:
            return Compared("mask_altered", f"its mask cannot be read: {error}")
        if mask.shape != prediction.mask.shape:
            sizes = [f"{height} x {width}" for height, width in (mask.shape, prediction.mask.shape)]
            return Compared("mask_altered", f"its mask has {sizes[0]} pixels, and the image has {sizes[1]}")
        before = self.classes.table(item.fingerprint)[mask]
        if source.holes is not None:
            before[source.holes] = IGNORE
        matrix = count_pairs(before, prediction.mask, len(self.classes.labels.classes))
        comparison = _comparison(matrix, prediction.confidence, source.holes)
        if self._is_among_highest(comparison):
            sample = SamplePrediction(name=item.key, image=source.image, truth=before, prediction=prediction.mask)
            comparison.panels = draw_panels(sample, self.classes.labels)
        return Compared("done", comparison=comparison)

    def _is_among_highest(self, comparison: Comparison) -> bool:
        share = comparison.changed / max(1, comparison.pixels)
        with self._lock:
            self._highest_shares = sorted([*self._highest_shares, share])[-SHOWN:]
            return share > 0 and share >= self._highest_shares[0]


def count_pairs(before: Array, after: Array, classes: int) -> ConfusionMatrix:
    """Return pixels by class before (rows) and after, of two masks of one shape, where `before` is not `IGNORE`."""
    matrix, rows = ConfusionMatrix.empty(classes), max(1, BAND_PIXELS // before.shape[1])
    for top in range(0, len(before), rows):
        matrix.add(before[top : top + rows], after[top : top + rows])
    return matrix


def _comparison(matrix: ConfusionMatrix, confidence: Array, holes: Bools | None) -> Comparison:
    cells, pixels = np.flatnonzero(matrix.counts), int(matrix.counts.sum())
    counts, changed = matrix.counts.reshape(-1)[cells], pixels - int(np.trace(matrix.counts))
    return Comparison(cells, counts, pixels, changed, *certainty(confidence if holes is None else confidence[~holes]))
