"""What can be told of a pixel without its surroundings: logistic regression on its colour and place."""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from unet.data.image import Array
from unet.data.labels import IGNORE
from unet.model.metrics import ConfusionMatrix

Scene = tuple[Array, Array]
"""Image, HWC, and mask, HW uint8 class indices."""

PIXELS = 150
"""Of each training image that the regression is fitted to."""


def score_pixelwise(training: Sequence[Scene], validation: Sequence[Scene], classes: int) -> ConfusionMatrix:
    """Return the counts of a logistic regression on each pixel's colour, place, and their squares and products, fitted
    until it converges."""
    rng = np.random.default_rng(0)
    picked = [_some_pixels(scene, rng) for scene in training]
    features = torch.from_numpy(np.concatenate([x for x, _ in picked]))
    truth = torch.from_numpy(np.concatenate([y for _, y in picked])).long()
    deviation, mean = torch.std_mean(features, 0)
    deviation.clamp_(min=1e-6)
    model = _fit((features - mean) / deviation, truth, classes)
    matrix = ConfusionMatrix.empty(classes)
    with torch.no_grad():
        for image, mask in validation:
            logits = model((torch.from_numpy(_features(image)) - mean) / deviation)
            matrix.add(mask, logits.argmax(1).numpy().astype(np.uint8).reshape(mask.shape))
    return matrix


def _features(image: Array, pixels: npt.NDArray[np.intp] | slice = slice(None)) -> npt.NDArray[np.float32]:
    """[pixels, features] float: channels, x, y, and the squares and products of all of them."""
    y, x = np.mgrid[-1 : 1 : image.shape[0] * 1j, -1 : 1 : image.shape[1] * 1j]
    channels = image.transpose(2, 0, 1) / np.iinfo(image.dtype).max * 2 - 1
    plain = np.stack([*channels, x, y]).reshape(len(channels) + 2, -1)[:, pixels]
    products = [a * b for a, b in itertools.combinations_with_replacement(plain, 2)]
    return np.stack([*plain, *products], -1).astype(np.float32)


def _some_pixels(scene: Scene, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], Array]:
    image, mask = scene
    chosen = rng.permutation(np.flatnonzero(mask != IGNORE))[:PIXELS]
    return _features(image, chosen), mask.ravel()[chosen]


def _fit(features: torch.Tensor, truth: torch.Tensor, classes: int) -> torch.nn.Linear:
    model = torch.nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    losses = []

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(features), truth)
        loss.backward()
        losses.append(loss.item())
        return losses[-1]

    for _ in range(4):
        optimizer.step(step)
    assert losses[-1] > losses[len(losses) // 2] - 0.01, "not converged: half of the steps still gained something"
    return model
