"""The command `ditlab train`, with and without a recipe."""

import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    (tmp_path / "colors").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "colors" / "0.png")
    return tmp_path / "colors"


@pytest.fixture
def called(monkeypatch):
    calls = []

    class Done:
        def lines(self, command):
            return [f"{command} is done"]

    def train_folder(source, out, *, settings, agree, console, **length):
        calls.append((source, str(out), length, settings, agree("?")))
        return Done()

    monkeypatch.setattr("ditlab.auto.train_folder", train_folder)
    return calls


def test_settings_on_the_command_line_are_not_chosen(ditlab, images, called):
    printed = ditlab(
        "train", str(images), "--hours", "0.5", "--train.batch", "128", "--model.width=64", "--classes", "4"
    )
    given = {"train": {"batch": 128}, "model": {"width": 64}, "data": {"classes": 4}}
    assert called == [(str(images), "runs/colors", {"minutes": 30.0}, given, False)]
    assert printed.out == "ditlab is done\n"


def test_a_default_that_the_user_gives_is_kept(ditlab, images, called):
    ditlab("train", str(images), "--images", "5", "--optim.lr", "1e-4", "--out", "here", "--yes")
    assert called == [(str(images), "here", {"images": 5}, {"optim": {"lr": 1e-4}}, True)]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--minutes", "1", "--images", "5"], "--minutes and --images are both lengths; give one of them"),
        (["--minutes", "0"], "--minutes 0; give more than 0"),
    ],
)
def test_lengths(ditlab, images, options, line):
    assert ditlab("train", str(images), *options, code=2).err == f"ditlab: {line}\n"


def test_neither_recipe_nor_data(ditlab):
    line = ditlab("train", "no-such-thing", code=2).err
    assert line.startswith('ditlab: no recipe "no-such-thing"; give a folder of images, the path of a .toml file')


@pytest.mark.slow
def test_the_length_of_a_recipe(ditlab, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("ditlab.training.api.train_only", lambda recipe, out, **options: seen.append(recipe.train))
    ditlab("train", "digits", "--minutes", "2", "--out", str(tmp_path / "a"))
    ditlab("train", "digits", "--images", "640", "--out", str(tmp_path / "a"))
    assert [(length.minutes, length.images == 640) for length in seen] == [(2.0, False), (0.0, True)]
