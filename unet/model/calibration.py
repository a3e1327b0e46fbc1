"""The export job with --int8: what `--precision int8` needs, from images of the labelled set, into the model folder.

Nothing is written unless the validation part scores nearly as well in int8 as in the precision that it replaces.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet.data.check import check
from unet.data.image import Array, ImageError, preprocess_image
from unet.data.labelled_set import find_labelled_set, read_pair
from unet.data.labels import LabelSet
from unet.data.layouts import Pair
from unet.model.artifact import Model
from unet.model.int8 import FORMAT, calibrate, check_processor
from unet.model.metrics import ConfusionMatrix
from unet.model.network import normalise
from unet.model.predictor import Predictor
from unet.model.settings import ExportSettings
from unet.settings import RequestError
from unet.storage import store

IMAGES = 64
"""Of the training part whose values are looked at, spread over all of it."""

SIDE = 1024
"""Of larger images of geometry native so many rows and columns are looked at."""

MAX_LOSS = 0.005
"""Of mean IoU, by which int8 may be worse."""

SECONDS_PER_LINE = 5.0


def prepare_int8(settings: ExportSettings) -> int:
    """Add what int8 needs to the model folder; return the exit code, 0.

    Raises:
        RequestError: the request cannot be right, a file of the set cannot be used, or int8 costs too much.
    """
    check_processor()
    model = Model.load(settings.model)
    store.check_writable(settings.model, "--model")
    labels = model.labels_of_set(settings.data)
    data = store.with_absolute_paths(settings.data, "data", "images", "masks", "val_data")
    found = find_labelled_set(data, trained=model.training)
    checked = check(found, labels, data, print, model.channels)
    print(checked.table)
    train, val = checked.labelled.train, checked.labelled.val
    try:
        ranges = calibrate(model.network, _inputs(model, labels, train[:: -(-len(train) // IMAGES)]))
        scores = compare(replace(model, int8={"format": FORMAT, "ranges": ranges}), labels, val)
    except ImageError as error:
        raise RequestError(str(error)) from None
    said = f"mIoU {scores['miou']:.4f} in int8, {scores['miou_before']:.4f} without"
    if not scores["miou_before"] - scores["miou"] <= MAX_LOSS:
        raise RequestError(f"--int8: {said}, over {MAX_LOSS} lost: nothing is written; keep --precision auto")
    model.int8 = {"format": FORMAT, "ranges": ranges, "scores": scores}
    model.save_int8(settings.model)
    print(f"{settings.model}: {said}; {scores['agreement']:.2%} of the pixels alike, {len(val):,} images")
    return 0


def compare(model: Model, labels: LabelSet, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the mean IoU of `pairs` in int8 and in this processor's own precision, and the share of their pixels that
    both say the same of."""
    predictors = Predictor(model, precision="int8"), Predictor(model)
    matrices = [ConfusionMatrix.empty(len(labels.classes)) for _ in predictors]
    alike, printed = ConfusionMatrix.empty(len(labels.classes)), time.monotonic()
    for done, pair in enumerate(pairs):
        image, truth = _read(pair, labels, model)
        masks = [predictor.predict(image) for predictor in predictors]
        for matrix, mask in zip(matrices, masks, strict=True):
            matrix.add(truth, mask)
        alike.add(*masks)
        if time.monotonic() - printed > SECONDS_PER_LINE:
            printed = time.monotonic()
            print(f"compared {done + 1:,} of {len(pairs):,}", flush=True)
    int8, before = (matrix.mean_iou for matrix in matrices)
    return {"images": len(pairs), "miou": int8, "miou_before": before, "agreement": alike.pixel_accuracy}


def _inputs(model: Model, labels: LabelSet, pairs: Sequence[Pair]) -> Iterator[Tensor]:
    for pair in pairs:
        image = preprocess_image(_read(pair, labels, model)[0], model.geometry)[:SIDE, :SIDE]
        yield normalise(torch.from_numpy(np.stack([image])))


def _read(pair: Pair, labels: LabelSet, model: Model) -> tuple[Array, Array]:
    planes, truth = read_pair(pair, labels, channels=model.channels)
    return planes.to_array(), truth
