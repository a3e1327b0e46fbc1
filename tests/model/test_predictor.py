"""Applying a model: masks depend on the image and the fingerprint alone, in bounded memory."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from unet.data.channels import Channels
from unet.data.image import Array, preprocess_image
from unet.data.labels import read_labels
from unet.model.artifact import Model
from unet.model.network import UNet, normalise
from unet.model.predictor import Prediction, Predictor
from unet.model.settings import Norm, Upsample
from unet.sample.scene import draw_scene
from unet.sample.things import LABELS
from unet.settings import Geometry, Precision, RequestError
from unet.train.learner import Learner
from unet.train.settings import FitSettings

Kind = Literal["native", "resize"]
CAMVID = read_labels("camvid")


def textured(seed: int, height: int, width: int) -> Array:
    """Blocks of random colours under noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    image: Array = (blocks + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)
    return image


def in_channels(seed: int, height: int, width: int, channels: int) -> Array:
    image = np.concatenate([textured(seed + place, height, width) for place in range(-(-channels // 3))], axis=2)
    return np.ascontiguousarray(image[..., :channels])


def random_model(
    kind: Kind = "native",
    *,
    width: int = 8,
    depth: int = 3,
    norm: Norm = "batch",
    upsample: Upsample = "transpose",
    channels: int = 3,
) -> Model:
    """Random weights, but norms that have seen images, and several classes in every mask."""
    torch.manual_seed(0)
    network = UNet(
        classes=11, channels=channels, width=width, depth=depth, norm=norm, dropout=0.1, upsample=upsample
    ).train()
    for seed in range(8):
        with torch.no_grad():
            network(normalise(torch.from_numpy(in_channels(seed, 64, 64, channels)).unsqueeze(0)))
    return Model(network.eval(), CAMVID, Geometry(kind, (64, 96)), digest="d")


def plain_logits(model: Model, image: Array) -> Tensor:
    """HWC float32 logits of the network itself."""
    with torch.inference_mode():
        logits: Tensor = model.network(normalise(torch.tensor(image).unsqueeze(0)))[0].permute(1, 2, 0)
    return logits


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_the_prepared_network_says_what_the_network_says(norm: Norm, upsample: Upsample) -> None:
    model, image = random_model(norm=norm, upsample=upsample), textured(0, 61, 83)
    expected = plain_logits(model, image)
    prediction = Predictor(model, precision="fp32").predict_batch([image], confidence=True)[0]
    assert (prediction.mask == expected.argmax(-1).numpy()).mean() > 0.999
    assert prediction.confidence is not None
    certain = expected.softmax(-1).amax(-1).numpy() * 255
    assert np.abs(prediction.confidence - certain).max() < 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_agrees_with_fp32_where_fp32_is_certain(precision: Precision) -> None:
    model, image = random_model(), textured(0, 64, 96)
    fp32 = Predictor(model, precision="fp32").predict_batch([image], confidence=True)[0]
    assert fp32.confidence is not None
    assert len(np.unique(fp32.mask)) > 3
    certain = fp32.confidence > 150
    assert (Predictor(model, precision=precision).predict(image) == fp32.mask)[certain].mean() > 0.99


def test_a_predictor_leaves_the_model_alone() -> None:
    model = random_model()
    before = copy.deepcopy(model.network.state_dict())
    Predictor(model)
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["native", "resize"])
@pytest.mark.parametrize(
    ("width", "norm", "upsample"), [(8, "batch", "transpose"), (32, "none", "transpose"), (8, "group", "bilinear")]
)
def test_masks_do_not_depend_on_the_batch_or_the_threads(
    precision: Precision, kind: Kind, width: int, norm: Norm, upsample: Upsample, threads: None
) -> None:
    predictor = Predictor(random_model(kind, width=width, norm=norm, upsample=upsample), precision=precision)
    images = [textured(seed, 90 + seed % 3, 113) for seed in range(8)]
    torch.set_num_threads(2)
    together = [prediction.mask for prediction in predictor.predict_batch(images)]
    for count in (1, 3, 4):
        torch.set_num_threads(count)
        alone = [predictor.predict(image) for image in reversed(images)]
        assert all((a == b).all() for a, b in zip(together, reversed(alone), strict=True))
    assert min(len(np.unique(mask)) for mask in together) > 1


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13, 32])
def test_masks_of_any_number_of_channels_do_not_depend_on_the_batch_or_the_threads(
    precision: Precision, channels: int, threads: None
) -> None:
    predictor = Predictor(random_model("native", channels=channels), precision=precision)
    images = [in_channels(seed, 90, 113, channels) for seed in range(4)]
    torch.set_num_threads(2)
    together = [prediction.mask for prediction in predictor.predict_batch(images)]
    for count in (1, 3):
        torch.set_num_threads(count)
        assert all((predictor.predict(image) == mask).all() for image, mask in zip(images, together, strict=True))
    assert min(len(np.unique(mask)) for mask in together) > 1


def test_images_of_one_shape_share_a_batch_and_keep_their_own_sizes() -> None:
    predictor = Predictor(random_model())
    images = [textured(0, 57, 64), textured(1, 64, 61), textured(2, 63, 58)]
    assert {predictor.input_size((image.shape[0], image.shape[1])) for image in images} == {(64, 64)}
    assert [x.mask.shape for x in predictor.predict_batch(images)] == [(57, 64), (64, 61), (63, 58)]
    assert predictor.predict_batch([]) == []


class SmallMemory(Predictor):
    """A device with room for two images, none of them taller than 100 pixels."""

    batches: list[int]

    def predict_batch(self, images: Sequence[Array], *, confidence: bool = False) -> list[Prediction]:
        if len(images) > 2 or max(image.shape[0] for image in images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(images))
        return super().predict_batch(images, confidence=confidence)


def test_many_images_share_batches_by_shape_and_keep_their_order() -> None:
    model = random_model()
    predictor = SmallMemory(model, tile=64)
    predictor.batches = []
    sizes = [(40, 56), (60, 60), (38, 50), (90, 113), (40, 49), (60, 64), (90, 113), (101, 16), (33, 51)]
    images = [textured(seed, *size) for seed, size in enumerate(sizes)]
    results = predictor.predict_many(images, 4, confidence=True)
    assert predictor.batches == [2, 2, 2, 1, 1]  # four of 40 x 56 in two halves, two of 64 x 64, and those with tiles
    assert isinstance(results[7], MemoryError)
    for image, result in zip(images, results, strict=True):
        if isinstance(result, Prediction):
            assert result.confidence is not None
            assert (result.mask == Predictor(model, tile=64).predict(image)).all()
    assert predictor.predict_many([]) == []


def test_a_resize_model_gives_every_image_one_shape_and_never_tiles() -> None:
    predictor = Predictor(random_model("resize"), tile=64)
    assert predictor.input_size((9000, 12000)) == predictor.input_size((3, 5)) == (64, 96)
    assert not predictor.needs_tiles((9000, 12000))


def test_logits_not_masks_are_resized_back() -> None:
    model, image = random_model("resize"), textured(0, 200, 290)
    small = plain_logits(model, preprocess_image(image, model.geometry)).permute(2, 0, 1)[None]
    expected = F.interpolate(small, size=(200, 290), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    assert (Predictor(model, precision="fp32").predict(image) == expected).mean() > 0.999


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (5, 5), (20, 1000), (70, 100)])
@pytest.mark.parametrize("kind", ["native", "resize"])
def test_every_size_has_a_mask_of_its_size(size: tuple[int, int], kind: Kind) -> None:
    prediction = Predictor(random_model(kind), tile=64).predict_batch([textured(0, *size)], confidence=True)[0]
    assert prediction.confidence is not None
    assert prediction.mask.shape == prediction.confidence.shape == size
    assert prediction.mask.dtype == prediction.confidence.dtype == np.uint8


