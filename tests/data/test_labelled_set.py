"""Finding, splitting and checking labelled sets."""

import errno
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import make_pair, write_pair
from unet.data.channels import RGB
from unet.data.check import apply_check, check_labelled_set
from unet.data.image import ImageError, encode_image
from unet.data.labelled_set import LabelledSet, find_labelled_set, find_part, read_pair
from unet.data.labels import Label, LabelSet, read_labels
from unet.data.layouts import LAYOUTS, Layout, Pair
from unet.data.settings import DataSettings, SetSettings
from unet.data.statistics import choose_channels, statistics_table
from unet.settings import RequestError


def find(folder: Path, **options: object) -> tuple[list[str], list[str]]:
    labelled = find_labelled_set(DataSettings(data=str(folder), classes="camvid", **options))  # type: ignore[arg-type]
    return [pair.key for pair in labelled.train], [pair.key for pair in labelled.val]


WITH_PARTS = [layout for layout in LAYOUTS if "{part}" in layout.images]


@pytest.mark.parametrize("layout", WITH_PARTS, ids=lambda layout: " ".join(layout.folders("train")))
def test_a_layout_with_a_validation_part_is_found(tmp_path: Path, boxes: Path, layout: Layout) -> None:
    for part, name in (("train", layout.train_part), ("val", layout.val_part)):
        for kind, folder, ending in zip(
            ("images", "masks"), layout.folders(name), (layout.image_ending, layout.mask_ending), strict=True
        ):
            for file in (boxes / part / kind).iterdir():
                target = tmp_path / "set" / folder / f"{file.stem}{ending}{file.suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    if layout.marker:
        (tmp_path / "set" / layout.marker).touch()
    train, val = find(tmp_path / "set")
    assert [key.removesuffix(layout.image_ending) for key in train] == [f"{number:03}" for number in range(12)]
    assert [key.removesuffix(layout.image_ending) for key in val] == [f"{number:03}" for number in range(100, 105)]


@pytest.mark.parametrize("together", [True, False])
def test_endings_of_names_may_be_given(tmp_path: Path, boxes: Path, together: bool) -> None:
    for part in ("train", "val"):
        for kind, ending in (("images", "_sat"), ("masks", "_map")):
            for file in (boxes / part / kind).iterdir():
                target = tmp_path / part / ("files" if together else kind) / f"{file.stem}{ending}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    endings = {"image_suffix": "_sat", "mask_suffix": "_map", "classes": "camvid"}
    folders = [str(tmp_path / "train" / ("files" if together else kind)) for kind in ("images", "masks")]
    labelled = find_labelled_set(SetSettings(images=folders[0], masks=folders[1], **endings))  # type: ignore[arg-type]
    assert len(labelled.train + labelled.val) == 12
    if not together:
        assert len(find_labelled_set(SetSettings(data=str(tmp_path), **endings)).val) == 5  # type: ignore[arg-type]


def test_an_accent_is_one_however_it_is_written(tmp_path: Path, boxes: Path) -> None:
    for kind, form in (("images", "NFC"), ("masks", "NFD")):
        file = next((boxes / "train" / kind).iterdir())
        file.rename(file.with_name(unicodedata.normalize(form, "Höhe.png")))  # type: ignore[arg-type]
    assert len(find_labelled_set(SetSettings(data=str(boxes))).train) == 12


def test_a_folder_of_images_and_masks_is_split(boxes: Path) -> None:
    train, val = find(boxes / "train", val_fraction=0.4)
    assert sorted(train + val) == [f"{number:03}" for number in range(12)]
    assert val


def test_the_split_of_a_key_is_stable_as_the_set_grows(tmp_path: Path) -> None:
    image, mask = make_pair(0)
    for number in range(20):
        write_pair(tmp_path, f"{number}", image, mask)
    train, val = find(tmp_path)
    for number in range(20, 60):
        write_pair(tmp_path, f"{number}", image, mask)
    more_train, more_val = find(tmp_path)
    assert set(train) < set(more_train)
    assert set(val) < set(more_val)


