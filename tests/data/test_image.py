"""Bytes to arrays: every kind of file becomes the right array or a clear error."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.conftest import make_pair
from unet.data.channels import Channels
from unet.data.image import (
    Array,
    ImageError,
    encode_image,
    encode_mask,
    open_image,
    overlay,
    preprocess_image,
    preprocess_mask,
    resize_mask,
    to_rgb_picture,
)
from unet.data.labels import IGNORE, LabelSet, read_labels
from unet.data.mask import decode_mask
from unet.data.planes import check_samples, decode_image
from unet.data.region import displayed_size, orientation_of
from unet.settings import Geometry

CAMVID = read_labels("camvid")


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def labels_of(*values: int) -> LabelSet:
    rows = [{"index": v, "name": f"c{v}", "color": [v, 0, 1], "ignore": False} for v in values]
    return LabelSet.from_json(rows)


def test_an_encoded_image_decodes_to_itself() -> None:
    image, _ = make_pair(0)
    assert (decode_image(encode_image(image)) == image).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }[orientation]
    for data in (
        saved(Image.fromarray(image), exif=exif),
        saved(Image.fromarray(image), "WEBP", exif=exif, lossless=True),
    ):
        assert (decode_image(data) == shown).all()
        opened = open_image(data)
        assert (opened.height, opened.width) == image.shape[:2]
    lossy = saved(Image.fromarray(image).resize((40, 60)), "JPEG", exif=exif, quality=100)
    assert decode_image(lossy).shape == (10 * shown.shape[0], 10 * shown.shape[1], 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image, _ = make_pair(1)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode_image(saved(Image.fromarray(image).convert(mode), kind))
    assert decoded.shape == image.shape
    assert decoded.dtype == np.uint8


def png_of_16_bits(samples: npt.NDArray[np.uint16]) -> bytes:
    """HWC RGB samples as a 16-bit PNG, which Pillow cannot write."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_sixteen_bit_colour_keeps_its_high_byte() -> None:
    samples = np.array([[[0x0100, 0x80FF, 0xFFFF], [0, 0x7F00, 0x0203]]], np.uint16)
    assert (decode_image(png_of_16_bits(samples)) == samples >> 8).all()


@pytest.mark.parametrize("transparent", [None, 1, b"\xff\x00\x80"])
def test_palette_colours_are_kept_and_their_transparency_dropped(transparent: int | bytes | None) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = saved(picture) if transparent is None else saved(picture, transparency=transparent)
    assert decode_image(data).tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


@pytest.mark.parametrize(("mode", "pixel", "rgb"), [("RGBA", (9, 8, 7, 0), [9, 8, 7]), ("LA", (5, 0), [5, 5, 5])])
def test_alpha_is_dropped_not_blended(mode: str, pixel: tuple[int, ...], rgb: list[int]) -> None:
    assert decode_image(saved(Image.new(mode, (1, 1), pixel))).tolist() == [[rgb]]


def cmyk_jpeg(ycck: bool) -> tuple[bytes, Array]:
    """A CMYK JPEG of four flat colours as Adobe writes it, and the colours; `ycck`: its ink is luma and chroma."""
    colors = np.array([[[200, 30, 60], [10, 180, 90]], [[250, 250, 250], [40, 40, 160]]], np.uint8)
    image = colors.repeat(16, 0).repeat(16, 1)
    ink = Image.fromarray(255 - image)
    if ycck:  # Pillow stores 255 - x of what it is given
        ink = Image.fromarray(255 - np.asarray(ink.convert("YCbCr")))
    data = saved(Image.merge("CMYK", [*ink.split(), Image.new("L", ink.size, 0)]), "JPEG", quality=100)
    marker = data.index(b"Adobe") + 11
    return data[:marker] + bytes([2 if ycck else 0]) + data[marker + 1 :], image


@pytest.mark.parametrize("ycck", [False, True])
def test_cmyk_jpegs_show_their_colours(ycck: bool) -> None:
    data, image = cmyk_jpeg(ycck)
    assert np.abs(decode_image(data).astype(int) - image).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (6, 5), color) for color in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (decoded == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (1, 1), (513, 3)])
