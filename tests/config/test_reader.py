import copy
import dataclasses
import math
import os
import pickle
import tomllib
from pathlib import Path

import pytest

from ditlab.backbones import BACKBONES, create, name_of
from ditlab.config.evaluation import Evaluation
from ditlab.config.options import MODEL, help_of, model_options, signature_of
from ditlab.config.reader import check_keys, find_recipe, parse_recipe, read_toml, to_tables, to_toml
from ditlab.config.sections import Model, Recipe
from ditlab.core.errors import InputError


def test_file_and_override_meet():
    recipe = parse_recipe({"optim": {"lr": 3e-4, "betas": [0.9, 0.95]}, "model": {"depth": 7}}, ["--optim.lr=2e-4"])
    assert recipe.optim.lr == 2e-4
    assert recipe.optim.betas == (0.9, 0.95)
    assert recipe.model.depth == 7
    assert recipe.train == Recipe().train


def test_toml_round_trip():
    recipe = parse_recipe(
        {
            "model": {"name": "DiT-B/4", "qk_norm": True},
            "optim": {"clip": math.inf},
            "data": {"source": 'odd "name" \\ é 😀 \x7f'},
        }
    )
    assert parse_recipe(tomllib.loads(to_toml(to_tables(recipe)))) == recipe


@pytest.mark.parametrize(
    ("tables", "overrides", "words"),
    [
        ({"optim": {"lrr": 1.0}}, [], ["optim.lrr", "optim.lr"]),
        ({}, ["--optim.lrr=1"], ["--optim.lrr", "--optim.lr"]),
        ({}, ["--optim.lr=fast"], ["--optim.lr", "fast", "float"]),
        ({"train": {"images": 12.5}}, [], ["train.images", "12.5", "whole number"]),
        ({"train": {"images": "many"}}, [], ["train.images", "many", "whole number"]),
        ({"optim": {"betas": [0.9]}}, [], ["betas", "2"]),
        ({"modell": {"name": "x"}}, [], ["modell", '"model"']),
        ({"model": {"widht": 3}}, [], ["model.widht from recipe", "model.width"]),
        ({}, ["--model.widht=3"], ["--model.widht", "--model.width"]),
        ({"model": {"width": "x"}}, [], ["model.width", "x", "whole number"]),
        ({"model": {"condition": "adalm"}}, [], ["model.condition", "adalm", "adaln-zero"]),
        ({"model": {"name": "nowhere:Net", "dim": 3}}, [], ["cannot import nowhere"]),
        ({"optim": 3}, [], ["optim is 3", "[optim]"]),
        ({"out": "elsewhere"}, [], ['"out"']),
    ],
)
def test_mistakes_get_one_line_with_key_and_remedy(tables, overrides, words):
    with pytest.raises(InputError) as caught:
        parse_recipe(tables, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_network_of_any_family_has_its_options():
    model = parse_recipe({"model": {"name": "U-DiT", "depths": [1, 2, 1], "cosine": False, "width": 1e2}}).model
    assert model == Model("U-DiT", depths=(1, 2, 1), cosine=False, width=100)
    assert (model.depth, model.options) == (None, {"depths": (1, 2, 1), "cosine": False, "width": 100})
    model = parse_recipe({"model": {"depth": 3}}, ["--model.name", "DiT", "--model.exits", "0.5", "1"]).model
    assert model == Model("DiT", exits=(0.5, 1.0))  # another network has none of the recipe's options
    assert parse_recipe({"model": {"depth": 3}}, ["--model.name=DiT-S/4"]).model == Model("DiT-S/4")


def test_models_are_values():
    model = Model("DiT", width=32, depth=None, exits=[0.5, 1.0])
    assert vars(model) == {"name": "DiT", "width": 32, "exits": (0.5, 1.0)}
    assert copy.deepcopy(model) == pickle.loads(pickle.dumps(model)) == model != Model("DiT", width=33)
    assert len({model, Model("DiT", exits=(0.5, 1.0), width=32)}) == 1
    assert repr(model) == "Model(name='DiT', width=32, exits=(0.5, 1.0))"
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.width = 3


OUTSIDE = '''
from typing import Literal
from ditlab.backbones.dit import DiT

class Net(DiT):
    """A family outside the package.

    Args:
        dim: channels of a token,
            on two lines.
        mode: one of two.
    """

    def __init__(self, *, size, channels, classes, learn_variance, dim: int, mode: Literal["a", "b"] = "a",
                 gates: tuple[int, ...] = (), scale: float | None = None, table: dict | None = None) -> None:
        more = {"depth": 2, "heads": 2, "patch": 2}
        super().__init__(
            size=size, channels=channels, classes=classes, learn_variance=learn_variance, width=dim, **more
        )
'''


@pytest.mark.slow
def test_a_class_outside_the_package_has_its_own_options(tmp_path, monkeypatch):
    (tmp_path / "outside_net.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    name = "outside_net:Net"
    options = {each.name: each for each in model_options(name)}
    assert list(options) == ["dim", "mode", "gates", "scale"]  # no table: TOML's would be a section
    assert options["dim"].help == "Channels of a token, on two lines."
    recipe = parse_recipe({"model": {"name": name, "dim": 32, "gates": [1, 0], "scale": 2}})
    assert recipe.model == Model(name, dim=32, gates=(1, 0), scale=2.0)
    assert parse_recipe(tomllib.loads(to_toml(to_tables(recipe)))) == recipe
    arguments = parse_recipe({}, [f"--model.name={name}", "--model.dim", "32", "--model.gates", "1", "0"])
    assert arguments.model == Model(name, dim=32, gates=(1, 0))
    for options, words in (
        ({"dims": 3}, ["model.dims", "model.dim"]),
        ({"dim": "x"}, ["model.dim", "x", "whole number"]),
        ({"dim": 32, "mode": "c"}, ["model.mode", "c", '"a", "b"']),
    ):
        with pytest.raises(InputError) as caught:
            parse_recipe({"model": {"name": name} | options})
        assert all(word in str(caught.value) for word in words), caught.value
    net = create(name, size=8, channels=3, classes=2, dim=32)
    assert create(**net.config | {"size": (8, 8)}).config == net.config
    assert net.config["name"] == name_of(type(net), net.config) == name
    del BACKBONES[name]


def test_source_text_and_signature_say_the_same():
    for family, kind in BACKBONES.items():
        imported = [*MODEL.options(family, signature_of(kind), help_of(kind))]
        assert {each.name for each in imported} == {each.name for each in model_options() if family in each.families}
        for each in imported:
            known = next(option for option in model_options() if option.name == each.name)
            assert known.hint == each.hint
            assert each.help
            assert each.help.rstrip(".") in known.help


def test_whole_numbers_keep_every_digit():
    assert parse_recipe({}, ["--train.images=9007199254740993"]).train.images == 9007199254740993


def test_large_numbers_may_be_written_as_floats():
    assert parse_recipe({}, ["--train.images=1e6"]).train.images == 1_000_000


def test_unreadable_recipes(tmp_path):
    with pytest.raises(InputError, match='did you mean "digits"'):
        find_recipe("digit")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\nname = 3")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML.*line 1"):
        read_toml(broken)
    with pytest.raises(InputError, match="cannot read recipe"):
        read_toml(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError) as error:
        read_toml(tmp_path / "pipe")
    assert str(error.value) == f"cannot read recipe {tmp_path}/pipe: not a regular file, such as a pipe or a device"


def test_every_shipped_recipe_is_valid():
    folder = find_recipe("digits").parent
    for path in folder.glob("*.toml"):
        assert isinstance(parse_recipe(read_toml(path), source=str(path)), Recipe)


def test_every_shipped_evaluation_is_valid():
    homes = Path(__file__).parents[2] / "recipes" / "evaluation"
    assert len(list(homes.glob("*.toml"))) >= 9
    for path in homes.glob("*.toml"):
        assert find_recipe(path.stem, "evaluation") == path
        settings = Evaluation(**check_keys(read_toml(path), str(path), Evaluation))
        assert settings.reference
        assert settings.expect is not None
        assert ("Not run by us" in path.read_text()) == (settings.features == "inception")
