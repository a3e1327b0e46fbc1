"""Muon: the steps of PyTorch's, whose checkpoints go on, in a dtype of the device, and exact in float32."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet.model.network import UNet, to_channels_last
from unet.model.settings import ModelSettings, architecture
from unet.train.optimizer import ITERATIONS, PRETRAINED_RATE, QUINTIC, Muon, Optimizer, orthogonalise
from unet.train.settings import FitSettings

RATE, DECAY = 0.02, 0.1


def kernels_of(upsample: Any = "transpose") -> list[nn.Parameter]:
    torch.manual_seed(0)
    network = to_channels_last(UNet(classes=3, width=8, depth=2, norm="none", dropout=0.0, upsample=upsample))
    return [weight for weight in network.parameters() if weight.ndim > 1][1:-1]


def gradients_of(kernels: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(kernel.shape, generator=generator).to(memory_format=torch.channels_last) for kernel in kernels]


def as_matrix(kernel: Tensor) -> Tensor:
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)


def torch_muon(kernels: list[nn.Parameter]) -> tuple[list[nn.Parameter], torch.optim.Muon]:
    """PyTorch's optimizer, of the matrices of these kernels."""
    matrices = [nn.Parameter(as_matrix(kernel.detach()).clone()) for kernel in kernels]
    return matrices, torch.optim.Muon(matrices, RATE, DECAY, adjust_lr_fn="match_rms_adamw")


def take(parameters: list[nn.Parameter], gradients: list[Tensor], optimizer: torch.optim.Optimizer) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-3), (torch.float32, 0.06)])
def test_steps_are_those_of_pytorch(upsample: str, dtype: torch.dtype, tolerance: float) -> None:
    kernels = kernels_of(upsample)
    start = [as_matrix(kernel).clone() for kernel in kernels]
    (matrices, theirs), ours = torch_muon(kernels), Muon(kernels, RATE, DECAY, dtype)
    for step in range(3):
        gradients = gradients_of(kernels, step)
        take(kernels, gradients, ours)
        take(matrices, [as_matrix(gradient) for gradient in gradients], theirs)
    for kernel, matrix, before in zip(kernels, matrices, start, strict=True):
        assert torch.linalg.norm(as_matrix(kernel) - matrix) < tolerance * torch.linalg.norm(matrix - before)


def test_a_checkpoint_of_pytorch_s_goes_on() -> None:
    kernels = kernels_of()
    matrices, theirs = torch_muon(kernels)
    take(matrices, [as_matrix(gradient) for gradient in gradients_of(kernels, 0)], theirs)
    for kernel, matrix in zip(kernels, matrices, strict=True):
        outputs, inputs, height, width = kernel.shape
        kernel.data.copy_(matrix.detach().view(outputs, height, width, inputs).permute(0, 3, 1, 2))
    ours = Muon(kernels, 1.0, 0.0, torch.bfloat16)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    start = [matrix.detach().clone() for matrix in matrices]
    take(kernels, gradients_of(kernels, 1), ours)
    take(matrices, [as_matrix(gradient) for gradient in gradients_of(kernels, 1)], theirs)
    for kernel, matrix, before in zip(kernels, matrices, start, strict=True):
        assert torch.linalg.norm(as_matrix(kernel) - matrix) < 3e-3 * torch.linalg.norm(matrix - before)
        assert torch.equal(ours.state[kernel]["momentum_buffer"], theirs.state[matrix]["momentum_buffer"])


@pytest.mark.parametrize("smallest", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize("shape", [(48, 48), (32, 288), (288, 32)])
def test_float32_iterates_as_float64_does_term_by_term(shape: tuple[int, int], smallest: float) -> None:
    """Of matrices with singular values from 1 to `smallest`, as momenta have them."""
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(2, *shape, dtype=torch.float64), full_matrices=False)
    matrices = u * torch.linspace(1, smallest, min(shape), dtype=torch.float64) ** 4 @ v
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert torch.linalg.norm(orthogonalise(matrices.float()) - x) < 2e-3 * torch.linalg.norm(x)


def test_no_step_reads_a_value() -> None:
    """Tensors without values have none to be read: a GPU need not be waited for."""
    kernels = [nn.Parameter(kernel.detach().to("meta")) for kernel in kernels_of()]
    take(kernels, [torch.empty_like(kernel) for kernel in kernels], Muon(kernels, RATE, DECAY, torch.bfloat16))


@pytest.mark.parametrize(("weights", "rate"), [("a.pth", RATE * PRETRAINED_RATE), (None, RATE)])
def test_a_pretrained_encoder_learns_by_adamw_at_a_tenth_of_the_rate(weights: str | None, rate: float) -> None:
    torch.manual_seed(0)
    network = UNet(classes=2, **architecture(ModelSettings(encoder="resnet18", width=8)))
    before = copy.deepcopy(network.state_dict())
    settings = FitSettings(encoder_weights=weights, optimizer="muon" if weights else "adamw", weight_decay=0.0)
    optimizer = Optimizer(network, settings, 1.0)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(RATE)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 or name.startswith("down.encoder."):  # the first step of AdamW is the learning rate
            expected = torch.full_like(parameter, rate if name.startswith("down.encoder.") else RATE)
            assert torch.allclose(before[name] - parameter, expected, rtol=1e-3), name
        else:
            assert not torch.equal(before[name], parameter), name
