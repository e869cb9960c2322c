"""A leading ~ is the home folder wherever a path is given: after =, in recipes and in Python."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_args, get_origin

import numpy as np
import pytest
from helpers import tiny_pipeline
from PIL import Image

import ditlab as package
from ditlab.cli import import_commands
from ditlab.cli.terminal import app
from ditlab.config.evaluation import Evaluation
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Data, Train
from ditlab.config.values import File, Folder, Location
from ditlab.core.errors import InputError

TINY = """
[model]
name = "DiT-S/4"
width = 32
depth = 1
heads = 2
[data]
source = "~/pics"
[train]
images = 4
batch = 4
device = "cpu"
precision = "float32"
compile = "never"
[sample]
steps = 1
sampler = "euler"
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "pics").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), 50 * i, "u1")).save(tmp_path / "pics" / f"{i}.png")
    (tmp_path / "r.toml").write_text(TINY)
    return tmp_path


def hints(hint):
    """A type and all types in it."""
    yield hint
    for part in get_args(hint) if get_origin(hint) is not None else ():
        if not isinstance(part, str):
            yield from hints(part)


@pytest.mark.slow
def test_no_option_takes_a_path_as_it_is():
    """An argument that holds a plain `Path` would create a folder called ~."""
    import_commands("")
    seen = set()
    for name in (name for name in app if not name.startswith("-")):
        for argument in app[name].assemble_argument_collection():
            parts = [*hints(argument.field_info.annotation)]
            if Path in parts:
                assert {File, Folder} & {*parts}, f"{name} {argument.name}"
            seen |= {argument.field_info.name} if Location in parts else set()
    assert {"source", "model", "models", "autoencoder", "reference", "init_from", "class_map", "base"} <= seen


@pytest.mark.slow
def test_training_and_sampling_from_the_command_line(ditlab, home):
    ditlab("train", "~/r.toml", "--out=~/run")
    assert sorted(path.name for path in home.iterdir()) == ["pics", "r.toml", "run", "work"]
    ditlab("sample", "~/run", "--out=~/samples", "--seeds=0", "--device=cpu")
    assert (home / "samples" / "grid.png").exists()
    ditlab("data", "~/pics", "--sheet=~/sheet.png")
    assert (home / "sheet.png").exists()
    ditlab("convert", "~/run", "~/model", "--to=ditlab")
    assert "generates images of 8x8" in ditlab("info", "~/run").err
    assert (home / "model" / "config.json").exists()
    assert [*(home / "work").iterdir()] == []


@pytest.mark.slow
def test_an_unknown_home_folder(ditlab, home):
    line = "~nobody9/x: the home folder ~nobody9 is not known; give the whole path, or ./~nobody9/x for a file of this"
    line += " name"
    for words in (["--out=~nobody9/x"], ["--data.source=~nobody9/x"], ["--train.init-from", "~nobody9/x"]):
        option = words[0].partition("=")[0]
        assert ditlab("train", "~/r.toml", *words, code=2).err == f"ditlab: Invalid value for {option}: {line}\n"
    assert ditlab("data", "~nobody9/x", code=2).err == f"ditlab: SOURCE: {line}\n"


def test_recipes_and_settings_in_python(home):
    recipe = parse_recipe({"data": {"source": "~/pics", "autoencoder": "~/ae", "labels": "~/l.csv"}})
    data = recipe.data
    assert [data.source, data.autoencoder, data.labels] == [f"{home}/{name}" for name in ("pics", "ae", "l.csv")]
    recipe = parse_recipe({}, ["--train.init_from=~/base", "--train.class_map=~/m.toml"])
    assert (recipe.train.init_from, recipe.train.class_map) == (f"{home}/base", f"{home}/m.toml")
    assert Data(source="~/pics") == Data(source=f"{home}/pics")
    assert Train(init_from="~").init_from == str(home)
    assert Evaluation(reference="~/r.npz", base="~/b").reference == f"{home}/r.npz"
    with pytest.raises(InputError, match="the home folder ~nobody9 is not known"):
        Data(source="~nobody9/x")
    assert package.Recipe.load("~/r.toml").data.source == f"{home}/pics"


def test_calls_in_python(home):
    pipe = package.train("~/r.toml", "~/run")
    pipe.save("~/model")
    assert package.load("~/model").config["images_seen"] == 4
    tiny_pipeline(size=8)(0, seeds=[0], steps=1).save("~/image.png")
    assert (home / "image.png").exists()
    assert len(package.data.open_dataset("~/pics")) == 4
    assert [*(home / "work").iterdir()] == []


def test_labels_are_no_paths(ditlab, home):
    tiny_pipeline(size=8).save(home / "model")
    assert 'unknown class "~"' in ditlab("sample", "~/model", "--labels", "~", code=2).err


def test_every_settings_class_is_expanded_in_python():
    from ditlab.config import evaluation, sections
    from ditlab.config.values import Located

    for module in (evaluation, sections):
        for kind in vars(module).values():
            if is_dataclass(kind) and any(field.type is Location for field in fields(kind)):
                assert issubclass(kind, Located), kind
