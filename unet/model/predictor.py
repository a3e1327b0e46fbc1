"""The predictor: the one way a model is applied to images, in training, evaluation and segmentation.

image: HWC uint8 of the model's channels, of any size; mask: HW uint8 class indices of the same size; logits: HWC float,
channels last as the network leaves them. The model's geometry decides what the network is given; logits, never masks,
are resized back. A mask depends on its image and on `fingerprint` alone, never on the other images of its batch or the
number of threads.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unet.data.image import Array, preprocess_image
from unet.model.artifact import Model
from unet.model.inference import prepare_for_inference
from unet.model.int8 import check_int8, to_int8
from unet.model.network import PREPROCESSING_VERSION, normalise
from unet.model.precision import DTYPES, forbid_tf32, resolve_precision
from unet.model.tiling import blend_tiles, resize_in_bands, round_up, split_band, tile_spans
from unet.model.transfer import Upload
from unet.settings import PredictPrecision, RequestError

T = TypeVar("T")
R = TypeVar("R")

GPU_BATCH_SIZE = 8
"""Images per forward pass on a GPU, by default. On a CPU more than one is no faster."""


@dataclass(frozen=True)
class Prediction:
    """What the model predicts for one image."""

    mask: Array
    """HW uint8 class indices."""
    confidence: Array | None
    """HW uint8: 255 times the softmax probability of the mask's class, where asked for."""


class Predictor:
    """Applies `model` on `device`. Threads may share it: a GPU then computes for one while others prepare.

    `tile`: geometry native only: larger images are cut into tiles of this height and width at most [pixels].
    `tta`: averages the logits of each image and of its mirror image.

    Raises:
        RequestError: `tile` is too small for the network; or int8, which model, device or processor has not.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device | str = "cpu",
        precision: PredictPrecision = "auto",
        tile: int = 1024,
        tta: bool = False,
    ) -> None:
        self.model = model
        self.device = torch.device(device)
        self.precision = precision
        self.size_divisor = model.network.size_divisor
        self.tile = tile // self.size_divisor * self.size_divisor
        self.tta = tta
        if self.tile < 2 * self.size_divisor:
            raise RequestError(f"--tile {tile} must be at least {2 * self.size_divisor} for a network of this depth")
        self._network: nn.Module
        if precision == "int8":
            check_int8(model.int8, self.device)
            self._dtype, self._network = torch.float32, to_int8(model.network, model.int8["ranges"])
        else:
            resolved = resolve_precision(precision, self.device)
            forbid_tf32(resolved, self.device)
            self._dtype = DTYPES[resolved]
            self._network = prepare_for_inference(model.network, self.device, self._dtype)
        self._upload = Upload(self.device)
        self._applying = threading.Lock()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the pixels and the palette of a mask depend on, besides the image; ready for JSON."""
        native = self.model.geometry.kind == "native"
        return {
            "model": self.model.digest,
            "labels": self.model.labels.to_json(),
            "preprocessing": PREPROCESSING_VERSION,
            "geometry": [self.model.geometry.kind, *self.model.geometry.size],
            "tile": self.tile if native else None,
            "tta": self.tta,
            "precision": "bf16" if self.precision == "auto" else self.precision,  # hardware is no part of it
            **self.model.channels.to_json(),
            **({"int8": [self.model.int8["format"], self.model.int8["ranges"]]} if self.precision == "int8" else {}),
        }

    def input_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the network's input for an image of this size: equal ones may share a batch."""
        whole = self._padded_size(image_size)
        return (min(whole[0], self.tile), min(whole[1], self.tile)) if self.needs_tiles(image_size) else whole

    def needs_tiles(self, image_size: tuple[int, int]) -> bool:
        """Return whether an image of this size is cut into tiles; it then gains nothing from a batch."""
        height, width = self._padded_size(image_size)
        return self.model.geometry.kind == "native" and height * width > self.tile**2

    @property
    def default_batch_size(self) -> int:
        """Images per forward pass where the user asks for no number."""
        return 1 if self.device.type == "cpu" else GPU_BATCH_SIZE

    def predict(self, image: Array) -> Array:
        """Return the mask of `image`."""
        return self.predict_batch([image])[0].mask

    def predict_many(
        self, images: Sequence[Array], batch_size: int | None = None, *, confidence: bool = False
    ) -> list[Prediction | MemoryError]:
        """Return for each image, of any size, its prediction, or a MemoryError if memory is too small for it alone.

        Images of one `input_size` are predicted together, `batch_size` at a time (None: `default_batch_size`), and
        each image that needs tiles by itself.
        """
        groups: dict[object, list[int]] = {}
        for index, size in enumerate(map(_size, images)):
            groups.setdefault(index if self.needs_tiles(size) else self.input_size(size), []).append(index)
        results: dict[int, Prediction | MemoryError] = {}
        step = batch_size or self.default_batch_size
        for group in groups.values():
            for batch in (group[start : start + step] for start in range(0, len(group), step)):
                attempt = partial(self.predict_batch, confidence=confidence)
                predictions = apply_or_halve(attempt, [images[index] for index in batch])
                results.update(zip(batch, predictions, strict=True))
        return [results[index] for index in range(len(images))]

    @torch.inference_mode()
    def predict_batch(self, images: Sequence[Array], *, confidence: bool = False) -> list[Prediction]:
        """Return the predictions of images of one `input_size`, in their order."""
        return [
            _argmax(bands, self._empty_mask(image), self._empty_mask(image) if confidence else None)
            for image, bands in zip(images, self.logits_in_bands(images), strict=True)
        ]

    def logits_in_bands(self, images: Sequence[Array]) -> Iterator[Iterator[Tensor]]:
        """Yield for each of `images`, of one `input_size`, its logits at its own size, in bands of rows, [rows, W, C].

        A band has BAND_LOGITS at most, or one row. The next one may overwrite it in memory.
        """
        assert len({self.input_size(_size(image)) for image in images}) <= 1
        # Convolutions may sum in another order for another batch. On a CPU a batch is no faster: one image at a time.
        alone = self.device.type == "cpu" or any(self.needs_tiles(_size(image)) for image in images)
        for batch in ([image] for image in images) if alone else [images]:
            for bands in self._logits_of_batch(batch):
                yield (part for band in bands for part in split_band(band))

    def _empty_mask(self, image: Array) -> Tensor:
        return torch.empty(_size(image), dtype=torch.uint8, device=self.device)

    def _padded_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        geometry = self.model.geometry
        height, width = image_size if geometry.kind == "native" else geometry.size
        return round_up(height, self.size_divisor), round_up(width, self.size_divisor)

    def _logits_of_batch(self, batch: Sequence[Array]) -> Iterator[Iterable[Tensor]]:
        """Yield for each image its logits at its own size, in bands of any number of rows, each [rows, W, C]."""
        if self.needs_tiles(_size(batch[0])):
            (image,) = batch
            yield self._tiled_logits(image)
            return
        inputs = [preprocess_image(image, self.model.geometry) for image in batch]
        for image, model_input, padded_logits in zip(batch, inputs, self._forward(inputs), strict=True):
            logits = padded_logits[: model_input.shape[0], : model_input.shape[1]]
            yield [logits] if logits.shape[:2] == image.shape[:2] else resize_in_bands(logits, _size(image))

    def _tiled_logits(self, image: Array) -> Iterator[Tensor]:
        rows, columns = (tile_spans(length, self.tile, self.size_divisor) for length in _size(image))

        def logits_of(row: slice, column: slice) -> Tensor:
            tile = image[row, column]
            return self._forward([tile])[0, : tile.shape[0], : tile.shape[1]]

        return blend_tiles(rows, columns, logits_of)

    def _forward(self, images: Sequence[Array]) -> Tensor:
        """Return the logits, NHWC, of images padded to multiples of `size_divisor` by repeating their borders."""
        batch = torch.from_numpy(np.stack([_pad(image, self.size_divisor) for image in images]))
        uploaded = self._upload(batch)
        with self._applying:  # so that the activations of one batch alone are in memory
            inputs = normalise(uploaded).to(self._dtype)
            logits = self._network(inputs)
            if self.tta:
                logits = (logits.float() + self._network(inputs.flip(-1)).flip(-1)) / 2
        result: Tensor = logits.permute(0, 2, 3, 1)
        return result


