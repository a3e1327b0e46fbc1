"""Masks given as polygons: COCO's are drawn as its own tools draw them, labelme's as labelme does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from tests.data.test_layouts import put
from unet.data.check import check_labelled_set
from unet.data.image import encode_image
from unet.data.labelled_set import LabelledSet, find_labelled_set, read_pair
from unet.data.labels import IGNORE, read_labels
from unet.data.settings import DataSettings
from unet.data.shapes import ShapeError, read_coco
from unet.settings import RequestError

SIZE = (60, 80)
TRIANGLE = [10.0, 5.0, 70.5, 12.25, 33.0, 55.75]
SQUARE = [20.0, 20.0, 40.0, 20.0, 40.0, 40.0, 20.0, 40.0]
IMAGE = encode_image(np.zeros((*SIZE, 3), np.uint8))
CATEGORIES = [{"id": 3, "name": "crack"}, {"id": 7, "name": "rust"}]


def coco(annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.png",)) -> bytes:
    images = [
        {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for number, name in enumerate(names)
    ]
    filled = [{"id": number, "image_id": 0, "iscrowd": 0} | row for number, row in enumerate(annotations)]
    return json.dumps({"images": images, "categories": CATEGORIES, "annotations": filled}).encode()


def drawn(tmp_path: Path, annotations: list[dict[str, Any]]) -> npt.NDArray[np.uint8]:
    file = put_labels(tmp_path)
    return read_coco(coco(annotations), "x.json")["a.png"].draw(read_labels(file))


def put_labels(tmp_path: Path) -> str:
    put(tmp_path / "labels.json", json.dumps({"categories": CATEGORIES}).encode())
    return str(tmp_path / "labels.json")


def test_the_categories_of_coco_are_a_label_set_with_a_background(tmp_path: Path) -> None:
    labels = read_labels(put_labels(tmp_path))
    assert [(label.value, label.name) for label in labels.classes] == [(0, "background"), (3, "crack"), (7, "rust")]
    far = json.dumps({"categories": [{"id": 0, "name": "a"}, {"id": 900, "name": "b"}]})
    put(tmp_path / "far.json", far.encode())
    assert [label.value for label in read_labels(str(tmp_path / "far.json")).classes] == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("polygon", [TRIANGLE, SQUARE, [0, 0, 80, 0, 80, 60, 0, 60], [3.4, 3.6, 9.1, 3.2, 8.8, 50.0]])
def test_a_polygon_covers_what_cocos_own_tools_say_it_does(tmp_path: Path, polygon: list[float]) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    expected = tools.decode(tools.merge(tools.frPyObjects([polygon], *SIZE)))
    mask = drawn(tmp_path, [{"category_id": 7, "segmentation": [polygon]}])
    assert set(np.unique(mask)) <= {0, 2}
    # The two differ by rounding, on the border alone.
    inner = Image.fromarray(expected * 255)
    border = np.zeros(SIZE, np.uint8)
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        border |= (
            np.asarray(inner.transform(inner.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy))) != expected * 255
        )
    assert ((mask == 2) == expected)[border == 0].all()
    assert abs(int((mask == 2).sum()) - int(expected.sum())) <= 0.5 * border.sum()


def test_a_square_covers_its_area_exactly(tmp_path: Path) -> None:
    mask = drawn(tmp_path, [{"category_id": 3, "segmentation": [SQUARE]}])
    expected = np.zeros(SIZE, np.uint8)
    expected[20:40, 20:40] = 1
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("packed", [True, False])
def test_runs_are_unpacked_holes_kept(tmp_path: Path, packed: bool) -> None:
    tools = pytest.importorskip("pycocotools.mask")
    region = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8)
    region[:, :20] = region[30:50, 40:60] = 0
    region[10:28, 40:70] = 1
    runs = tools.encode(np.asfortranarray(region))
    counts: Any = runs["counts"].decode()
    if not packed:
        flat = np.concatenate([[0], region.T.reshape(-1), [2]])
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff([0, *edges]).tolist()
    mask = drawn(tmp_path, [{"category_id": 3, "segmentation": {"size": list(SIZE), "counts": counts}}])
    assert np.array_equal(mask, region)


def test_later_shapes_lie_over_earlier_ones_and_a_crowd_is_ignored(tmp_path: Path) -> None:
    mask = drawn(
        tmp_path,
        [
            {"category_id": 3, "segmentation": [[0, 0, 80, 0, 80, 60, 0, 60]]},
            {"category_id": 7, "segmentation": [SQUARE]},
            {"category_id": 7, "segmentation": [[50, 50, 60, 50, 60, 60, 50, 60]], "iscrowd": 1},
        ],
    )
    assert mask[0, 0] == 1
    assert mask[30, 30] == 2
    assert mask[55, 55] == IGNORE


def write_coco(folder: Path, where: dict[str, tuple[str, str]], count: int = 4) -> None:
    """Write parts, each a COCO file and a folder of images."""
    for file, images in where.values():
        names = tuple(f"{number}.png" for number in range(count))
        for name in names:
            put(folder / images / name, IMAGE)
        put(folder / file, coco([{"category_id": 7, "segmentation": [SQUARE]}], names))


@pytest.mark.parametrize(
    "where",
    [
        {"train": ("train/_annotations.coco.json", "train"), "val": ("valid/_annotations.coco.json", "valid")},
        {
            "train": ("annotations/instances_train2017.json", "train2017"),
            "val": ("annotations/instances_val2017.json", "val2017"),
        },
        {
            "train": ("annotations/instances_Train.json", "images/Train"),
            "val": ("annotations/instances_Validation.json", "images/Validation"),
        },
        {"train": ("annotations/instances_default.json", "images/default")},
        {"train": ("annotations/instances_default.json", "images")},
    ],
)
def test_sets_of_coco_are_found_as_they_are_exported(tmp_path: Path, where: dict[str, tuple[str, str]]) -> None:
    write_coco(tmp_path, where)
    given = DataSettings(data=str(tmp_path), classes=str(tmp_path / where["train"][0]), val_fraction=0.5)
    labelled, labels = find_labelled_set(given), read_labels(given.labels)
    assert len(labelled.train + labelled.val) == 4 * len(where)
    check_labelled_set(labelled, labels, 99, print)
    mask = read_pair(next(pair for pair in labelled.train + labelled.val if pair.key.endswith("0")), labels)[1]
    assert (mask == 2).sum() == 400


def test_a_test_part_of_coco_is_not_trained_on_and_two_files_for_one_part_are_refused(tmp_path: Path) -> None:
    parts = {part: (f"annotations/instances_{part}.json", f"images/{part}") for part in ("Test", "Train", "Validation")}
    write_coco(tmp_path, parts)
    given = DataSettings(data=str(tmp_path), classes=str(tmp_path / parts["Train"][0]))
    found = find_labelled_set(given)
    assert [{pair.image.split("/")[-2] for pair in part} for part in (found.train, found.val)] == [
        {"Train"},
        {"Validation"},
    ]
    write_coco(tmp_path, {"more": ("annotations/instances_Train2.json", "images/Train2")})
    with pytest.raises(RequestError, match=r"annotations: instances_Train.json and instances_Train2.json both are"):
        find_labelled_set(given)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[*SQUARE, 1.0]],
        [[*SQUARE[:-1], float("nan")]],
        {"size": list(SIZE), "counts": [9, -9, SIZE[0] * SIZE[1]]},
    ],
    ids=["odd", "nan", "negative"],
)
def test_what_is_no_region_names_its_mask(tmp_path: Path, segmentation: Any) -> None:
    with pytest.raises(ShapeError, match=r"holds (what is no region|a corner)"):
        drawn(tmp_path, [{"category_id": 7, "segmentation": segmentation}])


def test_runs_of_another_shape_than_their_image_are_refused(tmp_path: Path) -> None:
    """Of as many pixels, they would be drawn askew."""
    turned = {"size": list(SIZE[::-1]), "counts": [9, SIZE[0] * SIZE[1] - 9]}
    with pytest.raises(RequestError, match="annotation 0 has a region of another size than its image"):
        drawn(tmp_path, [{"category_id": 7, "segmentation": turned}])


def test_any_coco_file_may_be_named_with_its_images(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": ("export/result.json", "pictures")})
    file = str(tmp_path / "export/result.json")
    given = DataSettings(images=str(tmp_path / "pictures"), masks=file, classes=file, val_fraction=0.5)
    assert len(find_labelled_set(given).train) in range(1, 4)
    (tmp_path / "pictures/2.png").unlink()
    with pytest.raises(RequestError, match=r"result.json: names 2.png, which .*pictures lacks"):
        find_labelled_set(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is no COCO file of instances"),
        (b'{"images": []}', "is no COCO file of instances"),
        (coco([{"category_id": 7, "segmentation": [], "bbox": [1, 2, 3, 4]}]), "boxes alone are no masks"),
        (coco([], ("a.png", "a.png")), "names an image twice"),
        (
            coco([{"category_id": 7, "segmentation": [SQUARE], "image_id": 9}]),
            "has shapes of an image 9, which it does",
        ),
        (coco([{"category_id": 8, "segmentation": [SQUARE]}]), "is no COCO file of instances .KeyError: 8"),
    ],
)
def test_a_file_that_is_not_of_coco_is_refused_by_name(tmp_path: Path, text: bytes, words: str) -> None:
    put(tmp_path / "a.png", IMAGE)
    put(tmp_path / "x.json", text)
    with pytest.raises(RequestError, match=f"x.json: {words}|x.json: .*{words}"):
        find_labelled_set(DataSettings(images=str(tmp_path), masks=str(tmp_path / "x.json"), binary=True))


def labelme(*shapes: tuple[str, str, list[list[float]]]) -> bytes:
    rows = [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes]
    return json.dumps({"shapes": rows, "imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": "a.png"}).encode()


CORNERS = [[10.0, 5.0], [70.5, 12.25], [33.0, 55.75]]


def found_in(tmp_path: Path, content: bytes) -> tuple[LabelledSet, DataSettings]:
    for number in range(4):
        put(tmp_path / f"set/{number}.png", IMAGE)
        put(tmp_path / f"set/{number}.json", content)
    put(tmp_path / "labels.txt", b"__ignore__\n_background_\ncrack\nrust\n")
    given = DataSettings(data=str(tmp_path / "set"), classes=str(tmp_path / "labels.txt"), val_fraction=0.5)
    return find_labelled_set(given), given


def test_labelme_files_beside_images_are_masks(tmp_path: Path) -> None:
    content = labelme(
        ("rust", "polygon", CORNERS),
        ("crack", "rectangle", [[2, 2], [8, 9]]),
        ("__ignore__", "circle", [[60, 50], [64, 50]]),
    )
    labelled, given = found_in(tmp_path, content)
    labels = read_labels(given.labels)
    assert labels.names == ("_background_", "crack", "rust")
    _, mask = read_pair(labelled.train[0], labels)
    expected = Image.new("L", SIZE[::-1], 0)  # as labelme's own program draws it
    draw = ImageDraw.Draw(expected)
    draw.polygon([tuple(point) for point in CORNERS], outline=2, fill=2)
    draw.rectangle([(2, 2), (8, 9)], outline=1, fill=1)
    draw.ellipse([(56, 46), (64, 54)], outline=IGNORE, fill=IGNORE)
    assert np.array_equal(mask, np.asarray(expected))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (labelme(("dent", "polygon", CORNERS)), "holds the name dent, which no label has; add it to the label file"),
        (labelme(("rust", "linestrip", CORNERS)), "holds a linestrip of 3 points, which covers no region"),
        (b'{"shapes": 3}', "is no file of labelme"),
    ],
)
def test_a_file_of_labelme_that_cannot_be_drawn_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    labelled, given = found_in(tmp_path, content)
    with pytest.raises(RequestError, match=rf"set/\d.json: {words}"):
        check_labelled_set(labelled, read_labels(given.labels), 99, print)
