"""`ditlab train FOLDER` from the images to the score."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab import load
from ditlab.auto import choose, train_folder
from ditlab.auto.train import Budget, check_promising, default_run, describe, remarks
from ditlab.auto.tuning import conditions, mixed_labels
from ditlab.conditioning import Text
from ditlab.config.reader import read_toml
from ditlab.core.errors import InputError
from ditlab.data import InMemory

TINY = {"model": {"name": "Hourglass-XS", "width": 16, "heads": 1, "depth": 1, "outer": (8,), "patch": 2}}
FEW = {"enough": 40, "held_out": 0.25, "most_held_out": 2000, "few_of_class": 20}


@pytest.fixture
def images(tmp_path):
    """Sixty images of two colors, 8x8 pixels."""
    random = np.random.default_rng(0)
    for i in range(60):
        color = [220, 40, 40] if i % 2 else [40, 40, 220]
        pixels = np.clip(random.normal(color, 8, (8, 8, 3)), 0, 255).astype(np.uint8)
        file = tmp_path / "colors" / ("red" if i % 2 else "blue") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "colors"


@pytest.fixture
def quick(monkeypatch):
    """Hold out some of few images, and try fewer sampling settings."""
    changed = choose.table() | {"data": FEW, "tuning": {"guidance": [1.0, 1.5], "schedules": ["uniform"]}}
    for module in ("choose", "train", "finish", "tuning"):
        monkeypatch.setattr(f"ditlab.auto.{module}.table", lambda: changed)
    monkeypatch.setattr("ditlab.evaluation.features.own.STEPS", 60)
    for name in ("tuning", "finish"):
        for constant in ("FEWEST", "MOST", "BATCH"):
            monkeypatch.setattr(f"ditlab.auto.{name}.{constant}", 66)


def test_the_run_folder_has_the_name_of_the_data(images, monkeypatch):
    monkeypatch.chdir(images)
    assert default_run(".") == Path("runs") / images.name
    assert default_run(f"{images}/") == Path("runs") / images.name
    assert default_run("hf:me/otters") == Path("runs/hf-me/otters")


@pytest.mark.slow
def test_from_images_to_a_score(images, tmp_path, quick):
    out, console = tmp_path / "run", Console(quiet=True)
    first = train_folder(images, out, images=640, settings=TINY, console=console)
    assert first.score is not None
    assert first.score.held_out == 12
    assert first.score.classifier_accuracy == 1.0
    content = json.loads((out / "score.json").read_text())
    assert content["fd"] == first.score.fd
    assert {trial["guidance"] for trial in content["tuning"]} == {1.0, 1.5}
    assert load(out).defaults == first.sample
    assert read_toml(out / "recipe.toml")["sample"]["guidance"] == first.sample.guidance
    assert {"samples.png", "nearest.png", "report.html", "features.safetensors", "choices.json"} <= {
        file.name for file in out.iterdir()
    }
    again = train_folder(images, out, images=640, settings=TINY, console=console)
    assert again.pipe.config["images_seen"] == 640
    more = train_folder(images, out, images=704, settings=TINY, console=console)
    assert more.pipe.config["images_seen"] == 704


def test_a_folder_with_a_run_on_other_data(images, tmp_path):
    (tmp_path / "recipe.toml").write_text('[data]\nsource = "digits"\n')
    with pytest.raises(InputError, match=f"{tmp_path} holds a run on digits, not on {images}; give another folder"):
        train_folder(images, tmp_path, minutes=1)


def test_a_run_that_cannot_succeed_is_not_started_unless_the_user_agrees(capsys):
    asked = []
    answer = [False, True]

    def agree(text):
        asked.append(text)
        return answer[len(asked) - 1]

    text = "only about 1,000 training images in 2 minutes, of which nothing but colors is learned"
    with pytest.raises(InputError, match=f"^{text}; give 100 minutes or more$"):
        check_promising(1000, Budget(minutes=2), agree, Console())
    check_promising(1000, Budget(minutes=2), agree, Console())
    assert asked == [text, text]
    check_promising(10_000, Budget(minutes=2), agree, Console())
    check_promising(100_000, Budget(minutes=2), agree, Console())
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{text}; give 100 minutes or more for shapes",
        "about 10,000 training images in 2 minutes: the best that fits, with rough shapes",
    ]


def test_samples_of_a_text_model_have_captions_of_held_out_images():
    captions = ["a red apple", "a purple apple", "", "red", "a red apple on red", "?"]  # purple is an unknown word
    held_out = InMemory(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.zeros(6).long(), [], captions=captions)
    text = Text.for_data(held_out, {"captions": ["a red apple"]})
    pipe = SimpleNamespace(conditional=True, conditioner=text)
    drawn = conditions(pipe, held_out, 6)
    assert Counter(drawn) == {"a red apple": 3, "red": 3}
    assert drawn[:2] == drawn[2:4] == drawn[4:]
    nothing = InMemory(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), [], captions=["purple"])
    assert conditions(pipe, nothing, 2) == [None, None]


def test_samples_have_the_classes_of_all_held_out_images():
    """A folder lists its images class by class, and the held-out ones may lack a class."""
    names = list("abcdefgh")
    conditioner = SimpleNamespace(value=lambda label: names[label])
    pipe = SimpleNamespace(conditional=True, conditioner=conditioner, model=SimpleNamespace(classes=names))
    present = [name for name in names if name != "b"]
    held_out = InMemory(torch.zeros(70, 1, 8, 8, dtype=torch.uint8), torch.arange(70) // 10, present)
    for count in (14, 35, 70, 140):
        drawn = conditions(pipe, held_out, count)
        assert Counter(drawn) == dict.fromkeys(present, count // 7)
        assert [names[label] for label in mixed_labels(pipe, held_out, count)] == drawn


def test_what_is_said_of_the_data():
    captioned = choose.Facts("x", 10, (8, 8), True, True, 3, {}, True, "", captions=True)
    assert describe(captioned) == "10 images of 8x8 pixels, no classes, captions"
    few = choose.Facts("x", 10, (8, 8), True, True, 3, {"a": 9, "b": 1}, True, "")
    assert remarks(few) == [
        "10 images: the model will learn them by heart, and there is no score, because fewer than 200 images leave too "
        "few to hold out",
        "2 classes with fewer than 20 images (a, b): their samples will resemble the few images; add images, or merge "
        "classes",
    ]


@pytest.mark.slow
def test_equal_images_have_no_score(tmp_path, quick, capsys):
    for i in range(60):
        file = tmp_path / "gray" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 100).save(file)
    done = train_folder(tmp_path / "gray", tmp_path / "run", images=64, settings=TINY)
    assert (done.score, done.copies, done.sample.guidance) == (None, None, 1.0)
    printed = capsys.readouterr().err
    for what in ("there is no score", "memorization is not tested"):
        assert f"{what}: all 66 images have the same features; check the images\n" in printed


def test_ten_images_give_samples_and_no_score(tmp_path):
    for i in range(10):
        file = tmp_path / "ten" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 8), (20 * i, 0, 0)).save(file)
    settings = {"model": TINY["model"] | {"patch": 1}}
    done = train_folder(tmp_path / "ten", tmp_path / "run", images=64, settings=settings)
    assert (done.score, done.pipe.net.size) == (None, (8, 12))
    assert "score.json" not in {file.name for file in (tmp_path / "run").iterdir()}
    assert (tmp_path / "run" / "samples.png").exists()
