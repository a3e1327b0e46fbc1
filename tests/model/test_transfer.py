"""Arrays on their way to the device."""

import torch

from unet.model.transfer import Upload


def test_a_cpu_computes_on_the_array_itself() -> None:
    array = torch.arange(12).numpy()
    uploaded = Upload(torch.device("cpu"))(torch.from_numpy(array))
    array[0] = 7
    assert uploaded[0] == 7
