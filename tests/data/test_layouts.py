"""Published sets in miniature, laid out as they come: found, checked, decoded, and trained on for a step."""

import io
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from unet.command_line import run
from unet.data.channels import RGB
from unet.data.check import check_labelled_set
from unet.data.image import encode_image
from unet.data.labelled_set import LabelledSet, find_labelled_set, read_pair
from unet.data.labels import IGNORE, LabelSet, read_labels
from unet.data.mask import decode_mask
from unet.data.planes import decode_image
from unet.data.settings import DataSettings, SetSettings
from unet.data.statistics import choose_channels, statistics_table
from unet.evaluate.job import evaluate
from unet.evaluate.scorer import Scorer
from unet.evaluate.settings import EvaluateSettings
from unet.model.artifact import Model
from unet.model.predictor import Predictor
from unet.segment.job import segment
from unet.segment.settings import SegmentSettings
from unet.settings import RequestError
from unet.storage import store
from unet.storage.objects import join_uri
from unet.train.job import train
from unet.train.settings import TrainSettings

Values = npt.NDArray[np.uint8]

SIZE = (24, 32)

VALUES = {
    "cityscapes": (7, 8, 26, 33, 0, 3, 4, 29, 255),
    "camvid32": tuple(range(32)),
    "voc": (0, 1, 15, 20, 255),
    "binary": (0, 255),
}
"""What the masks of each miniature hold: classes at both ends, and what is ignored."""


