"""Label sets: files, built-in sets, and the two numberings."""

import json
from pathlib import Path

import pytest

from unet.data.labels import BUILT_IN, IGNORE, INVALID, Label, LabelSet, color_of, read_labels
from unet.settings import RequestError

HEADER = "index,name,red,green,blue\n"


def read(tmp_path: Path, text: str) -> LabelSet:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    return read_labels(str(file))


def test_camvid_is_built_in_with_eleven_classes_and_void_ignored() -> None:
    labels = read_labels("camvid")
    assert labels.names[0] == "sky"
    assert len(labels.classes) == 11
    assert labels.value_to_class[11] == IGNORE


def test_the_built_in_camvid_equals_its_published_file(camvid: Path) -> None:
    assert read_labels(str(camvid / "classes.csv")) == read_labels("camvid")


def test_values_with_gaps_become_contiguous_class_indices(tmp_path: Path) -> None:
    labels = read(tmp_path, HEADER + "255,box,255,0,0\n0,ground,0,0,0\n7,void,9,9,9\n")
    assert labels.names == ("ground", "box")
    assert labels.value_to_class[[0, 255, 7, 1]].tolist() == [0, 1, IGNORE, INVALID]


def test_an_ignore_column_marks_ignored_labels(tmp_path: Path) -> None:
    labels = read(
        tmp_path, "index,name,red,green,blue,ignore\n0,a,0,0,0,0\n1,b,1,0,0,0\n2,edge,2,0,0,1\n3,void,3,0,0,0\n"
    )
    assert labels.names == ("a", "b", "void")


def test_scoring_ignored_labels_makes_them_classes() -> None:
    assert read_labels("camvid").with_ignored_as_classes().names[-1] == "void"


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_label_set_survives_json(name: str) -> None:
    labels = read_labels(name)
    assert LabelSet.from_json(json.loads(json.dumps(labels.to_json()))) == labels


def test_rows_of_one_name_are_one_class_and_the_first_stands_for_it(tmp_path: Path) -> None:
    labels = read(tmp_path, HEADER + "9,car,9,0,0\n3,road,3,0,0\n2,car,2,0,0\n8,void,8,0,0\n7,void,7,0,0\n")
    assert labels.names == ("road", "car")  # in order of the values that are written
    assert labels.value_to_class[[2, 3, 7, 8, 9, 1]].tolist() == [1, 0, IGNORE, IGNORE, 1, INVALID]
    assert labels.colors[[0, 1, IGNORE]].tolist() == [[3, 0, 0], [9, 0, 0], [8, 0, 0]]
    assert [label.value for label in labels.written_labels] == [3, 8, 9]
    assert labels.with_ignored_as_classes().names == ("road", "void", "car")
    assert LabelSet.from_json(labels.to_json()) == labels


def test_camvid_as_published_has_the_classes_of_camvid() -> None:
    published, usual = read_labels("camvid32"), read_labels("camvid")
    assert len(published.labels) == 32
    assert published.names == usual.names
    assert [label.value for label in published.written_labels] == [label.value for label in usual.labels]


def test_cityscapes_has_its_train_ids_and_ignores_all_others() -> None:
    labels = read_labels("cityscapes")
    assert len(labels.names) == 19
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert labels.value_to_class[ids].tolist() == list(range(19))
    assert {labels.value_to_class[value] for value in {*range(34), 255} - {*ids}} == {IGNORE}
    assert labels.value_to_class[34] == INVALID


def test_voc_has_a_background_twenty_classes_and_an_ignored_border() -> None:
    labels = read_labels("voc")
    assert (labels.names[0], labels.names[15], len(labels.names)) == ("background", "person", 21)
    assert labels.value_to_class[255] == IGNORE
    assert labels.colors[IGNORE].tolist() == [224, 224, 192]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0,a,0,0,0\n0,b,1,0,0\n", "two labels have the index 0"),
        (HEADER + "0,a,5,0,0\n1,b,5,0,0\n", r"two labels have the colour \(5, 0, 0\)"),
        (HEADER + "0,a,5,0,0\n1,a,5,0,0\n2,b,0,0,0\n", r"two labels have the colour \(5, 0, 0\)"),
        (HEADER + "0,a,5,0,0\n1,a,6,0,0\n", "needs 2 to 254 classes"),
        (HEADER + "0,a,5,0,0\n", "needs 2 to 254 classes"),
        (HEADER + "0,a,5,0,0\n1,b,6,0,300\n", "must lie in 0..255"),
        (HEADER + "0,a,5,0,0\none,b,6,0,0\n", "line 3: index, red, green, blue must be whole numbers"),
        ("index,red,green,blue\n0,1,2,3\n", "no column name"),
        ("index,name,red,green\n0,a,1,2\n", "no column blue"),
        (
            "index,name,red,green,blue,ignore\n0,a,0,0,0,0\n1,b,1,0,0,0\n2,b,2,0,0,1\n",
            "'b': is ignored in one row and not in another",
        ),
    ],
)
def test_a_faulty_label_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        read(tmp_path, text)
    assert "labels.csv" in str(error.value)


EXPORTS = {
    "labels.csv": "name;r;g;b\nground;0;0;0\nbox;255;0;0\n",
    "tabs.csv": "index\tname\tr\tg\tb\n1\tbox\t255\t0\t0\n0\tground\t0\t0\t0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nground:0,0,0::\nbox:255,0,0::\n",
}


@pytest.mark.parametrize("name", EXPORTS)
def test_label_files_of_other_programs_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(EXPORTS[name])
    labels = read_labels(str(tmp_path / name))
    assert labels.names == ("ground", "box")
    assert [label.value for label in labels.labels] == [0, 1]
    assert labels.colors[:2].tolist() == [[0, 0, 0], [255, 0, 0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, car\n2, tree\n"),
        ("dataset.json", '{"labels": {"background": 0, "car": 1, "tree": 2}}'),
        ("dataset.json", '{"labels": {"0": "background", "1": "car", "2": "tree"}}'),
    ],
)
def test_labels_without_colours_have_those_of_voc(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    labels = read_labels(str(tmp_path / name))
    assert labels.names == ("background", "car", "tree")
    assert labels.colors[:3].tolist() == read_labels("voc").colors[:3].tolist()


def test_the_colour_map_is_that_of_voc() -> None:
    assert all(label.color == color_of(label.value) for label in read_labels("voc").labels)


def test_an_unknown_label_set_names_the_built_in_ones() -> None:
    with pytest.raises(RequestError, match="built in: binary, camvid"):
        read_labels("camvidd")


def test_void_by_name_is_ignored_without_an_ignore_column(tmp_path: Path) -> None:
    labels = read(tmp_path, HEADER + "0,a,0,0,0\n1,b,1,0,0\n2,Void,2,0,0\n")
    assert [label.ignore for label in labels.labels] == [False, False, True]
    assert Label(value=2, name="Void", color=(2, 0, 0), ignore=True) in labels.labels
