"""Tables of labels: separators, lines, columns, and labels that are numbers or have spaces."""

import json

import pytest
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.reading import LeftOut
from ditlab.data.sources import open_source


@pytest.fixture
def labeled(tmp_path):
    """Open a flat folder of images 0.png, ... with a table."""

    def open_with(text, name="l.csv", count=3, **settings):
        (tmp_path / "flat").mkdir(exist_ok=True)
        for i in range(count):
            Image.new("RGB", (12, 8), (i, 0, 0)).save(tmp_path / "flat" / f"{i}.png")
        (tmp_path / name).write_text(text, encoding="utf-8")
        return open_source(str(tmp_path / "flat"), Preparation(labels=str(tmp_path / name), **settings))

    return open_with


def lines(labels, **more):
    return "".join(
        json.dumps({"file_name": f"{i}.png", "label": label} | more, ensure_ascii=False) + "\n"
        for i, label in enumerate(labels)
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("file;label\n0.png;a, b\n1.png;c\n2.png;c\n", "l.csv"),
        ("file\tlabel\n0.png\ta, b\n1.png\tc\n2.png\tc\n", "l.csv"),
        ("file\tlabel\n0.png\ta, b\n1.png\tc\n2.png\tc\n", "l.tsv"),
        ('file, Label \r\n0.png,"a, b"\r\n./1.png,c\r\n2.png,c\r\n', "l.csv"),
        ('path,class\n0.png,"a, b"\n1.png,c\n2.png,c\n', "l.csv"),
        ('filename,width,category\n0.png,3,"a, b"\n1.png,3,c\n2.png,3,c\n', "l.csv"),
        ('image,text,label\n0.png,x;y;z,"a, b"\n1.png,x,c\n2.png,x,c\n', "l.csv"),
    ],
)
def test_separators_and_names_of_columns(labeled, text, name):
    source = labeled(text, name)
    assert (source.classes, source.labels.tolist()) == (["a, b", "c"], [0, 1, 1])


def test_separators_of_lines_within_texts(labeled):
    source = labeled(lines(["a", "b", "a"], text="one\u2028two\x85three"), "l.jsonl")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.columns["caption"].values == ["one\u2028two\x85three"] * 3
    assert source.reading.conditions == "2 classes from column label of l.jsonl"


def test_columns_can_be_chosen(labeled):
    text = "file,label,class,kind,title\n0.png,a,x,p,t0\n1.png,b,y,p,t1\n2.png,b,z,q,t2\n"
    source = labeled(text)
    assert source.classes == ["a", "b"]
    assert source.reading.notes == ['label column "label" of l.csv; also there: class']
    assert labeled(text, label_column="kind").classes == ["p", "q"]
    assert labeled(text, caption_column="title").columns["caption"].values == ["t0", "t1", "t2"]
    assert labeled(text, label_column="none").reading.conditions == "unconditional"
    with pytest.raises(InputError, match=r"l\.csv has several label columns \(class, category\); choose one"):
        labeled(text.replace("label", "category"))
    with pytest.raises(InputError, match=r"l\.csv lack a column of labels; give a CSV file with the columns"):
        labeled("file,kind\n0.png,a\n")


def test_spaces_around_labels(labeled):
    source = labeled("file,label\n0.png,cat\n1.png, cat\n2.png,dog \n")
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [0, 0, 1])
    assert source.reading.notes == ['" cat", "cat" are one class of l.csv: spaces around a label are removed']


def test_a_list_is_no_label(labeled):
    with pytest.raises(InputError, match=r"0\.png has a list of labels in l\.jsonl; give one label for each image, or"):
        labeled(lines([["cat"], ["cat", "dog"], ["cat"]]), "l.jsonl")
    with pytest.raises(InputError, match=r"0\.png has an object as label in l\.jsonl"):
        labeled(lines([{"a": 1}]), "l.jsonl", count=1)


@pytest.mark.parametrize(
    ("labels", "classes", "notes"),
    [
        ([1, 1.0, 2], ["1", "2"], ["labels of l.jsonl are of several kinds (1, 1.0); equal ones are joined"]),
        ([1, "1", 2], ["1", "2"], ["labels of l.jsonl are of several kinds (1, '1'); equal ones are joined"]),
        ([1.0, 2.0, 10.0], ["1", "2", "10"], []),
        ([0.5, 1.5, 0.5], ["0.5", "1.5"], []),
        ([True, False, True], ["false", "true"], []),
        (["1", "1.0", "2"], ["1", "1.0", "2"], ['"1" and "1.0" are two classes of l.jsonl']),
    ],
)
def test_kinds_of_labels(labeled, labels, classes, notes):
    source = labeled(lines(labels), "l.jsonl")
    assert (source.classes, source.reading.notes) == (classes, notes)


def test_truth_values_among_other_labels(labeled):
    with pytest.raises(
        InputError, match=r"labels of l\.jsonl are of several kinds \(1, 1\.0, true\); write them all alike"
    ):
        labeled(lines([1, 1.0, True]), "l.jsonl")


@pytest.mark.parametrize("label", [None, "", "  ", float("nan")])
def test_missing_labels(labeled, label):
    with pytest.raises(InputError, match=r"lack a label for 1\.png; give a CSV file"):
        labeled(lines(["a", label, "b"]), "l.jsonl")


def test_lines_that_are_no_json(labeled):
    with pytest.raises(InputError, match=r"lack JSON in line 2 \(.*\); give a CSV file"):
        labeled(lines(["a"]) + "{\n", "l.jsonl")


def test_rows_with_more_values_than_columns(labeled):
    with pytest.raises(InputError, match=r"more values than columns, which begins with 1\.png; put values"):
        labeled("file,label\n0.png,dog\n1.png,dog, small\n2.png,cat\n")
    assert labeled("file,label\n0.png,dog,\n1.png,dog,,\n2.png,cat\n").classes == ["cat", "dog"]


def test_names_that_are_unlike_those_in_the_folder(labeled):
    with pytest.raises(InputError, match=r"no row has a file name as in the folder, the first one is flat/0\.png$"):
        labeled("file,label\nflat/0.png,a\nflat/1.png,a\nflat/2.png,a\n")


def test_only_one_table_of_metadata_is_read(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.csv").write_text("file_name,url\n0.png,x\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "label": "a"}\n')
    reading = open_source(str(tmp_path)).reading
    assert reading.left_out == {"further table of metadata": LeftOut(1, "metadata.jsonl")}
    assert reading.notes == ["no labels; columns of metadata.csv that are not read: url (label_column chooses one)"]