def test_thin_images_are_decoded_whole(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert (decode_image(encode_image(image)) == image).all()


def test_a_decompression_bomb_is_refused_from_its_header() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    for read in (decode_image, open_image):
        with pytest.raises(ImageError, match="has 60000 x 60000 pixels, more than the limit"):
            read(bomb)


@pytest.mark.parametrize("labels", [CAMVID, labels_of(0, 255), labels_of(3, 7, 200)], ids=["camvid", "0/255", "gaps"])
def test_an_encoded_mask_holds_the_labels_values_and_colours(labels: LabelSet) -> None:
    count = len(labels.classes)
    mask = np.random.default_rng(0).integers(0, count, (33, 47)).astype(np.uint8)
    data = encode_mask(mask, labels)
    assert (decode_mask(data, labels) == mask).all()
    picture = Image.open(io.BytesIO(data))
    assert picture.mode == "P"
    values = np.array([label.value for label in labels.classes])
    assert (np.asarray(picture) == values[mask]).all()
    assert (np.asarray(picture.convert("RGB")) == labels.colors[mask]).all()


def test_an_encoded_mask_keeps_what_is_ignored() -> None:
    mask = np.array([[0, IGNORE, 10]], np.uint8)
    assert (decode_mask(encode_mask(mask, CAMVID), CAMVID) == mask).all()


def test_a_class_of_several_labels_is_read_from_each_and_written_as_the_first() -> None:
    published = read_labels("camvid32")
    colors = np.array([[label.color for label in published.labels]], np.uint8)
    mask = decode_mask(encode_image(colors), published)
    assert set(mask.ravel().tolist()) == {*range(11), IGNORE}
    written = encode_mask(mask, published)
    assert (decode_mask(written, published) == mask).all()
    assert (np.asarray(Image.open(io.BytesIO(written))) == np.where(mask == IGNORE, 11, mask)).all()


def test_a_confidence_is_a_grayscale_png() -> None:
    confidence = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.open(io.BytesIO(encode_image(confidence)))
    assert (picture.mode, np.asarray(picture).tolist()) == ("L", confidence.tolist())


def test_sixteen_bit_grayscale_keeps_its_high_byte() -> None:
    values = np.array([[0, 256, 65535]], np.uint16)
    assert decode_image(saved(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 255]


def test_a_window_scales_sixteen_bit_grayscale_and_nothing_else() -> None:
    values = np.array([[0, 1000, 1002, 2000, 3000, 65535]], np.uint16)
    data = saved(Image.fromarray(values))
    window = Channels(windows=((1000, 3000),))
    decoded = decode_image(data, window)
    assert decoded[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    assert (np.asarray(to_rgb_picture(open_image(data), (1000, 3000))) == decoded).all()
    samples, _ = check_samples(open_image(data), Channels())
    assert samples is not None
    assert (samples[:, 0] == values.ravel()).all()
    for narrow in (
        encode_image(make_pair(0)[0]),
        encode_image(make_pair(0)[1]),
        png_of_16_bits(np.zeros((2, 2, 3), np.uint16)),
    ):
        assert check_samples(open_image(narrow), Channels()) == (None, None)
        assert (decode_image(narrow, Channels(windows=((0, 9),))) == decode_image(narrow)).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is not an image"),
        (encode_image(make_pair(0)[0], "JPEG")[:300], "cannot be decoded|is not an image|cannot be read"),
        (encode_image(make_pair(0)[0])[:200], "cannot be decoded|is not an image|cannot be read"),
    ],
)
def test_damaged_bytes_are_an_image_error(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data)


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    with pytest.raises(ImageError, match="more than the limit of 100"):
        open_image(encode_image(make_pair(0)[0]), max_pixels=100)


def test_index_palette_and_colour_masks_decode_alike() -> None:
    values = np.random.default_rng(0).integers(0, 12, (9, 13)).astype(np.uint8)
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([channel for label in CAMVID.labels for channel in label.color])
    colors = np.array([label.color for label in CAMVID.labels], np.uint8)[values]
    expected = np.where(values == 11, IGNORE, values)
    for data in (encode_image(values), saved(palette), encode_image(colors)):
        assert (decode_mask(data, CAMVID) == expected).all()


def test_a_mask_value_outside_the_label_set_is_named() -> None:
    with pytest.raises(ImageError, match="holds the value 12"):
        decode_mask(encode_image(np.array([[0, 12]], np.uint8)), CAMVID)


def test_a_sixteen_bit_mask_does_not_wrap() -> None:
    with pytest.raises(ImageError, match="holds the value 257"):
        decode_mask(saved(Image.fromarray(np.array([[0, 257]], np.uint16))), CAMVID)


def test_a_sixteen_bit_mask_with_small_values_is_read() -> None:
    mask = decode_mask(saved(Image.fromarray(np.array([[0, 3]], np.uint16))), CAMVID)
    assert mask.tolist() == [[0, 3]]


def test_a_0_255_mask_of_a_binary_set_is_recognised() -> None:
    with pytest.raises(ImageError, match=r"0/255 mask.*index 255 in the label file"):
        decode_mask(encode_image(np.array([[0, 255]], np.uint8)), labels_of(0, 1))
    assert decode_mask(encode_image(np.array([[0, 255]], np.uint8)), labels_of(0, 255)).tolist() == [[0, 1]]


@pytest.mark.parametrize("values", [[0, 1], [0, 255], [0, 0]])
def test_a_binary_mask_holds_0_and_255_or_0_and_1(values: list[int]) -> None:
    binary = read_labels("binary")
    samples = np.array([values], np.uint8)
    expected = [[int(value > 0) for value in values]]
    for data in (encode_image(samples), encode_image(samples[..., None].repeat(3, -1))):
        assert decode_mask(data, binary).tolist() == expected
    if values == [0, 1]:
        assert decode_mask(saved(Image.fromarray(samples.astype(bool))), binary).tolist() == expected


@pytest.mark.parametrize("value", [2, 128, 254])
def test_another_value_in_a_binary_mask_is_named(value: int) -> None:
    samples = np.array([[0, value, 255]], np.uint8)
    with pytest.raises(ImageError, match=rf"holds the value {value}, .*threshold it"):
        decode_mask(encode_image(samples), read_labels("binary"))
    with pytest.raises(ImageError, match=rf"holds the colour \({value}, .*threshold it"):
        decode_mask(encode_image(samples[..., None].repeat(3, -1)), read_labels("binary"))


def test_an_unknown_colour_is_named() -> None:
    with pytest.raises(ImageError, match=r"holds the colour \(1, 2, 3\)"):
        decode_mask(encode_image(np.full((2, 2, 3), (1, 2, 3), np.uint8)), CAMVID)


def test_an_index_mask_saved_as_rgb_is_recognised() -> None:
    with pytest.raises(ImageError, match=r"^holds the colour .*index mask saved as RGB"):
        decode_mask(encode_image(np.full((2, 2, 3), 3, np.uint8)), CAMVID)


def test_a_broken_exif_block_is_an_image_error() -> None:
    data = saved(Image.fromarray(make_pair(0)[0]), exif=b"Exif\0\0II*\0")
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(data)


def test_a_floating_point_mask_is_refused() -> None:
    with pytest.raises(ImageError, match=r"^holds the value 0\.6"):
        decode_mask(saved(Image.fromarray(np.array([[0.6]], np.float32)), "TIFF"), CAMVID)


def test_a_jpeg_mask_is_refused() -> None:
    with pytest.raises(ImageError, match="is a JPEG"):
        decode_mask(encode_image(np.zeros((8, 8), np.uint8), "JPEG"), CAMVID)


def test_resizing_a_mask_invents_no_class() -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 5, IGNORE], np.uint8), (31, 47))
    assert set(np.unique(resize_mask(mask, (64, 20)))) <= {0, 5, IGNORE}