def test_images_and_masks_may_lie_in_two_folders(boxes: Path) -> None:
    settings = DataSettings(
        images=str(boxes / "train/images"),
        masks=str(boxes / "train/masks"),
        val_data=str(boxes / "val"),
        classes="camvid",
    )
    labelled = find_labelled_set(settings)
    assert (len(labelled.train), len(labelled.val)) == (12, 5)


def test_hidden_files_and_files_of_other_kinds_are_no_images(boxes: Path) -> None:
    (boxes / "train/images/.DS_Store.png").write_bytes(b"")
    (boxes / "train/images/notes.txt").write_text("")
    assert len(find(boxes)[0]) == 12


def test_the_check_counts_classes_and_sizes(boxes: Path) -> None:
    labels = read_labels(str(boxes / "classes.csv"))
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    statistics = check_labelled_set(labelled, labels, 5000, print)
    assert statistics[0].sizes == {(40, 56): 12}
    assert statistics[0].pixels[1] == 12 * 16 * 18
    table = statistics_table(labelled, labels, statistics)
    assert "40 x 56: 12" in table
    assert "12.9%" in table  # 16 * 18 / (40 * 56)


def test_a_larger_set_is_sampled(boxes: Path) -> None:
    labels = read_labels(str(boxes / "classes.csv"))
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    statistics = check_labelled_set(labelled, labels, 6, print)
    assert sum(part.sizes.total() for part in statistics) == 6
    assert "of them read" in statistics_table(labelled, labels, statistics)