def test_images_larger_than_a_tile_are_tiled_by_their_padded_size() -> None:
    predictor = Predictor(random_model(), tile=64)
    assert not predictor.needs_tiles((64, 64))
    assert predictor.needs_tiles((64, 65))
    assert predictor.needs_tiles((1, 1000))
    assert predictor.input_size((1, 1000)) == (8, 64)


def test_a_tile_must_hold_two_of_the_networks_multiples() -> None:
    with pytest.raises(RequestError, match="--tile 12 must be at least 16"):
        Predictor(random_model(), tile=12)


def test_averaging_with_the_mirror_image_commutes_with_mirroring() -> None:
    image = textured(0, 64, 96)
    predictor = Predictor(random_model(), precision="fp32", tta=True)
    mirrored = predictor.predict(np.ascontiguousarray(image[:, ::-1]))
    assert (mirrored[:, ::-1] == predictor.predict(image)).mean() > 0.999
    assert (Predictor(predictor.model, precision="fp32").predict(image) != predictor.predict(image)).any()


def test_the_fingerprint_names_what_changes_pixels_and_nothing_else() -> None:
    model = random_model()
    base = Predictor(model).fingerprint
    assert json.loads(json.dumps(base)) == base
    assert base["model"] == "d"
    for other in (Predictor(model, tta=True), Predictor(model, precision="fp32"), Predictor(model, tile=512)):
        assert other.fingerprint != base
    assert Predictor(model, precision="bf16").fingerprint == base  # masks made on any hardware by default stay valid
    assert len({str(Predictor(model, precision=other).fingerprint) for other in get_args(Precision)}) == 3
    assert "window" not in base
    assert Predictor(replace(model, channels=Channels(windows=((0, 4095),)))).fingerprint != base
    resize = random_model("resize")
    assert Predictor(resize, tile=512).fingerprint == Predictor(resize).fingerprint != base