def test_native_geometry_leaves_arrays_alone_and_resize_moves_both() -> None:
    image, mask = make_pair(0)
    native, resize = Geometry("native", (16, 16)), Geometry("resize", (16, 24))
    assert preprocess_image(image, native) is image
    assert preprocess_mask(mask, native) is mask
    assert preprocess_image(image, resize).shape == (16, 24, 3)
    assert preprocess_mask(mask, resize).shape == (16, 24)


def test_an_overlay_mixes_image_and_label_colours() -> None:
    image: Array = np.full((2, 2, 3), 100, np.uint8)
    mixed = overlay(image, np.zeros((2, 2), np.uint8), CAMVID, opacity=0.5)
    assert mixed[0, 0].tolist() == [114, 114, 114]


def test_an_orientation_in_xmp_turns_nothing() -> None:
    """As in OpenCV and libvips."""
    image = make_pair(0)[0]
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert np.array_equal(decode_image(saved(Image.fromarray(image), "WEBP", lossless=True, xmp=xmp)), image)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    assert np.array_equal(decode_image(saved(Image.fromarray(image), pnginfo=text)), image)
    beside = Image.Exif()
    beside[ExifTags.Base.Make] = "a maker"  # EXIF that says nothing of it: Pillow reads both for the density
    data = saved(Image.fromarray(image), "JPEG", exif=beside, xmp=xmp)
    assert decode_image(data).shape == image.shape
    assert orientation_of(open_image(data)) == 1


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_is_none_turns_nothing(orientation: int) -> None:
    image, exif = make_pair(0)[0], Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for kind in ("JPEG", "PNG"):
        picture = open_image(saved(Image.fromarray(image), kind, exif=exif))
        assert orientation_of(picture) == 1
        assert displayed_size(picture) == (image.shape[1], image.shape[0])


def test_a_damaged_chunk_that_pixels_do_not_depend_on_is_left_out() -> None:
    image = make_pair(0)[0]
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    data = saved(Image.fromarray(image), pnginfo=text)
    assert np.array_equal(decode_image(data.replace(b"a title", b"A title")), image)
    for kind in (b"IHDR", b"IDAT"):
        place = data.index(kind) + 4
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(ImageError):
            decode_image(damaged)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read_as_pillow_has_them(kind: str) -> None:
    image = np.full((40, 56, 3), (200, 30, 90), np.uint8)
    assert np.abs(decode_image(saved(Image.fromarray(image), kind)).astype(int) - image).max() <= 4
