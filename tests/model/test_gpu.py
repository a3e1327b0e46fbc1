"""The predictor on a GPU: the masks of a CPU, whatever is predicted together, and halves where memory is too small."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.model.test_predictor import Kind, random_model, textured
from unet.model.predictor import Prediction, Predictor
from unet.model.transfer import Upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

ALIKE = 0.9999
"""Share of pixels that are equal at least."""


@pytest.fixture
def whole_memory() -> Iterator[None]:
    """Gives the memory back that a test has not allowed itself."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", ["native", "resize"])
def test_masks_are_those_of_the_cpu(kind: Kind) -> None:
    model = random_model(kind, width=16, depth=4)
    images = [textured(seed, 300, 400) for seed in range(6)]
    there = Predictor(model, device="cuda", precision="fp32").predict_many(images)
    here = Predictor(model, precision="fp32").predict_many(images)
    assert share_equal(there, here) >= ALIKE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_where_fp32_is_certain(precision: str) -> None:
    model, image = random_model(), textured(0, 300, 400)
    certain = Predictor(model, precision="fp32").predict_batch([image], confidence=True)[0]
    assert certain.confidence is not None
    mask = Predictor(model, device="cuda", precision=precision).predict(image)  # type: ignore[arg-type]
    assert (mask == certain.mask)[certain.confidence > 150].mean() > 0.99


def test_promise_22_halving_a_batch_that_does_not_fit_changes_no_mask(whole_memory: None) -> None:
    predictor = Predictor(random_model(width=32, depth=4), device="cuda", precision="fp32", tile=2048)
    images = [textured(seed, 1024, 1024) for seed in range(8)]
    peaks = []
    for count in (1, 8):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        whole = predictor.predict_many(images[:count], batch_size=count)
        peaks.append(torch.cuda.max_memory_allocated())
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / total)
    before = torch.cuda.memory_stats()["num_ooms"]
    halved = predictor.predict_many(images, batch_size=8)
    assert torch.cuda.memory_stats()["num_ooms"] > before
    assert share_equal(whole, halved) >= ALIKE


def test_what_is_uploaded_while_the_gpu_computes_is_what_was_sent() -> None:
    sent = [torch.full((1 << 20,), value) for value in range(20)]
    upload = Upload(torch.device("cuda"))
    for tensor in sent:
        busy = torch.randn(2048, 2048, device="cuda") @ torch.randn(2048, 2048, device="cuda")
        arrived = upload(tensor)
        assert torch.equal(arrived.cpu(), tensor)
        del arrived, busy  # their memory may be used again


def test_threads_share_a_predictor() -> None:
    predictor = Predictor(random_model(width=16, depth=4), device="cuda", precision="fp32")
    images = [textured(seed, 300, 400) for seed in range(24)]
    with ThreadPoolExecutor(4) as pool:
        shared = list(pool.map(lambda image: predictor.predict_batch([image])[0], images * 4))
    assert share_equal(shared, [predictor.predict_batch([image])[0] for image in images] * 4) >= ALIKE


def share_equal(some: Sequence[Prediction | MemoryError], others: Sequence[Prediction | MemoryError]) -> float:
    """The share of pixels that are equal in the masks of both, which are all there."""
    equal = []
    for one, other in zip(some, others, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        equal.append(np.mean(one.mask == other.mask))
    return float(np.mean(equal))
