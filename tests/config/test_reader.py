import math
import tomllib
from pathlib import Path

import pytest

from ditlab.config.reader import check_keys, find_recipe, parse_recipe, read_toml, to_tables, to_toml
from ditlab.config.sections import Evaluation, Recipe
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
