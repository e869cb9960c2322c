"""The summary of a data set: exactly what was read, chosen and left out."""

import io
import json

import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.values import PixelValues
from ditlab.data import InMemory, open_dataset
from ditlab.data.reading import Reading
from ditlab.data.summary import Summary, report_unreadable


@pytest.fixture
def folder(tmp_path):
    for name, count in (("cat", 2), ("dog", 3)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 8), (i, 0, 0)).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path / "pets"


def test_a_folder_of_classes(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert Summary.of(open_dataset("pets", Preparation(size="8", flip=True)), "pets").lines() == [
        "data: pets: 5 images of 8x8 pixels, RGB, uint8, 0..255, each with a mirrored copy",
        "conditions: 2 classes from folders, 2 to 3 images each (cat, dog)",
    ]


def test_a_built_in_set_says_how_many_classes_it_has():
    assert Summary.of(open_dataset("digits"), "digits").lines() == [
        "data: digits: 1,437 images of 8x8 pixels, gray, uint8, 0..255",
        "conditions: 10 classes from the data set, 139 to 146 images each (0, 1, 2, 3, ...)",
    ]


def test_what_was_chosen_and_left_out_is_listed():
    data = InMemory(torch.zeros(3, 13, 4, 6, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), [])
    data.values = PixelValues("uint16", (0.0,), (4095.0,))
    data.reading = Reading(split="train (also there: val)", notes=['images from column "image"; also there: "mask"'])
    for name in ("a.heic", "b.heic"):
        data.reading.leave_out(name, "files with .heic, which need pillow-heif")
    data.reading.leave_out("c.png", "images below 8 pixels")
    assert Summary.of(data, "scans").lines() == [
        "data: scans: 3 images of 4x6 pixels, 13 channels, uint16, 0..4095",
        "conditions: unconditional",
        "split: train (also there: val)",
        'images from column "image"; also there: "mask"',
        "left out: files with .heic, which need pillow-heif: 2 (a.heic); images below 8 pixels: 1 (c.png)",
    ]


def test_each_data_set_has_a_reading_of_its_own():
    first, second = (InMemory(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1), []) for _ in range(2))
    first.reading = Reading("captions")
    assert second.reading.conditions == "unconditional"


def test_the_summary_of_a_run_is_kept_in_its_folder(tmp_path):
    data = open_dataset("digits")
    Summary.of(data, "digits").write(tmp_path)
    kept = json.loads((tmp_path / "data.json").read_text())
    assert (kept["images"], kept["channels"], kept["classes"]["3"]) == (1437, 1, 146)
    assert kept["reading"]["left_out"] == {}
    assert PixelValues.read(kept["values"]) == data.values


def test_images_that_a_check_finds_unreadable_are_reported_and_kept(folder, tmp_path):
    file = folder / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:50])
    data = open_dataset(str(folder), Preparation(size="8", max_skipped=0.5))
    console = Console(record=True, file=io.StringIO())
    data.check(console, resumed=False)
    report_unreadable(data, "pets", tmp_path, console)
    assert console.export_text() == "left out: images that cannot be read: 1 (cat/1.png)\n"
    kept = json.loads((tmp_path / "data.json").read_text())["reading"]["left_out"]
    assert kept == {"images that cannot be read": {"count": 1, "example": "cat/1.png"}}
    assert data.reading.left_out == {}


def test_the_example_of_unreadable_images_is_the_first_by_name(folder):
    data = open_dataset(str(folder))
    data.skipped = {"dog/10.png": "x", "dog/2.png": "x", "dog/30.png": "x"}  # in the order in which threads found them
    assert Summary.of(data, "pets").lines()[-1] == "left out: images that cannot be read: 3 (dog/2.png)"


def test_names_with_line_ends_stay_on_their_line():
    data = InMemory(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ["a\nb", "c\x1b[1m"])
    data.reading = Reading("2 classes from folders")
    data.reading.leave_out("x\ny.png", "hidden")
    assert Summary.of(data, "odd").lines()[1:] == [
        "conditions: 2 classes from folders, 1 image each (a\\nb, c\\x1b[1m)",
        "left out: hidden: 1 (x\\ny.png)",
    ]