def write_image(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    put(file, encode_image(pixels, "JPEG" if file.suffix == ".jpg" else "PNG"))


def put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def values_of(name: str, seed: int) -> Values:
    values = np.random.default_rng(seed).choice(VALUES[name], SIZE).astype(np.uint8)
    values.flat[: len(VALUES[name])] = VALUES[name]  # every one is in every mask
    return values


def in_palette(values: Values, labels: LabelSet) -> bytes:
    """Values as a palette PNG, in the colours of `labels`."""
    palette = np.zeros((256, 3), np.uint8)
    palette[[label.value for label in labels.labels]] = [label.color for label in labels.labels]
    picture = Image.fromarray(values)
    picture.putpalette(palette.tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def in_colors(values: Values, labels: LabelSet) -> bytes:
    """Values as an RGB PNG, in the colours of `labels`."""
    table = np.zeros((256, 3), np.uint8)
    table[[label.value for label in labels.labels]] = [label.color for label in labels.labels]
    return encode_image(table[values])


def write_cityscapes(folder: Path) -> None:
    for seed in range(9):
        part = "val" if seed % 3 == 0 else "train"
        city = ("aachen", "ulm")[seed % 2]
        name = f"{city}_{seed:06}_000019"
        write_image(folder / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", seed)
        masks = folder / f"gtFine/{part}/{city}"
        put(masks / f"{name}_gtFine_labelIds.png", encode_image(values_of("cityscapes", seed)))
        for other in ("color", "instanceIds", "labelTrainIds"):
            put(masks / f"{name}_gtFine_{other}.png", encode_image(np.full(SIZE, 77, np.uint8)))
        put(masks / f"{name}_gtFine_polygons.json", b"{}")
    write_image(folder / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png", 99)


def write_camvid32(folder: Path) -> None:
    for seed in range(9):
        write_image(folder / f"701_StillsRaw_full/0001TP_{seed:06}.png", seed)
        mask = in_colors(values_of("camvid32", seed), read_labels("camvid32"))
        put(folder / f"LabeledApproved_full/0001TP_{seed:06}_L.png", mask)


def write_voc(folder: Path) -> None:
    names = [f"2007_{seed:06}" for seed in range(12)]
    for seed, name in enumerate(names):
        write_image(folder / f"JPEGImages/{name}.jpg", seed)
        if seed < 9:
            put(folder / f"SegmentationClass/{name}.png", in_palette(values_of("voc", seed), read_labels("voc")))
    for part, listed in (("train", names[:5]), ("val", names[5:9])):
        put(folder / f"ImageSets/Segmentation/{part}.txt", "".join(f"{name}\n" for name in listed).encode())


def write_binary(folder: Path) -> None:
    for seed in range(9):
        write_image(folder / f"images/{seed}.png", seed)
        values = values_of("binary", seed)
        put(folder / f"masks/{seed}.png", encode_image(values if seed % 2 else values // 255))


WRITERS = {"cityscapes": write_cityscapes, "camvid32": write_camvid32, "voc": write_voc, "binary": write_binary}


def settings_of(name: str, folder: Path, **options: Any) -> DataSettings:
    meant: dict[str, Any] = {"binary": True} if name == "binary" else {"classes": name}
    return DataSettings(**{"data": str(folder), **meant, **options})


def found(name: str, folder: Path) -> LabelledSet:
    WRITERS[name](folder)
    return find_labelled_set(settings_of(name, folder, val_fraction=0.4))


@pytest.mark.parametrize(
    ("name", "images", "counts"),
    [
        ("cityscapes", "leftImg8bit/{part}", (6, 3)),
        ("camvid32", "701_StillsRaw_full", None),
        ("voc", "JPEGImages", (5, 4)),
        ("binary", "images", None),
    ],
)
def test_a_set_is_found_as_it_comes(tmp_path: Path, name: str, images: str, counts: tuple[int, int] | None) -> None:
    labelled = found(name, tmp_path)
    assert len(labelled.train) + len(labelled.val) == 9
    assert counts in (None, (len(labelled.train), len(labelled.val)))
    for part, pairs in (("train", labelled.train), ("val", labelled.val)):
        assert [pair.key for pair in pairs] == sorted(pair.key for pair in pairs)
        for pair in pairs:
            folder = join_uri(str(tmp_path), images.format(part=part))
            assert pair.image == f"{folder}/{pair.key}{PurePosixPath(pair.image).suffix}"


@pytest.mark.parametrize("name", WRITERS)
def test_the_values_of_a_set_become_its_classes(tmp_path: Path, name: str) -> None:
    labelled, labels = found(name, tmp_path), read_labels(name)
    statistics = check_labelled_set(labelled, labels, 5000, print)
    assert sum(part.sizes[SIZE] for part in statistics) == 9
    statistics_table(labelled, labels, statistics)
    present = {labels.value_to_class[value] for value in VALUES[name]}
    for pair in labelled.train:
        assert set(np.unique(read_pair(pair, labels)[1])) == present
    ignored = [labels.value_to_class[value] == IGNORE for value in VALUES[name]]
    assert statistics[0].ignored >= sum(ignored) * len(labelled.train)


def test_the_lists_of_voc_may_be_absent_and_then_all_masks_are_split(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for part in ("train", "val"):
        (tmp_path / f"ImageSets/Segmentation/{part}.txt").unlink()
    labelled = find_labelled_set(settings_of("voc", tmp_path, val_fraction=0.4))
    assert len(labelled.train) + len(labelled.val) == 9
    assert labelled.val


def test_a_set_in_a_bucket_is_found_as_in_a_folder(tmp_path: Path, bucket: str) -> None:
    here = found("voc", tmp_path)
    for file in tmp_path.rglob("*.*"):
        store.write(f"{bucket}/voc/{file.relative_to(tmp_path)}", file.read_bytes())
    there = find_labelled_set(settings_of("voc", Path("voc"), data=f"{bucket}/voc"))
    assert [pair.key for pair in there.train + there.val] == [pair.key for pair in here.train + here.val]
    read_pair(there.val[0], read_labels("voc"))


def test_voc_with_a_val_list_alone_trains_on_the_other_masks(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").unlink()
    labelled = find_labelled_set(settings_of("voc", tmp_path))
    assert (len(labelled.train), len(labelled.val)) == (5, 4)


def write_satellite(folder: Path) -> None:
    """Binary masks of 16-bit grayscale tiles: 500 to 3000 but for a few broken pixels, brighter in the foreground."""
    for seed in range(9):
        values = values_of("binary", seed)
        samples = np.random.default_rng(seed).integers(500, 2000, SIZE).astype(np.uint16)
        samples[values > 0] += 1000
        samples[0, 0] = 65535
        file = io.BytesIO()
        Image.fromarray(samples).save(file, "PNG")
        put(folder / f"images/{seed}.png", file.getvalue())
        put(folder / f"masks/{seed}.png", encode_image(values))


def test_the_window_of_a_16_bit_set_is_what_its_images_hold_but_for_their_tails(tmp_path: Path) -> None:
    write_satellite(tmp_path)
    labelled, labels = find_labelled_set(settings_of("binary", tmp_path)), read_labels("binary")
    statistics = check_labelled_set(labelled, labels, 5000, print)
    channels = choose_channels(RGB, (), statistics)
    assert channels.bands is None
    (window,) = channels.windows
    assert 500 <= window[0] < 540
    assert 2940 < window[1] <= 3000
    assert f"{window[0]} to {window[1]}" in statistics_table(labelled, labels, statistics, channels)
    dark, _ = read_pair(labelled.train[0], labels)
    seen, mask = read_pair(labelled.train[0], labels, channels=channels)
    assert dark.to_array()[1:].max() == 3000 >> 8
    assert seen.to_array()[mask == 0].mean() < 110 < 145 < seen.to_array()[mask == 1].mean()


def test_a_set_of_eight_bits_has_no_window(tmp_path: Path) -> None:
    labelled, labels = found("binary", tmp_path), read_labels("binary")
    statistics = check_labelled_set(labelled, labels, 5000, print)
    assert choose_channels(RGB, (), statistics) == RGB
    assert "window" not in statistics_table(labelled, labels, statistics)


def first(folder: Path, pattern: str) -> Path:
    return min(folder.rglob(pattern))


def lacks(pattern: str) -> Callable[[Path], None]:
    return lambda folder: first(folder, pattern).unlink()


def holds(pattern: str, pixels: npt.NDArray[np.uint8]) -> Callable[[Path], None]:
    return lambda folder: put(first(folder, pattern), encode_image(pixels))


def lists(text: str) -> Callable[[Path], None]:
    return lambda folder: put(folder / "ImageSets/Segmentation/train.txt", text.encode())


OUTSIDE = np.full(SIZE, 99, np.uint8)
UNKNOWN = np.full((*SIZE, 3), (1, 2, 3), np.uint8)

FAULTS = [
    ("cityscapes", holds("*_labelIds.png", OUTSIDE), ["_gtFine_labelIds.png", "the value 99", "mend the mask"]),
    ("cityscapes", lacks("*_labelIds.png"), ["image without a mask", "ending in _gtFine_labelIds", "gtFine/"]),
    ("cityscapes", lacks("leftImg8bit/train/*/*.png"), ["mask without an image", "_labelIds.png", "leftImg8bit/"]),
    ("camvid32", holds("*_L.png", UNKNOWN), ["_L.png", "the colour (1, 2, 3)", "mend the mask"]),
    ("camvid32", lacks("*_L.png"), ["image without a mask", "ending in _L", "LabeledApproved_full"]),
    ("voc", holds("SegmentationClass/*.png", OUTSIDE), ["SegmentationClass/2007", "the value 99", "mend the mask"]),
    ("voc", lacks("SegmentationClass/*.png"), ["train.txt", "2007_000000", "SegmentationClass has no file"]),
    ("voc", lacks("JPEGImages/*.jpg"), ["train.txt", "2007_000000", "JPEGImages has no file"]),
    ("voc", lists("2007_000001\n2007_000007\n"), ["both name 2007_000007", "remove it from one"]),
    ("binary", holds("masks/*.png", OUTSIDE), ["masks/0.png", "the value 99", "threshold it", "--classes"]),
    ("binary", holds("masks/*.png", UNKNOWN), ["masks/0.png", "the colour (1, 2, 3)", "threshold it"]),
    ("binary", lacks("masks/*.png"), ["image without a mask", "images/0.png", "same stem"]),
]


def flags_of(name: str, folder: Path, output: Path) -> list[str]:
    meant = ["--binary"] if name == "binary" else ["--classes", name]
    tiny = "--size 16 16 --width 8 --depth 2 --epochs 1 --max-steps 1 --batch-size 2 --val-fraction 0.4"
    return ["--data", str(folder), *meant, "--output", str(output), "--name", "run", *tiny.split()]


@pytest.mark.parametrize(("name", "spoil", "words"), FAULTS, ids=[f"{name}-{words[1]}" for name, _, words in FAULTS])
def test_what_is_wrong_with_a_set_is_one_line_and_exit_2(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], None],
    words: list[str],
) -> None:
    WRITERS[name](tmp_path / "set")
    spoil(tmp_path / "set")
    assert run(train, TrainSettings, flags_of(name, tmp_path / "set", tmp_path / "out")) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_binary_and_classes_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="--binary and --classes"):
        DataSettings(data="x", classes="camvid", binary=True)
    with pytest.raises(RequestError, match="--binary: the generated sample set"):
        DataSettings(binary=True)


@pytest.mark.parametrize(
    ("window", "words"),
    [("9 9", "--window 9 9: LOW must be below HIGH"), ("0 4095", "--window: is for images of more")],
)
def test_a_window_that_cannot_be_right_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], window: str, words: str
) -> None:
    write_binary(tmp_path / "set")
    flags = [*flags_of("binary", tmp_path / "set", tmp_path / "out"), "--window", *window.split()]
    assert run(train, TrainSettings, flags) == 2
    assert words in capfd.readouterr().err


@pytest.mark.usefixtures("one_ray")
@pytest.mark.slow
@pytest.mark.parametrize("given", [None, (0, 4095)])
def test_a_16_bit_set_is_trained_and_segmented_through_the_window_of_the_model(
    tmp_path: Path, given: tuple[int, int] | None
) -> None:
    write_satellite(tmp_path / "set")
    flags = flags_of("binary", tmp_path / "set", tmp_path / "out")
    assert run(train, TrainSettings, flags if given is None else [*flags, "--window", *map(str, given)]) == 0
    model = Model.load(str(tmp_path / "out/run/model"))
    assert model.channels.window is not None
    assert given in (None, model.channels.window)
    if given is not None:
        return
    settings = SegmentSettings(
        input=str(tmp_path / "set/images"), output=str(tmp_path / "masks"), model=str(tmp_path / "out/run/model")
    )
    assert segment(settings) == 0
    predictor = Predictor(model)
    for file in (tmp_path / "set/images").iterdir():
        expected = predictor.predict(decode_image(file.read_bytes(), model.channels))
        written = decode_mask((tmp_path / f"masks/{file.name}.png").read_bytes(), model.labels)
        assert (written == expected).all()
    labelled = find_labelled_set(settings_of("binary", tmp_path / "set"))
    scorer = Scorer(model.labels, predictor, {}, channels=model.channels)
    for pair, image in zip(labelled.train, scorer(labelled.train).images, strict=True):
        seen, truth = read_pair(pair, model.labels, channels=model.channels)
        assert image.pixel_accuracy == pytest.approx((predictor.predict(seen.to_array()) == truth).mean())


@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", WRITERS)
def test_a_set_is_trained_on_and_scored_as_it_comes(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / "set")
    assert run(train, TrainSettings, flags_of(name, tmp_path / "set", tmp_path / "out")) == 0
    model = Model.load(str(tmp_path / "out/run/model"))
    assert model.labels == read_labels(name)
    assert model.network.config["classes"] == len(model.labels.names)
    scores = str(tmp_path / "scores")
    data = SetSettings(data=str(tmp_path / "set"))
    evaluation = EvaluateSettings(data=data, model=str(tmp_path / "out/run/model"), output=scores)
    assert evaluate(evaluation) == 0
    scored = json.loads((tmp_path / "scores/scores.json").read_text())
    assert scored["images"] == len(find_labelled_set(settings_of(name, tmp_path / "set")).val)
    assert scored["classes"].keys() == set(model.labels.names)
