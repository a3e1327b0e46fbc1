"""The network: the published size, any input size, and no neighbour's influence."""

import pytest
import torch

from unet.model.network import PRESETS, Dropout, UNet, architecture, normalise
from unet.model.settings import ModelSettings, Norm, Upsample


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


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_anywhere_and_keeps_the_mean(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ones = torch.ones(8, 32, 61, 67, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    dropout = Dropout(share)
    dropped = dropout(ones)
    dropped.sum().backward()
    kept = (dropped > 0).float()
    assert dropped.is_contiguous(memory_format=torch.channels_last)
    assert kept.mean().item() == pytest.approx(1 - share, abs=0.004)
    assert dropped.float().mean().item() == pytest.approx(1, abs=0.005)
    assert ones.grad is not None
    assert torch.equal(ones.grad, dropped.detach())
    for axis in range(4):  # no plane and no place in a word of noise is dropped more often than another
        others = tuple(other for other in range(4) if other != axis)
        assert (kept.mean(others) - (1 - share)).abs().max() < 0.02
    places = kept.permute(0, 2, 3, 1).reshape(-1, 8).mean(0)
    assert (places - (1 - share)).abs().max() < 0.005
    assert not torch.equal(dropped, dropout(ones))


def test_dropout_is_nothing_but_training_s() -> None:
    values = torch.randn(2, 3, 4, 5)
    assert torch.equal(Dropout(0.3).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
