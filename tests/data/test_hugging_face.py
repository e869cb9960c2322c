"""Data sets of the `datasets` library: which columns are read, and which are refused."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import parse_source
from ditlab.data.sources import held_out_name, open_source

datasets = pytest.importorskip("datasets")
from datasets import ClassLabel, Features, Image, Sequence, Value  # noqa: E402

datasets.disable_progress_bars()
IMAGES = [PIL.Image.new("RGB", (12, 8), (i, 0, 0)) for i in range(4)]


@pytest.fixture
def saved(tmp_path):
    """Save columns (feature, values), with images in `image` unless another column has some."""

    def save(**columns):
        if not any(isinstance(feature, Image) for feature, _ in columns.values()):
            columns = {"image": (Image(), IMAGES)} | columns
        features = Features({name: feature for name, (feature, _) in columns.items()})
        values = {name: values for name, (_, values) in columns.items()}
        datasets.Dataset.from_dict(values, features=features).save_to_disk(tmp_path / "set")
        return f"hf:{tmp_path / 'set'}"

    return save


@pytest.mark.parametrize(
    ("kind", "values", "classes", "labels"),
    [
        ("int64", [2, 10, 2, 0], ["0", "2", "10"], [1, 2, 1, 0]),
        ("float32", [2.0, 10.0, 2.0, 0.0], ["0", "2", "10"], [1, 2, 1, 0]),
        ("string", ["dog", " cat", "cat", "dog"], ["cat", "dog"], [1, 0, 0, 1]),
        ("bool", [True, False, True, True], ["false", "true"], [1, 0, 1, 1]),
    ],
)
def test_labels_of_all_types(saved, kind, values, classes, labels):
    source = open_source(saved(label=(Value(kind), values)))
    assert (source.classes, source.labels.tolist()) == (classes, labels)
    assert source.reading.conditions == f"{len(classes)} classes from column label"
    spaces = '" cat", "cat" are one class of column label of'
    assert [note.startswith(spaces) for note in source.reading.notes] == [True] * (kind == "string")


def test_several_labels_per_row(saved):
    several = Sequence(ClassLabel(names=["a", "b", "c"]))
    name = saved(label=(several, [[0, 1]] * 4), kind=(Value("string"), list("xyxy")))
    with pytest.raises(InputError, match=r"has a list of labels in column label .*, or choose another column"):
        open_source(name)
    assert open_source(name, Preparation(label_column="kind")).classes == ["x", "y"]
    source = open_source(name, Preparation(label_column="none"))
    assert (source.classes, source.reading.conditions) == ([], "unconditional")
    assert source.reading.notes == [f"label columns of {name[3:]} are ignored: label"]


def test_ambiguous_labels_are_refused(saved):
    columns = {
        "coarse_label": (ClassLabel(names=["animal", "plant"]), [0, 1, 0, 1]),
        "fine_label": (ClassLabel(names=["cat", "oak"]), [0, 1, 0, 1]),
    }
    name = saved(**columns)
    with pytest.raises(
        InputError,
        match=r"has several label columns \(coarse_label, fine_label\); choose one \(label_column\), or none",
    ):
        open_source(name)
    assert open_source(name, Preparation(label_column="fine_label")).classes == ["cat", "oak"]
    with pytest.raises(
        InputError, match=r'has no label column "x" \(it has coarse_label, fine_label\); correct or remove'
    ):
        open_source(name, Preparation(label_column="x"))


def test_an_obvious_label_is_taken_and_said(saved):
    name = saved(kind=(ClassLabel(names=["a", "b"]), [0, 1, 0, 1]), label=(Value("int64"), [5, 6, 7, 5]))
    source = open_source(name)
    assert source.classes == ["5", "6", "7"]
    assert source.reading.notes == [f'label column "label" of {name[3:]}; also there: kind']


def test_several_columns_of_images(saved, tmp_path):
    other = [PIL.Image.new("RGB", (12, 8), (200, 0, 0))] * 4
    name = saved(conditioning_image=(Image(), other), image=(Image(), IMAGES))
    source = open_source(name)
    assert source.read(3).getpixel((0, 0)) == (3, 0, 0)
    assert source.reading.notes == [f'image column "image" of {name[3:]}; also there: conditioning_image']
    source = open_source(name, Preparation(image_column="conditioning_image"))
    assert source.read(3).getpixel((0, 0)) == (200, 0, 0)
    with pytest.raises(InputError, match=r'no image column "x" \(it has conditioning_image, image\)'):
        open_source(name, Preparation(image_column="x"))
    columns = {"left": IMAGES, "right": other}
    features = Features({"left": Image(), "right": Image()})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "two")
    with pytest.raises(InputError, match=r"has several image columns \(left, right\); choose one \(image_column\)$"):
        open_source(str(tmp_path / "two"))


def test_captions(saved, tmp_path):
    texts = ["a", "b", "c", "d"]
    source = open_source(saved(text=(Value("string"), texts), url=(Value("string"), texts)))
    captions = source.columns["caption"].values
    assert (len(captions), captions[2], captions[1:3]) == (4, "c", ["b", "c"])
    assert (source.classes, source.reading.notes[1:]) == ([], ["captions of 4 images from column text"])
    assert re.fullmatch(
        r"no labels; columns of .*set that are not read: url \(label_column chooses one\)", source.reading.notes[0]
    )
    columns = {"image": IMAGES, "captions": [["a", "b"]] * 4}
    features = Features({"image": Image(), "captions": Sequence(Value("string"))})
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "lists")
    lists = open_source(str(tmp_path / "lists"))
    assert lists.columns["caption"].values[0] == ["a", "b"]
    assert "caption" not in open_source(str(tmp_path / "lists"), Preparation(caption_column="none")).columns
    with pytest.raises(InputError, match='no caption column "x"'):
        open_source(str(tmp_path / "lists"), Preparation(caption_column="x"))


def test_splits(tmp_path):
    parts = {name: datasets.Dataset.from_dict({"image": IMAGES[:count]}, features=Features({"image": Image()}))
             for name, count in (("train", 3), ("validation", 2), ("test", 1))}  # fmt: skip
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    name = str(tmp_path / "set")
    source = open_source(name)
    assert (len(source), source.reading.split) == (3, "train (also there: validation, test)")
    assert len(open_source(name, Preparation(split="val"))) == 2
    assert len(open_source(f"hf:{name}:test", Preparation(split="test"))) == 1
    with pytest.raises(InputError, match=r'split is "val", but the source is .*:test; remove one of them'):
        open_source(f"hf:{name}:test", Preparation(split="val"))
    assert parse_source(name).held_out().text == f"hf:{name}:validation"
    assert len(parse_source(name).held_out().open()) == 2
    assert parse_source(name, Preparation(split="test")).held_out() is None
    assert parse_source(f"hf:{name}:train").held_out().text == f"hf:{name}:validation"
    assert parse_source(f"hf:{name}:test").held_out() is None


def test_the_held_out_part_of_a_data_set_on_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "get_dataset_split_names", {"nobody/mnist": ["train", "test"]}.__getitem__)
    assert parse_source("hf:nobody/mnist").held_out().text == "hf:nobody/mnist:test"
    assert parse_source("hf:nobody/mnist:train_small").held_out() is None
    monkeypatch.setattr("ditlab.data.sources.all_splits", {"C:/mnist": ["train", "test"]}.__getitem__)
    assert held_out_name("hf:C:/mnist:train", "") == "hf:C:/mnist:test"  # a folder on Windows
    monkeypatch.undo()
    monkeypatch.setattr(datasets, "get_dataset_split_names", {}.__getitem__)
    with pytest.raises(
        InputError, match=r"cannot list the parts of the data set nobody/x \(it lacks 'nobody/x'\); give held-out"
    ):
        parse_source("hf:nobody/x").held_out()


def test_empty_captions_are_not_counted(saved):
    source = open_source(saved(text=(Value("string"), ["a", None, "", "d"])))
    assert source.reading.notes == ["captions of 2 images from column text"]


@pytest.mark.parametrize("columns", [[], ["image"], ["image", "label"]])
@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_the_format_of_a_saved_data_set_does_not_matter(tmp_path, kind, columns):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": IMAGES, "label": [0, 1, 1, 0]}, features=features)
    table.with_format(kind, columns=columns).save_to_disk(tmp_path / "set")
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 1, 1, 0])
    assert source.read(2).getpixel((0, 0)) == (2, 0, 0)


def test_a_class_whose_name_is_no_text(saved):
    source = saved(label=(ClassLabel(names=["a", "b"]), [0, 1, 1, 0]))
    info = Path(source.removeprefix("hf:")) / "dataset_info.json"
    content = json.loads(info.read_text())
    content["features"]["label"]["names"][1] = {}
    info.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        open_source(source)
    assert str(caught.value) == "a class has the name {}, which is no text; repair the list of the classes"


def test_what_a_damaged_description_raises_is_one_line(saved, monkeypatch):
    source = saved(label=(ClassLabel(names=["a", "b"]), [0, 1, 1, 0]))
    monkeypatch.setattr(datasets.Dataset, "select_columns", lambda *_: {}["lost"])
    with pytest.raises(InputError) as caught:
        open_source(source)
    assert str(caught.value) == f"the data set {source.removeprefix('hf:')} is damaged (it lacks 'lost'); save it again"