SCENES = range(100, 108)


@pytest.fixture(scope="module")
def trained() -> Model:
    """A native model, trained for a few seconds on the scenes that it is applied to: it is sure of most pixels."""
    torch.manual_seed(0)
    network = UNet(classes=len(LABELS.classes), width=8, depth=4, norm="batch", dropout=0.0)
    learner = Learner(network, FitSettings(ema=0.9, lr=0.012), total_steps=200)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(seed) for seed in SCENES]
    for _ in range(200):
        crops = []
        for which in rng.integers(0, len(scenes), 4):
            image, mask = scenes[which]
            top, left = (int(rng.integers(0, length - 128)) for length in mask.shape)
            crops.append((image[top : top + 128, left : left + 128], mask[top : top + 128, left : left + 128]))
        images, masks = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        learner.train_step(images, masks)
    return Model(learner.average.eval(), LABELS, Geometry("native", (128, 128)))


@pytest.mark.parametrize("tile", [512, 1024])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_tiles_agree_with_the_whole_image(trained: Model, tile: int, precision: Precision) -> None:
    scenes = np.stack([draw_scene(seed)[0] for seed in SCENES])
    image = np.concatenate(np.concatenate(scenes[np.arange(48).reshape(8, 6) % 8], axis=1), axis=1)[:1500, :1500]
    assert image.shape == (1500, 1500, 3)
    whole, tiles = (
        Predictor(trained, precision=precision, tile=4096),
        Predictor(trained, precision=precision, tile=tile),
    )
    assert tiles.needs_tiles((1500, 1500))
    assert not whole.needs_tiles((1500, 1500))
    expected = whole.predict(image)
    assert len(np.unique(expected)) > 4
    assert (tiles.predict(image) == expected).mean() > 0.999


ONE_LARGE_IMAGE = """
import sys, torch
from unet.model import inference
from unet.model.artifact import Model
from unet.data.planes import decode_image
from unet.data.image import encode_mask
from unet.data.labels import read_labels
from unet.model.network import UNet
from unet.model.predictor import Prediction, Predictor
from unet.settings import Geometry

kind, path = sys.argv[1:]
labels = read_labels("camvid")
network = UNet(classes=11, width=8, depth=4, norm="batch", dropout=0.0)
predictor = Predictor(Model(network, labels, Geometry(kind, (360, 480))))
png = encode_mask(predictor.predict(decode_image(open(path, "rb").read())), labels)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(png), peak)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "resize"])
def test_a_hundred_megapixels_take_less_than_three_gigabytes(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    Image.fromarray(textured(0, 900, 1200)).resize((12_000, 9_000)).save(path)
    done = subprocess.run(
        [sys.executable, "-c", ONE_LARGE_IMAGE, kind, str(path)], capture_output=True, text=True, check=True
    )
    _, kilobytes = map(int, done.stdout.split())
    print(f"{kilobytes / 1e6:.2f} GB at most")
    assert kilobytes < 3_000_000
