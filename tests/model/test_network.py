"""The network: the published size, any input size, and no neighbour's influence."""

import pytest
import torch

from unet.model.network import UNet, normalise
from unet.model.settings import PRESETS, ModelSettings, Norm, Upsample, architecture


def test_classic_has_the_published_number_of_parameters() -> None:
    network = UNet(classes=12, **architecture(ModelSettings(model="classic")))
    assert sum(parameter.numel() for parameter in network.parameters()) == 34_514_060


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (7, 90)])
@pytest.mark.parametrize(("norm", "upsample"), [("batch", "transpose"), ("group", "bilinear"), ("none", "transpose")])
def test_logits_have_the_size_of_the_input(size: tuple[int, int], norm: Norm, upsample: Upsample) -> None:
    network = UNet(classes=3, width=8, depth=2, norm=norm, dropout=0.0, upsample=upsample).eval()
    assert network(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_an_images_logits_do_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    network = UNet(classes=3, width=8, depth=2, norm="batch", dropout=0.0).eval()
    images = torch.randn(4, 3, 20, 27)
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(together, alone, atol=1e-5)


def test_flags_stand_over_the_preset() -> None:
    assert architecture(ModelSettings(model="classic", width=8)) == {**PRESETS["classic"], "width": 8}


def test_normalise_maps_bytes_to_minus_one_to_one_in_channels_last() -> None:
    images = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8).expand(2, 4, 5, 3)
    seen = normalise(images)
    assert seen.shape == (2, 3, 4, 5)
    assert seen[0, :, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
    assert normalise(images.contiguous()).is_contiguous(memory_format=torch.channels_last)
