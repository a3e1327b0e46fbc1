"""What batches are made of: files are read many at a time, and of large ones only what is shown is decoded."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.conftest import make_pair, write_pair
from unet.data.channels import Channels
from unet.data.image import ImageError, encode_image
from unet.data.labels import IGNORE, read_labels
from unet.data.layouts import Pair
from unet.data.settings import AugmentSettings
from unet.settings import Geometry
from unet.storage.local import LocalStore
from unet.train import examples
from unet.train.examples import BatchRequest, BatchSpec, make_batch
from unet.train.schedule import Sample


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "_cache", {})


def spec(boxes: Path, size: int = 24) -> BatchSpec:
    return BatchSpec(read_labels(str(boxes / "classes.csv")), Geometry("native", (size, size)), AugmentSettings(), 5)


def pairs_of(folder: Path, count: int) -> tuple[Pair, ...]:
    places = [(f"{number:03}", folder / "train") for number in range(count)]
    return tuple(Pair(key, f"{part}/images/{key}.png", f"{part}/masks/{key}.png") for key, part in places)


class SlowReads:
    """Counts the files that are read at the same time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.most, self.total, self.lock = 0, 0, 0, threading.Lock()
        get = LocalStore.get

        def slow(store: LocalStore, key: str, etag: str | None = None) -> bytes:
            with self.lock:
                self.now, self.total = self.now + 1, self.total + 1
                self.most = max(self.most, self.now)
            time.sleep(0.03)
            with self.lock:
                self.now -= 1
            return get(store, key, etag)

        monkeypatch.setattr(LocalStore, "get", slow)


def test_the_files_of_a_batch_are_read_at_the_same_time(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(boxes, 12)
    expected = make_batch(BatchRequest(pairs), spec(boxes)).masks
    monkeypatch.setattr(examples, "_cache", {})
    reads = SlowReads(monkeypatch)
    assert (make_batch(BatchRequest(pairs), spec(boxes)).masks == expected).all()
    assert reads.total == 24
    assert reads.most > 16


def test_decoded_pairs_are_not_read_again(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(boxes, 4)
    reads = SlowReads(monkeypatch)
    make_batch(BatchRequest(pairs), spec(boxes))
    make_batch(BatchRequest(pairs[::-1]), spec(boxes))
    assert reads.total == 8


def test_a_batch_is_the_same_with_and_without_a_cache(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_pair(tmp_path / "train", f"{number:03}", *make_pair(number, (1200, 900)))
    pairs = pairs_of(tmp_path, 3) * 2
    request = BatchRequest(pairs, tuple(Sample(turn, row) for turn, row in enumerate((0, 1, 2, 0, 1, 2))))
    kept = make_batch(request, spec(boxes, 200))
    assert len(examples._cache) == 3
    monkeypatch.setattr(examples, "_cache", {})
    monkeypatch.setattr(examples, "CACHE_BYTES", 0)
    anew = make_batch(request, spec(boxes, 200))
    assert examples._cache == {}
    assert (kept.images == anew.images).all()
    assert (kept.masks == anew.masks).all()


def test_half_of_the_classes_of_its_partner_lie_over_an_image(boxes: Path) -> None:
    """However a batch is cut into chunks."""
    pairs = pairs_of(boxes, 6)
    samples = tuple(Sample(0, row) for row in range(6))
    follows = tuple(zip((*pairs[1:], pairs[0]), (*samples[1:], Sample(1, 0)), strict=True))
    request = BatchRequest(pairs, samples, follows)
    plain, partners = (
        make_batch(each, spec(boxes))
        for each in (BatchRequest(pairs, samples), BatchRequest(*map(tuple, zip(*follows, strict=True))))
    )
    never, always = (replace(spec(boxes), augment=AugmentSettings(class_mix=share)) for share in (0.0, 1.0))
    assert (make_batch(request, never).images == plain.images).all()
    mixed = make_batch(request, always)
    for place in range(6):
        classes = set(np.unique(partners.masks[place])) - {IGNORE}
        laid = mixed.masks[place] != plain.masks[place]
        assert set(np.unique(mixed.masks[place][laid])) <= classes
        over = (mixed.images[place] != plain.images[place]).any(-1)
        assert (mixed.images[place][over] == partners.images[place][over]).all()
        (one,) = set(np.unique(partners.masks[place][over])) - {IGNORE}  # of two
        assert (mixed.masks[place] == one)[partners.masks[place] == one].all()
    parts = [make_batch(request.part(first, first + 4), always) for first in (0, 4)]
    assert (np.concatenate([part.images for part in parts]) == mixed.images).all()
    assert (np.concatenate([part.masks for part in parts]) == mixed.masks).all()


def test_of_a_large_tiff_only_the_tiles_that_are_shown_are_read(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "CACHE_BYTES", 0)
    image, mask = make_pair(0, (1500, 2000))
    pair = Pair("a", f"{tmp_path}/a.tif", f"{tmp_path}/a.png")
    tifffile.imwrite(pair.image, image, tile=(128, 128), compression="deflate", photometric="rgb")
    Path(pair.mask).write_bytes(encode_image(mask))
    request = BatchRequest((pair,), (Sample(0, 0),))
    expected = make_batch(request, spec(boxes, 64))

    page = tifffile.TiffFile(pair.image).pages.first
    data = bytearray(Path(pair.image).read_bytes())
    for start, length in ((page.dataoffsets[tile], page.databytecounts[tile]) for tile in (0, -1)):
        data[start : start + length] = b"\xff" * length
    Path(pair.image).write_bytes(data)
    assert (make_batch(request, spec(boxes, 64)).images == expected.images).all()


def test_a_faulty_file_of_a_batch_is_named(boxes: Path) -> None:
    pairs = pairs_of(boxes, 4)
    Path(pairs[2].mask).write_bytes(encode_image(np.zeros((30, 30), np.uint8)))
    with pytest.raises(ImageError, match=r"masks/002\.png: the mask has 30 x 30 pixels, its image .* has 40 x 56"):
        make_batch(BatchRequest(pairs), spec(boxes))
    Path(pairs[3].image).unlink()
    with pytest.raises(ImageError, match=r"images/003\.png: cannot be read"):
        make_batch(BatchRequest(pairs[3:]), spec(boxes))


def test_where_a_validation_image_holds_no_data_is_known_at_the_size_of_its_mask(tmp_path: Path) -> None:
    write_pair(tmp_path / "train", "000", *make_pair(0))
    samples = np.random.default_rng(0).random((40, 56, 2), np.float32)
    samples[:10] = np.nan
    tifffile.imwrite(tmp_path / "train/images/000.tif", samples, photometric="minisblack", planarconfig="contig")
    pair = Pair("000", str(tmp_path / "train/images/000.tif"), str(tmp_path / "train/masks/000.png"))
    geometry, channels = Geometry("resize", (20, 28)), Channels((1, 2), ((0, 1), (0, 1)), ("floating point",))
    made = make_batch(
        BatchRequest((pair,)), BatchSpec(read_labels("binary"), geometry, AugmentSettings(), 5, channels=channels)
    )
    (holes,) = made.holes
    assert holes is not None
    assert np.array_equal(holes, np.arange(20)[:, None].repeat(28, 1) < 5)
