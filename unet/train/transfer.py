"""Batches on their way from Ray's memory to the device that trains.

images: NHWC uint8; masks: NHW uint8 class indices.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from unet.train.examples import Batch


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the images and the masks of each batch on `device`.

    A GPU is not waited for: while it takes the steps asked of it before, the next batch is copied on a stream of its
    own, from pinned memory.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        images, masks = torch.from_numpy(batch.images), torch.from_numpy(batch.masks)
        if stream is not None:
            images, masks = _copy([images, masks], device, stream)
        yield images, masks


def _copy(tensors: list[Tensor], device: torch.device, stream: torch.cuda.Stream) -> list[Tensor]:
    """Return copies on `device`, made on `stream`, for use on the current stream."""
    with torch.cuda.stream(stream):
        copies = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    for copy in copies:
        copy.record_stream(current)  # its memory is free only when what is asked of the device by then is done
    return copies
