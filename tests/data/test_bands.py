"""Images of any bands: read to the sample, scaled by a window for each, and what holds no data is ignored."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from tests.data.test_layouts import put
from tests.data.test_tiff import SIZE, grid, tiff
from unet.data.augment import draw_view
from unet.data.channels import RGB, WITHOUT_DATA, Channels, kind_of
from unet.data.check import check_labelled_set
from unet.data.geotiff import encode_geotiff
from unet.data.image import ImageError, encode_image, open_image, resize_image
from unet.data.labelled_set import LabelledSet, choose_bands, find_labelled_set, read_pair
from unet.data.labels import IGNORE, read_labels
from unet.data.mask import decode_mask
from unet.data.planes import Planes, read_array, read_planes, read_samples
from unet.data.settings import AugmentSettings, DataSettings
from unet.data.statistics import choose_channels, statistics_table
from unet.data.tiff import TiffPicture
from unet.settings import Geometry, RequestError

BINARY = read_labels("binary")
RAW = {"photometric": "minisblack", "planarconfig": "contig"}


def all_bands(count: int) -> Channels:
    return Channels(tuple(range(1, count + 1)), ((0, 255),) * count)


def test_every_tiff_is_read_by_its_bands_right_to_the_sample() -> None:
    read = refused = 0
    for name, data, _ in grid():
        kind, bands, photometric = name.split()[0], int(name.split()[2]), name.split()[3]
        samples = tifffile.imread(io.BytesIO(data)).reshape(bands, *SIZE) if "separate" in name else None
        picture = open_picture(data)
        if picture is None:
            assert photometric == "miniswhite", name
            assert not kind.startswith("uint"), name
            refused += 1
            continue
        expected = np.moveaxis(samples, 0, -1) if samples is not None else tifffile.imread(io.BytesIO(data))
        expected = expected.reshape(*SIZE, bands)
        if photometric == "miniswhite":
            expected = (np.iinfo(kind).max - expected).astype(kind)
        assert np.array_equal(read_samples(picture, all_bands(bands)), expected), name
        chosen = Channels((bands, 1), ((0, 255),) * 2)
        region = read_samples(picture, chosen, (3, 4, 33, 20))
        assert np.array_equal(region, expected[4:20, 3:33, [bands - 1, 0]]), name
        read += 1
    assert (read, refused) == (3420, 1260)


def open_picture(data: bytes) -> Image.Image | None:
    """Return a TIFF, opened; None for what is neither an image nor bands, which is said."""
    try:
        return open_image(data)
    except ImageError as error:
        return None if "which is not read" in str(error) else pytest.fail(str(error))


@pytest.mark.parametrize("compression", ["lerc", "zstd", "lzma", "packbits", "jpegxl", "jpeg2000", "png", "webp"])
def test_whatever_compresses_them_bands_are_read(compression: str) -> None:
    bands = 4 if compression in ("lerc", "zstd", "lzma", "packbits") else 3
    samples = np.random.default_rng(0).integers(0, 200, (*SIZE, bands)).astype(np.uint8)
    options: dict[str, Any] = {"photometric": "rgb"} if bands == 3 else RAW
    levels = {"jpegxl": {"level": 101}, "jpeg2000": {"level": 0}, "webp": {"lossless": True, "level": -1}}
    data = tiff(samples, **options, compression=compression, compressionargs=levels.get(compression))
    assert np.array_equal(read_samples(open_image(data), all_bands(bands)), samples)
    if bands == 3:
        assert np.array_equal(read_array(open_image(data))[0], samples)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_samples_of_an_odd_number_of_bits_in_a_big_endian_bigtiff_are_read(
    tmp_path: Path, bits: int, bands: int, interleave: str
) -> None:
    rasterio = pytest.importorskip("rasterio")
    samples = np.random.default_rng(0).integers(0, 1 << bits, (bands, *SIZE)).astype(np.uint16)
    file = tmp_path / "a.tif"
    size = {"height": SIZE[0], "width": SIZE[1], "count": bands, "dtype": "uint16"}
    made = {"driver": "GTiff", "nbits": bits, "interleave": interleave, "bigtiff": "yes", "endianness": "big"}
    transform = rasterio.Affine(10, 0, 0, 0, -10, 0)
    with rasterio.open(file, "w", **size, **made, transform=transform) as written:
        written.write(samples)
    assert file.read_bytes()[:4] == b"MM\0+"
    picture = open_image(file.read_bytes())
    assert np.array_equal(read_samples(picture, all_bands(bands)), np.moveaxis(samples, 0, -1))


def test_a_tiff_that_says_its_width_twice_is_damaged() -> None:
    data = tiff(np.zeros(SIZE, np.uint8), extratags=[(65000, "I", 1, 9, True)])
    once, twice = (struct.pack("<HH", code, 4) for code in (65000, 256))
    assert data.count(once) == 1
    with pytest.raises(ImageError, match="is a damaged TIFF: the tag 256 is there twice"):
        open_image(data.replace(once, twice))


def test_bands_are_chosen_ordered_and_scaled_each_by_its_window() -> None:
    samples = np.random.default_rng(0).integers(0, 3000, (*SIZE, 4)).astype(np.uint16)
    channels = Channels((4, 1), ((0, 3000), (1000, 2000)), ("whole numbers",))
    image, holes = read_array(open_image(tiff(samples, **RAW)), channels)
    assert image.shape == (*SIZE, 2)
    assert holes is None
    assert np.abs(image[..., 0] - samples[..., 3] * (255 / 3000)).max() <= 0.5
    assert np.abs(image[..., 1] - (samples[..., 0].clip(1000, 2000) - 1000.0) * (255 / 1000)).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_as_they_are_displayed(orientation: int) -> None:
    samples = np.random.default_rng(0).integers(0, 255, (*SIZE, 5)).astype(np.uint8)
    options = RAW | {"extratags": [(274, "H", 1, orientation, True)]}
    image, _ = read_array(open_image(tiff(samples, **options)), all_bands(5))
    gray, _ = read_array(open_image(tiff(samples[..., 2], extratags=options["extratags"])))
    assert np.array_equal(image[..., 2], gray[..., 0])
    region = (2, 3, 15, 11)
    part = read_planes(open_image(tiff(samples, **options)), all_bands(5), region).to_array()
    assert np.array_equal(part, image[3:11, 2:15])


def test_pixels_without_data_are_found_by_nodata_in_all_bands_or_nan_in_one() -> None:
    samples = np.random.default_rng(0).normal(0, 1, (*SIZE, 4)).astype(np.float32)
    samples[:5] = -9999
    samples[5, :, 0] = -9999  # in one band only
    samples[6, 3, 2] = np.nan
    samples[7, 4, 1] = np.inf
    for options, nodata in ((RAW, -9999.0), (RAW | {"extratags": [(42113, "s", 0, "-9999", True)]}, None)):
        channels = Channels((1, 2, 3, 4), ((-3, 3),) * 4, ("floating point",), nodata)
        image, holes = read_array(open_image(tiff(samples, **options)), channels)
        assert holes is not None
        expected = np.zeros(SIZE, bool)
        expected[:5] = expected[6, 3] = expected[7, 4] = True
        assert np.array_equal(holes, expected)
        assert (image[holes] == WITHOUT_DATA).all()
        assert (image[5, :, 0] == 0).all()


def test_rgb_with_nodata_keeps_its_pixels_and_says_where_they_are() -> None:
    samples = np.random.default_rng(0).integers(1, 255, (*SIZE, 3)).astype(np.uint8)
    samples[:4] = 0
    for data, channels in (
        (tiff(samples, photometric="rgb", extratags=[(42113, "s", 0, "0", True)]), RGB),
        (encode_image(samples), Channels(nodata=0)),
    ):
        image, holes = read_array(open_image(data), channels)
        assert np.array_equal(image, samples)
        assert holes is not None
        assert holes[:4].all()
        assert not holes[4:].any()


def test_what_the_model_was_not_trained_on_is_refused_by_name() -> None:
    four = Channels((1, 2, 3, 4), ((0, 3000),) * 4, ("whole numbers",))
    rgb = np.zeros((*SIZE, 3), np.uint8)
    with pytest.raises(ImageError, match="has 3 bands, and band 4 is a channel of the model"):
        read_array(open_image(encode_image(rgb)), four)
    with pytest.raises(ImageError, match="has samples of uint8, and the model was trained on whole numbers"):
        read_array(open_image(tiff(np.zeros((*SIZE, 4), np.uint8), **RAW)), four)
    with pytest.raises(ImageError, match=r"is a TIFF of 4 bands of uint16 .MINISBLACK., and the model's input is RGB"):
        read_array(open_image(tiff(np.zeros((*SIZE, 4), np.uint16), **RAW)))
    pages = io.BytesIO()
    tifffile.imwrite(pages, np.zeros((3, *SIZE), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match="is a TIFF of 3 pages, and a mask is of one"):
        open_image(pages.getvalue())


def test_smaller_versions_of_an_image_are_no_pages() -> None:
    file = io.BytesIO()
    samples = np.zeros((64, 64), np.uint8)
    with tifffile.TiffWriter(file) as writer:
        writer.write(samples, tile=(16, 16))
        writer.write(samples[::2, ::2], tile=(16, 16), subfiletype=1)
    assert isinstance(open_image(file.getvalue()), TiffPicture)


def write_set(folder: Path, samples: npt.NDArray[Any], mask: npt.NDArray[np.uint8], **options: Any) -> LabelledSet:
    for number in range(4):
        put(folder / f"images/{number}.tif", tiff(samples, **options))
        put(folder / f"masks/{number}.png", encode_image(mask))
    return find_labelled_set(DataSettings(data=str(folder), binary=True, val_fraction=0.5))


def channels_of(labelled: LabelledSet, given: DataSettings | None = None) -> Channels:
    given = given or DataSettings()
    asked = Channels(choose_bands(labelled, given.bands), nodata=given.nodata)
    statistics = check_labelled_set(labelled, BINARY, 99, print, channels=asked)
    channels = choose_channels(asked, given.windows, statistics)
    print(statistics_table(labelled, BINARY, statistics, channels))
    return channels


MASK = np.zeros(SIZE, np.uint8)
MASK[3:] = 1


@pytest.mark.parametrize(
    ("kind", "bands", "options", "expected"),
    [
        ("uint8", 1, {}, None),
        ("uint16", 1, {}, None),
        ("uint8", 3, {"photometric": "rgb"}, None),
        ("uint8", 4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, None),
        ("uint8", 4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, (1, 2, 3, 4)),
        ("uint16", 3, {"photometric": "rgb"}, (1, 2, 3)),
        ("uint16", 4, RAW, (1, 2, 3, 4)),
        ("uint16", 2, RAW, (1, 2)),
        ("float32", 1, {}, (1,)),
        ("int16", 7, {"photometric": "minisblack", "planarconfig": "separate"}, (1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_without_a_flag_the_first_image_says_which_bands_there_are(
    tmp_path: Path, kind: str, bands: int, options: dict[str, Any], expected: tuple[int, ...] | None
) -> None:
    samples = np.random.default_rng(0).integers(0, 200, (*SIZE, bands)).astype(kind)
    stored = samples[..., 0] if bands == 1 else samples
    if options.get("planarconfig") == "separate":
        stored = np.moveaxis(samples, -1, 0)
    labelled = write_set(tmp_path, stored, MASK, **options)
    lines = list[str]()
    assert choose_bands(labelled, None, lines.append) == expected
    alpha = ["band 4 is marked as alpha and left out; if it is none, give --bands 1 2 3 4"]
    assert lines == (alpha if "unassalpha" in options.get("extrasamples", ()) else [])
    channels = channels_of(labelled)
    image, mask = read_pair(labelled.train[0], BINARY, channels=channels)
    assert image.to_array().shape == (*SIZE, 3 if expected is None else bands)
    assert np.array_equal(mask, MASK)


def test_each_band_is_scaled_by_its_own_percentiles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    samples = np.stack([rng.integers(low, high, SIZE) for low, high in ((0, 100), (5000, 9000))], -1).astype(np.uint16)
    channels = channels_of(write_set(tmp_path, samples, MASK, **RAW))
    assert channels.kinds == ("whole numbers",)
    for (low, high), (least, most) in zip(channels.windows, ((0, 99), (5000, 8999)), strict=True):
        assert least <= low <= least + 0.02 * (most - least)
        assert most >= high >= most - 0.02 * (most - least)
    assert "band 2" in capsys.readouterr().out
    given = DataSettings(data="x", binary=True, bands=(2,), window=(5000, 6000))
    assert channels_of(
        find_labelled_set(DataSettings(data=str(tmp_path), binary=True, val_fraction=0.5)), given
    ).windows == ((5000, 6000),)


def test_fractions_have_windows_of_fractions_and_survive_the_cache(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(0, 0.3, (*SIZE, 2)).astype(np.float32)
    labelled = write_set(tmp_path, samples, MASK, **RAW)
    channels = channels_of(labelled)
    for low, high in channels.windows:
        assert 0 < low < 0.01
        assert 0.29 < high < 0.3
    assert Channels.from_json(channels.to_json()) == channels
    asked, lines, cache = Channels((1, 2)), list[str](), str(tmp_path / "check.json")
    first, again = (check_labelled_set(labelled, BINARY, 99, lines.append, cache, channels=asked) for _ in range(2))
    assert any("last check" in line for line in lines)
    assert choose_channels(asked, (), first) == choose_channels(asked, (), again) == channels


def test_pixels_without_data_are_ignored_in_training_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = np.random.default_rng(0).integers(1, 3000, (*SIZE, 4)).astype(np.uint16)
    samples[:, :17] = 0
    labelled = write_set(tmp_path, samples, MASK, **RAW, extratags=[(42113, "s", 0, "0", True)])
    channels = channels_of(labelled)
    assert "without data               50.0%" in capsys.readouterr().out
    _, mask = read_pair(labelled.train[0], BINARY, channels=channels)
    assert (mask[:, :17] == IGNORE).all()
    assert np.array_equal(mask[:, 17:], MASK[:, 17:])
    assert min(low for low, _ in channels.windows) > 0  # nor do they count for the windows


def test_a_gray_set_may_train_one_channel(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint8)
    labelled = write_set(tmp_path, gray, MASK)
    channels = channels_of(labelled, DataSettings(data="x", binary=True, bands=(1,)))
    image, _ = read_pair(labelled.train[0], BINARY, channels=channels)
    assert np.array_equal(image.to_array()[..., 0], gray)
    assert kind_of(gray) in channels.kinds


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"bands": ()}, "--bands : give up to 32"),
        ({"bands": (0, 1)}, "--bands 0 1: give up to 32 numbers of bands, from 1"),
        ({"window": (1.0,)}, "--window 1: give LOW HIGH"),
        ({"window": (1.0, 2.0, 5.0, 5.0)}, "--window 1 2 5 5: LOW must be below HIGH"),
        ({"window": (1.0, float("inf"))}, "LOW must be below HIGH"),
    ],
)
def test_bands_and_windows_that_cannot_be_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        DataSettings(data="x", binary=True, **flags)


def test_sets_that_no_window_fits_are_refused(tmp_path: Path) -> None:
    labelled = write_set(tmp_path, np.zeros((*SIZE, 4), np.uint16), MASK, **RAW)
    with pytest.raises(RequestError, match="has 3 windows for 2 bands"):
        channels_of(labelled, DataSettings(data="x", binary=True, bands=(1, 2), window=(0, 1, 0, 1, 0, 1)))
    with pytest.raises(RequestError, match="has 4 bands, and band 5"):
        channels_of(labelled, DataSettings(data="x", binary=True, bands=(5,)))
    put(tmp_path / "images/1.tif", tiff(np.zeros((*SIZE, 4), np.uint8), **RAW))
    with pytest.raises(RequestError, match="samples of 8 bits and whole numbers; convert"):
        channels_of(find_labelled_set(DataSettings(data=str(tmp_path), binary=True, val_fraction=0.5)))
    many = write_set(tmp_path / "many", np.zeros((*SIZE, 40), np.uint8), MASK, **RAW)
    with pytest.raises(RequestError, match="has 40 bands; name up to 32 of them with --bands"):
        channels_of(many)


def test_augmentation_moves_all_bands_together() -> None:
    gray = np.random.default_rng(0).integers(0, 255, (60, 80)).astype(np.uint8)
    settings = AugmentSettings(warp=1.0, vertical_flip=0.5, white_balance=0.0)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        view = draw_view((60, 80), geometry=Geometry("resize", (40, 48)), settings=settings, rng=rng)
        five, mask = view.render(Planes.of(np.repeat(gray[..., None], 5, 2)), gray)
        assert five.shape == (40, 48, 5)
        assert (five == five[..., :1]).all()
        moved, same = view.render(Planes.of(np.repeat(gray[..., None], 3, 2)), gray)
        assert np.array_equal(mask, same)
        if abs(view.colors.saturation - 1) < 0.02:
            assert np.abs(five[..., 0].astype(int) - moved[..., 0]).mean() < 4


def test_bands_are_resized_each_by_itself() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 4)).astype(np.uint8)
    image[..., 3] = 0  # would be transparent
    resized = resize_image(image, (30, 33))
    assert np.array_equal(resized[..., :3], resize_image(np.ascontiguousarray(image[..., :3]), (30, 33)))
    assert resize_image(image[..., :1], (30, 33)).shape == (30, 33, 1)


@pytest.mark.parametrize("nodata", [0, 254])
def test_a_mask_with_nodata_is_read_back_and_a_label_of_that_value_stays_one(nodata: int) -> None:
    """254 is what is written of a set without an ignored label; the palette there is black, as the background is."""
    mask = (np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3 == 0).astype(np.uint8)
    holes = np.zeros(SIZE, bool)
    holes[:4] = True
    data = encode_geotiff(mask, BINARY, holes)
    if nodata == 0:
        data = tiff(mask, extratags=[(42113, "s", 0, "0", True)])
        holes[:] = False
    assert np.array_equal(decode_mask(data, BINARY), np.where(holes, IGNORE, mask))
