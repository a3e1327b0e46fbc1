"""HEIC, DICOM and NIfTI by packages of their own, PNGs in colours of 16 bits; each refused by name where it cannot be
read."""

import gzip
import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.data.test_bands import MASK, channels_of
from tests.data.test_layouts import put
from tests.data.test_tiff import SIZE
from unet.data import readers
from unet.data.channels import Channels
from unet.data.image import ImageError, encode_image, open_image, suffix_of
from unet.data.labelled_set import find_labelled_set, read_pair
from unet.data.labels import read_labels
from unet.data.mask import decode_mask
from unet.data.planes import decode_image, read_planes
from unet.data.settings import DataSettings

GRADIENT = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE)
RAMP = Channels(windows=((0, 1000),))


def heic(image: npt.NDArray[np.uint8]) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(image)).save(file, quality=95)
    return file.getvalue()


def dicom(samples: npt.NDArray[Any], **tags: Any) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found: Dataset = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Rows, found.Columns = samples.shape[:2]
    found.SamplesPerPixel = samples.shape[2] if samples.ndim == 3 else 1
    found.PhotometricInterpretation = "RGB" if samples.ndim == 3 else "MONOCHROME2"
    if samples.ndim == 3:
        found.PlanarConfiguration = 0
    bits = 8 * samples.dtype.itemsize
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = int(samples.dtype.kind == "i")
    for name, value in tags.items():
        setattr(found, name, value)
    found.PixelData = samples.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, enforce_file_format=True)
    return file.getvalue()


def nifti(samples: npt.NDArray[Any], slope: float = 1) -> bytes:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(samples.T if samples.ndim == 2 else samples, np.eye(4))
    image.header.set_slope_inter(slope, 0)
    data: bytes = image.to_bytes()
    return data


def test_heic_is_read() -> None:
    image = np.asarray(Image.linear_gradient("L").resize((60, 40)).convert("RGB"))
    assert np.abs(decode_image(heic(image)).astype(int) - image).mean() < 3


def test_dicom_is_shown_through_its_rescaling_and_window() -> None:
    samples = GRADIENT.astype(np.int16)
    window = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [40, 400], "WindowWidth": [401, 1500]}
    shown = decode_image(dicom(samples, **window))[..., 0]
    hounsfield = samples.astype(float) * 2 - 1000
    assert (shown[hounsfield <= 40 - 0.5 - 200] == 0).all()
    assert (shown[hounsfield > 40 - 0.5 + 200] == 255).all()
    inside = np.abs(hounsfield - 39.5) < 200
    assert np.abs(shown[inside] - ((hounsfield[inside] - 39.5) / 400 + 0.5) * 255).max() <= 0.5
    white = decode_image(dicom(samples, **window, PhotometricInterpretation="MONOCHROME1"))[..., 0]
    assert (white.astype(int) + shown == 255).all()


@pytest.mark.parametrize("kind", ["uint16", "int16"])
def test_dicom_without_a_window_is_scaled_as_other_deep_images_are(kind: str) -> None:
    samples = GRADIENT.astype(kind)
    shown = decode_image(dicom(samples), RAMP)[..., 0]
    assert np.abs(shown - (samples.clip(0, 1000) * (255 / 1000))).max() <= 0.5
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    inverse = Channels(windows=((least, most),))
    white = decode_image(dicom(samples, PhotometricInterpretation="MONOCHROME1"), inverse)[..., 0]
    assert np.abs(white.astype(int) + decode_image(dicom(samples), inverse)[..., 0] - 255).max() <= 1


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": None, "WindowWidth": None}])
def test_dicom_of_8_bits_without_a_window_is_shown_as_it_is(tags: dict[str, Any]) -> None:
    samples = np.arange(240, dtype=np.uint8).reshape(12, 20)
    assert np.array_equal(decode_image(dicom(samples, **tags))[..., 0], samples)
    inverse = decode_image(dicom(samples, **tags, PhotometricInterpretation="MONOCHROME1"))[..., 0]
    assert np.array_equal(inverse, 255 - samples)


def test_dicom_in_colours_is_rgb() -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    assert np.array_equal(decode_image(dicom(image)), image)


