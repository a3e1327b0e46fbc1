"""Scores pairs of a labelled set: reads them, predicts or reads their masks, counts.

Counts leave here, never ratios of more than one image: sums over the parts of a set do not depend on how it was cut.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch

from unet.data.channels import RGB, Channels
from unet.data.image import Array, ImageError
from unet.data.labelled_set import read_mask
from unet.data.labels import IGNORE, LabelSet
from unet.data.layouts import Pair
from unet.data.open_pair import OpenPair, open_pair, open_pairs, pixels_of
from unet.data.prefetch import prefetch
from unet.model.bootstrap import Overlap
from unet.model.metrics import ConfusionMatrix, Counts, Ratios, ratio
from unet.model.predictor import Predictor
from unet.report.evaluation import ImageScore

DECODERS, DECODED_PIXELS = 8, 1 << 26
"""Pairs that are decoded ahead of the forward passes, and their pixels, at most; a larger pair goes alone."""


@dataclass(frozen=True)
class Example:
    """An image with its truth. image: HWC uint8; truth: HW uint8 class indices; prediction: the same, if read."""

    pair: Pair
    image: Array
    truth: Array
    prediction: Array | None = None


@dataclass(frozen=True)
class Scored:
    """The scores of pairs, in the same order."""

    pairs: Sequence[Pair]
    images: Sequence[ImageScore]
    overlap: Overlap
    counts: Counts
    """The confusion matrix of all of them, [C, C]."""

    @property
    def iou(self) -> Ratios:
        """IoU by image and class, [N, C]; NaN for a class that is neither in an image's truth nor its prediction."""
        return ratio(self.overlap.intersection, self.overlap.union)

    @classmethod
    def joined(cls, parts: Sequence["Scored"]) -> "Scored":
        """Return what the pairs of all parts scored, in order of their images."""
        pairs = [pair for part in parts for pair in part.pairs]
        images = [image for part in parts for image in part.images]
        order = sorted(range(len(pairs)), key=lambda place: pairs[place].image)
        return cls(
            [pairs[place] for place in order],
            [images[place] for place in order],
            Overlap(
                np.concatenate([part.overlap.intersection for part in parts])[order],
                np.concatenate([part.overlap.union for part in parts])[order],
            ),
            np.sum([part.counts for part in parts], axis=0),
        )


class Scorer:
    """Scores pairs. Called from several threads, it reads the pairs of one call beside the forward passes of another.

    `predictor`: what is scored; None: the masks of `written`, URIs of masks by those of their images.
    """

    def __init__(
        self,
        labels: LabelSet,
        predictor: Predictor | None,
        written: dict[str, str],
        *,
        channels: Channels = RGB,
        batch_size: int | None = None,
    ) -> None:
        self.channels = channels
        self.labels, self.predictor, self.written = labels, predictor, written
        self.batch_size = batch_size or (1 if predictor is None else predictor.default_batch_size)
        # Forward passes have one thread of their own: PyTorch keeps a pool of threads for each that calls it.
        self.predicting = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, pairs: Sequence[Pair]) -> Scored:
        """Return the scores of `pairs`, in their order. Raise ImageError, naming the file, or Unreachable."""
        images, overlaps, total = [], [], ConfusionMatrix.empty(len(self.labels.classes))
        opened = open_pairs(pairs)
        ahead = prefetch(
            self._decode,
            opened,
            weight=partial(pixels_of, channels=self.channels),
            budget=DECODED_PIXELS,
            threads=DECODERS,
        )
        while examples := list(islice(ahead, self.batch_size)):
            for example, prediction in zip(examples, self.predictions(examples), strict=True):
                matrix = ConfusionMatrix.empty(len(self.labels.classes))
                matrix.add(example.truth, prediction)
                images.append(_score_of(example, matrix))
                overlaps.append([matrix.intersection, matrix.union])
                total.counts += matrix.counts
        by_image = np.array(overlaps, np.int64).reshape(-1, 2, len(self.labels.classes))
        return Scored(pairs, images, Overlap(by_image[:, 0], by_image[:, 1]), total.counts)

    def predictions(self, examples: Sequence[Example]) -> list[Array]:
        """Return the mask of each example, HW uint8 class indices."""
        if self.predictor is None:
            return [example.prediction for example in examples if example.prediction is not None]
        return self.predicting.submit(self._predict, examples, self.predictor).result()

    def _predict(self, examples: Sequence[Example], predictor: Predictor) -> list[Array]:
        masks = []
        results = predictor.predict_many([example.image for example in examples], self.batch_size)
        for example, result in zip(examples, results, strict=True):
            if isinstance(result, MemoryError):
                raise ImageError(f"{example.pair.image}: {result}")
            masks.append(result.mask)
        return masks

    def read(self, pair: Pair) -> Example:
        """Read a pair, and its written mask if those are scored."""
        return self._decode(open_pair(pair))

    def _decode(self, opened: OpenPair | ImageError) -> Example:
        if isinstance(opened, ImageError):
            raise opened
        pair = opened.pair
        planes, truth = opened.decode(self.labels, channels=self.channels)
        prediction = None
        if self.predictor is None:
            prediction = read_mask(self.written[pair.image], self.labels)
            if prediction.shape != truth.shape:
                sizes = [f"{height} x {width}" for height, width in (prediction.shape, truth.shape)]
                raise ImageError(
                    f"{self.written[pair.image]}: has {sizes[0]} pixels and the truth {pair.mask} has {sizes[1]}; "
                    "score masks of these images"
                )
            if ((prediction == IGNORE) & (truth != IGNORE)).any():
                raise ImageError(
                    f"{self.written[pair.image]}: holds an ignored label where the truth has a class; masks to score "
                    "hold classes alone"
                )
        return Example(pair, planes.to_array(), truth, prediction)


def _score_of(example: Example, matrix: ConfusionMatrix) -> ImageScore:
    height, width = example.truth.shape
    return ImageScore(
        key=example.pair.key,
        height=height,
        width=width,
        pixels=int(matrix.counts.sum()),
        pixel_accuracy=matrix.pixel_accuracy,
        miou=matrix.mean_iou,
    )