def test_a_class_without_training_pixels_is_pointed_out(boxes: Path) -> None:
    (boxes / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n2,ghost,0,9,0\n")
    labels = read_labels(str(boxes / "classes.csv"))
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    assert "no pixel to learn it from" in statistics_table(
        labelled, labels, check_labelled_set(labelled, labels, 99, print)
    )


def test_the_check_names_the_first_faulty_file_and_counts_the_others(boxes: Path) -> None:
    for number in (3, 5, 7):
        (boxes / f"train/masks/00{number}.png").write_bytes(encode_image(np.full((40, 56), 9, np.uint8)))
    labels = read_labels(str(boxes / "classes.csv"))
    with pytest.raises(RequestError, match=r"003\.png: holds the value 9.*and 2 more such files"):
        check_labelled_set(find_labelled_set(DataSettings(data=str(boxes), classes="camvid")), labels, 5000, print)


def test_a_vanished_file_is_named(boxes: Path) -> None:
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    Path(labelled.train[0].mask).unlink()
    with pytest.raises(ImageError, match=r"masks/000\.png: cannot be read"):
        read_pair(labelled.train[0], read_labels(str(boxes / "classes.csv")))


def check(folder: Path, cache: Path, labels: LabelSet | None = None, limit: int = 99) -> tuple[list[str], str]:
    """What a check says, and the table of what it counted."""
    labels = labels or read_labels(str(folder / "classes.csv"))
    labelled = find_labelled_set(DataSettings(data=str(folder), classes="camvid"))
    lines: list[str] = []
    statistics = check_labelled_set(labelled, labels, limit, lines.append, str(cache))
    return lines, statistics_table(labelled, labels, statistics, choose_channels(RGB, (), statistics))


def test_a_set_that_was_checked_is_not_read_again(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        samples = np.random.default_rng(number).integers(0, 4096, (40, 56)).astype(np.uint16)
        Image.fromarray(samples).save(boxes / f"train/images/00{number}.png")
    cache = tmp_path / "check.json"
    lines, table = check(boxes, cache)
    assert lines == []
    assert "window" in table
    monkeypatch.setattr("unet.storage.store.open_file", None)  # what would read a file fails
    lines, again = check(boxes, cache)
    assert again == table
    assert lines == ["check: the files are those of the last check, which found nothing wrong"]


@pytest.mark.parametrize("change", ["image", "mask", "one more", "labels", "limit", "damaged"])
def test_a_set_that_has_changed_is_checked_anew(boxes: Path, tmp_path: Path, change: str) -> None:
    cache = tmp_path / "check.json"
    check(boxes, cache)
    labels, limit = read_labels(str(boxes / "classes.csv")), 99
    if change in ("image", "mask"):
        path = boxes / f"train/{change}s/003.png"
        path.write_bytes(path.read_bytes())
    elif change == "one more":
        write_pair(boxes / "train", "more", *make_pair(7))
    elif change == "labels":
        labels = LabelSet((*labels.labels, Label(value=9, name="void", color=(9, 9, 9), ignore=True)))
    elif change == "limit":
        limit = 5
    else:
        cache.write_text('{"format": 1, "digest": "')
    assert check(boxes, cache, labels, limit)[0] == []
    assert len(check(boxes, cache, labels, limit)[0]) == 1


def test_a_faulty_set_is_read_again(boxes: Path, tmp_path: Path) -> None:
    (boxes / "train/masks/003.png").write_bytes(encode_image(np.full((40, 56), 9, np.uint8)))
    for _ in range(2):
        with pytest.raises(RequestError, match=r"003\.png: holds the value 9"):
            check(boxes, tmp_path / "check.json")
    assert not (tmp_path / "check.json").exists()


def test_files_without_etags_are_read_each_time(boxes: Path, tmp_path: Path) -> None:
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    bare = tuple(Pair(pair.key, pair.image, pair.mask) for pair in labelled.train)
    labels = read_labels(str(boxes / "classes.csv"))
    check_labelled_set(LabelledSet(bare, labelled.val), labels, 99, print, str(tmp_path / "check.json"))
    assert not (tmp_path / "check.json").exists()


@pytest.mark.parametrize(
    ("pairs", "side", "limit"), [(6, 2500, 800), pytest.param(12, 8000, 1500, marks=pytest.mark.slow)]
)
def test_promise_36_the_check_of_colour_masks_takes_little_memory(
    tmp_path: Path, pairs: int, side: int, limit: int
) -> None:
    """`limit`: MB of resident memory of the process that checks."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image, mask = Image.new("RGB", (side, side), (9, 99, 199)), Image.new("RGB", (side, side))
    mask.paste((255, 0, 0), (0, 0, side // 2, side // 2))
    image.save(tmp_path / "images/0.png", compress_level=1)
    mask.save(tmp_path / "masks/0.png", compress_level=1)
    for number in range(1, pairs):
        for kind in ("images", "masks"):
            (tmp_path / f"{kind}/{number}.png").hardlink_to(tmp_path / f"{kind}/0.png")
    (tmp_path / "classes.csv").write_text("index,name,red,green,blue\n0,ground,0,0,0\n1,box,255,0,0\n")
    program = f"""
from pathlib import Path
from unet.data.check import check_labelled_set
from unet.data.labelled_set import find_labelled_set
from unet.data.labels import read_labels
from unet.data.settings import DataSettings
labelled = find_labelled_set(DataSettings(data={str(tmp_path)!r}, classes="camvid", val_fraction=0.5))
train, val = check_labelled_set(labelled, read_labels({str(tmp_path / "classes.csv")!r}), 99, print)
assert (train.pixels + val.pixels).tolist() == [{pairs} * {side} ** 2 * 3 // 4, {pairs} * {side} ** 2 // 4]
status = Path("/proc/self/status").read_text()  # ru_maxrss begins with what the process had that started this one
print(int(status.partition("VmHWM:")[2].split()[0]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < limit


def test_a_part_is_found_though_the_other_is_faulty(boxes: Path) -> None:
    settings = SetSettings(data=str(boxes))
    whole = find_labelled_set(settings)
    assert find_part(settings, "val") == LabelledSet((), whole.val)
    assert find_part(settings, "train") == LabelledSet(whole.train, ())
    assert find_part(settings, "all") == whole
    (boxes / "train/masks/003.png").unlink()
    assert find_part(settings, "val").val == whole.val
    with pytest.raises(RequestError, match="image without a mask"):
        find_part(settings, "all")


def test_a_set_without_parts_is_split_for_a_part_and_never_for_all_of_it(boxes: Path) -> None:
    pairs = {"images": str(boxes / "train/images"), "masks": str(boxes / "train/masks")}
    settings = SetSettings(**pairs, val_fraction=0.4)  # type: ignore[arg-type]
    whole = find_labelled_set(settings)
    assert whole.val
    assert find_part(settings, "val") == LabelledSet((), whole.val)
    assert find_part(settings, "train") == LabelledSet(whole.train, ())
    assert sorted(find_part(settings, "all").train, key=lambda pair: pair.key) == sorted(
        whole.train + whole.val, key=lambda pair: pair.key
    )
    elsewhere = SetSettings(**pairs, val_data=str(boxes))  # type: ignore[arg-type]
    assert find_part(elsewhere, "val") == LabelledSet((), find_labelled_set(SetSettings(data=str(boxes))).val)


def test_the_table_of_a_part_has_its_column_alone(boxes: Path) -> None:
    labels = read_labels(str(boxes / "classes.csv"))
    part = find_part(SetSettings(data=str(boxes)), "val")
    table = statistics_table(part, labels, check_labelled_set(part, labels, 5000, print))
    assert table.splitlines()[0].split() == ["val"]
    assert table.splitlines()[1].split() == ["pairs", "5"]
    assert "to learn" not in table


def damage(boxes: Path, *names: str) -> None:
    for name in names:
        file = boxes / "train" / name
        file.write_bytes(file.read_bytes()[:-30])


def test_a_share_of_damaged_pairs_may_be_left_out(boxes: Path, tmp_path: Path) -> None:
    damage(boxes, "images/003.png", "masks/005.png")
    labels, labelled = read_labels("camvid"), find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    for share in (0.0, 0.1):  # of 17 pairs
        with pytest.raises(RequestError, match=r"003\.png: cannot be decoded.*and 1 more such file"):
            check_labelled_set(labelled, labels, 99, print, skip_damaged=share)
    cache, lines = str(tmp_path / "check.json"), list[str]()
    for _ in range(2):  # the second time from the cache
        statistics = check_labelled_set(labelled, labels, 3, lines.append, cache, 0.12)
        left = apply_check(labelled, statistics)
        assert {pair.key for pair in labelled.train} - {pair.key for pair in left.train} == {"003", "005"}
        assert len(left.val) == 5
        assert re.search(r"left out +2 +0   damaged", statistics_table(labelled, labels, statistics))
    assert [line.partition(": ")[0] for line in lines if "png" in line] == ["left out"] * 2
    assert all(name in " ".join(lines) for name in ("images/003.png", "masks/005.png"))


def test_a_sample_is_of_both_parts(boxes: Path) -> None:
    labels, labelled = read_labels("camvid"), find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    uneven = LabelledSet((*labelled.train, *labelled.val[1:]), labelled.val[:1])
    for limit in (1, 4):
        train, val = check_labelled_set(uneven, labels, limit, print)
        assert (train.sizes.total(), val.sizes.total()) == (limit, 1)


def test_a_part_of_which_nothing_is_whole_is_refused(boxes: Path) -> None:
    damage(boxes, "images/003.png")
    labels, labelled = read_labels("camvid"), find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    broken, *whole = sorted(labelled.train, key=lambda pair: pair.key != "003")
    one = LabelledSet(tuple(whole), (broken,))
    with pytest.raises(RequestError, match="all 1 validation pairs are damaged"):
        apply_check(one, check_labelled_set(one, labels, 99, print, skip_damaged=0.5))


def test_a_label_that_is_unknown_is_no_damage(boxes: Path) -> None:
    (boxes / "train" / "masks" / "003.png").write_bytes(encode_image(np.full((40, 56), 99, np.uint8)))
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    with pytest.raises(RequestError, match="holds the value 99"):
        check_labelled_set(labelled, read_labels("camvid"), 99, print, skip_damaged=0.5)


def test_a_file_that_the_system_cannot_read_is_no_damage(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: Image.Image) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("unet.data.image.show", fail)
    labelled = find_labelled_set(DataSettings(data=str(boxes), classes="camvid"))
    with pytest.raises(RequestError, match=r"cannot be read \(Input/output error\)"):
        check_labelled_set(labelled, read_labels("camvid"), 99, print, skip_damaged=0.9)