def apply_or_halve(function: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R | MemoryError]:
    """Return what `function` returns for each item of `batch`, called with halves where memory is too small for more;
    a MemoryError for an item that it is too small for by itself."""
    try:
        return [*function(batch)]
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # The next attempts stand here, where the failed one holds no memory any more.
    if len(batch) == 1:
        return [MemoryError("does not fit in memory, or in that of the GPU; lower --tile or add memory")]
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return [result for half in (batch[:middle], batch[middle:]) for result in apply_or_halve(function, half)]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)  # of a CPU


def _argmax(bands: Iterable[Tensor], mask: Tensor, confidence: Tensor | None) -> Prediction:
    """Fill `mask` and `confidence` (HW uint8) from logits: each pixel's likeliest class, and how likely that is."""
    top = 0
    for logits in bands:
        rows = slice(top, top + len(logits))
        highest, classes = logits.max(-1, keepdim=True)
        mask[rows] = classes[..., 0]
        if confidence is not None:
            odds = (logits.float() - highest.float()).exp_()
            # A product with ones, since a sum over a last dimension as short as this one is slow.
            inverse = odds.flatten(0, 1).mv(odds.new_ones(odds.shape[-1])).view(mask[rows].shape)
            confidence[rows] = inverse.reciprocal_().mul_(255).round_()
        top = rows.stop
    assert top == len(mask)
    return Prediction(mask.cpu().numpy(), None if confidence is None else confidence.cpu().numpy())


def _pad(image: Array, multiple: int) -> Array:
    bottom, right = (round_up(length, multiple) - length for length in _size(image))
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else image


def _size(image: Array) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