@pytest.mark.parametrize("packed", [False, True])
def test_a_slice_of_nifti_is_read(packed: bool) -> None:
    pack = gzip.compress if packed else bytes
    assert np.array_equal(decode_image(pack(nifti((GRADIENT % 256).astype(np.uint8))))[..., 0], GRADIENT % 256)
    shown = decode_image(pack(nifti(GRADIENT.astype(np.int16))), RAMP)[..., 0]
    assert np.abs(shown - (GRADIENT.clip(0, 1000) * (255 / 1000))).max() <= 0.5
    mask = np.random.default_rng(0).integers(0, 11, SIZE).astype(np.float32)
    assert np.array_equal(decode_mask(pack(nifti(mask)), read_labels("camvid")), mask)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nifti(np.zeros((5, 6, 7), np.uint8)), "is a NIfTI volume of 5 x 6 x 7, and a mask is of one slice"),
        (
            lambda: dicom(np.zeros((4, 4), np.uint8), NumberOfFrames=3),
            "is a DICOM file of 3 frames, and a mask is of one",
        ),
        (
            lambda: dicom(np.zeros((4, 4, 3), np.uint16)),
            "is a DICOM file in RGB, which is not read; save it as gray or RGB",
        ),
        (lambda: nifti(np.zeros((5, 6), np.complex64)), "is a NIfTI file of complex64, which is not read"),
    ],
)
def test_what_is_no_single_picture_is_refused_by_name(make: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        open_image(make())


@pytest.mark.parametrize(("make", "keep"), [(dicom, 400), (nifti, 360), (nifti, 20)])
def test_damaged_files_are_damaged(make: Any, keep: int) -> None:
    data = make(GRADIENT.astype(np.int16))[:keep]
    with pytest.raises(ImageError):
        decode_image(data)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [heic(np.zeros((*SIZE, 3), np.uint8)), dicom(MASK), nifti(MASK)]
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    for name, extra, file in zip(("HEIC", "DICOM", "NIfTI"), ("heic", "dicom", "nifti"), data, strict=True):
        with pytest.raises(ImageError, match=rf"is (a )?{name}.*; install unet-ray\[{extra}\] to read it"):
            open_image(file)


def test_names_of_two_dots_pair_by_what_is_before_them(tmp_path: Path) -> None:
    assert (suffix_of("a/b.NII.gz"), suffix_of("a.b/c"), suffix_of("c.tar.gz")) == (".NII.gz", "", ".gz")
    for number in range(4):
        put(tmp_path / f"imagesTr/case_{number}_0000.nii.gz", gzip.compress(nifti(GRADIENT.astype(np.int16))))
        put(tmp_path / f"labelsTr/case_{number}.nii.gz", gzip.compress(nifti(MASK)))
    labelled = find_labelled_set(DataSettings(data=str(tmp_path), binary=True, val_fraction=0.5))
    image, mask = read_pair(labelled.train[0], read_labels("binary"), channels=channels_of(labelled))
    assert np.array_equal(mask, MASK)
    assert image.to_array()[..., 0].max() == 255


def test_the_16_bits_of_a_png_in_colours_are_used(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 2048, (*SIZE, 3)).astype(np.uint16)
    data = bytes(imagecodecs.png_encode(samples))
    for number in range(4):
        put(tmp_path / f"images/{number}.png", data)
        put(tmp_path / f"masks/{number}.png", encode_image(MASK))
    labelled = find_labelled_set(DataSettings(data=str(tmp_path), binary=True, val_fraction=0.5))
    channels = channels_of(labelled)
    assert channels.bands == (1, 2, 3)
    assert all(low < 40 and 2000 < high < 2048 for low, high in channels.windows)
    full = Channels((1, 2, 3), ((0, 2047),) * 3, ("whole numbers",))
    image = decode_image(data, full)
    assert np.abs(image.astype(float) - samples * (255 / 2047)).max() <= 0.5
    part = read_planes(open_image(data), full, (3, 4, 33, 20)).to_array()
    assert np.array_equal(part, image[4:20, 3:33])
    assert np.array_equal(decode_image(data), samples >> 8)  # a model of RGB sees what it was trained on
