"""Batches on their way to the device."""

import numpy as np
import torch

from unet.train.examples import Batch
from unet.train.transfer import to_device


def test_batches_arrive_as_tensors_in_their_order() -> None:
    batches = [
        Batch(np.full((2, 4, 6, 3), number, np.uint8), np.full((2, 4, 6), number, np.uint8)) for number in range(3)
    ]
    arrived = list(to_device(iter(batches), torch.device("cpu")))
    for batch, (images, masks) in zip(batches, arrived, strict=True):
        assert np.array_equal(images.numpy(), batch.images)
        assert np.array_equal(masks.numpy(), batch.masks)
