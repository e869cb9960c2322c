"""Settings without effect are refused, and numbers outside their range."""

import pytest
import torch
from rich.console import Console

from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.evaluation import Evaluation
from ditlab.config.fields import check_settings, unused_keys
from ditlab.config.reader import find_recipe, parse_recipe, read_toml, shipped_recipes
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.data import InMemory
from ditlab.diffusion.parametrizations import make_objective
from ditlab.evaluation.protocols import check
from ditlab.inference.plan import resolve
from ditlab.training import train
from ditlab.training.checks import check_recipe
from ditlab.training.resuming import differences


def refused(tables):
    with pytest.raises(InputError) as error:
        check_recipe(parse_recipe(tables))
    return str(error.value)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (
            {"diffusion": {"time": "uniform", "time_mean": 0.5}},
            'diffusion.time_mean is 0.5, but diffusion.time is "uniform", which has no mean; '
            'remove it or set diffusion.time to "logit-normal"',
        ),
        (
            {"diffusion": {"time": "uniform", "time_scale": 2.0}},
            'diffusion.time_scale is 2.0, but diffusion.time is "uniform", which has no scale; '
            'remove it or set diffusion.time to "logit-normal"',
        ),
        (
            {"optim": {"decay": 0.5}},
            'optim.decay is 0.5, but optim.schedule is "constant", which has no such share; '
            'remove it or set optim.schedule to "wsd"',
        ),
        (
            {"optim": {"decay": 0.5, "schedule": "cosine"}},
            'optim.decay is 0.5, but optim.schedule is "cosine", which has no such share; '
            'remove it or set optim.schedule to "wsd"',
        ),
        (
            {"train": {"layer_sync_weight": 1.0}},
            "train.layer_sync_weight is 1.0, but train.layer_sync is not set; remove it or set train.layer_sync",
        ),
        (
            {"train": {"class_map": "map.toml"}},
            'train.class_map is "map.toml", but train.init_from is not set; remove it or set train.init_from',
        ),
        ({"train": {"lora": 8}}, "train.lora is 8, but train.init_from is not set; remove it or set train.init_from"),
        ({"train": {"lora_apart": True}}, "train.lora_apart is true, but train.lora is 0; remove it or set train.lora"),
        (
            {"sample": {"guidance_interval": [0.2, 0.8]}},
            "sample.guidance_interval is [0.2, 0.8], but sample.guidance is 1.0, which disables guidance; "
            "remove it or set sample.guidance",
        ),
        (
            {"sample": {"guidance_channels": 3}},
            "sample.guidance_channels is 3, but sample.guidance is 1.0, which disables guidance; "
            "remove it or set sample.guidance",
        ),
        ({"data": {"max_skipped": 7}}, "data.max_skipped is 7.0; give a number from 0 to 1"),
        ({"data": {"max_skipped": -1}}, "data.max_skipped is -1.0; give a number from 0 to 1"),
        ({"sample": {"guidance": -1}}, "sample.guidance is -1.0; give a number that is not negative"),
        ({"sample": {"steps": 0}}, "sample.steps is 0; give 1 to 10000"),
        (
            {"sample": {"guidance": 2, "guidance_interval": [0.2, 7]}},
            "sample.guidance_interval is 7.0; give a number from 0 to 1",
        ),
        ({"sample": {"sampler": "ddim", "eta": 1.5}}, "sample.eta is 1.5; give a number from 0 to 1"),
        ({"sample": {"reuse": 0}}, "sample.reuse is 0; give 1 or more"),
        ({"optim": {"decay": 1.5, "schedule": "wsd"}}, "optim.decay is 1.5; give a number from 0 to 1"),
        ({"diffusion": {"time_mean": float("inf")}}, "diffusion.time_mean is inf; give a number from -10 to 10"),
    ],
)
def test_a_setting_without_effect_or_outside_its_range(tables, line):
    assert refused(tables) == line


def test_a_setting_that_is_used_is_accepted():
    for tables in (
        {"diffusion": {"time_mean": 0.5, "time_scale": 0.8}},
        {"optim": {"schedule": "wsd", "decay": 1.0}},
        {"train": {"layer_sync": [0, 2], "layer_sync_weight": 1.0}},
        {"train": {"init_from": "model", "lora": 8, "lora_apart": True, "class_map": "map.toml"}},
        {"sample": {"guidance": 1.5, "guidance_interval": [0.2, 0.8], "guidance_channels": 3}},
        {"sample": {"preset": "dit-published", "guidance_channels": 3}},  # the preset sets a scale
        {"data": {"max_skipped": 1.0}},
    ):
        recipe = parse_recipe(tables)
        check_recipe(recipe)
        assert unused_keys(recipe) == set()


def test_a_time_distribution_of_a_plug_in_may_use_mean_and_scale():
    recipe = parse_recipe({"diffusion": {"time": "noisy", "time_mean": 0.5, "time_scale": 2.0}})
    check_settings(recipe)
    assert (recipe.diffusion.time_mean, recipe.diffusion.time_scale) == (0.5, 2.0)
    assert unused_keys(recipe) == set()


@pytest.mark.parametrize("name", [*shipped_recipes()])
def test_recipes_of_the_package_have_no_setting_without_effect(name):
    recipe = parse_recipe(read_toml(find_recipe(name)))
    check_settings(recipe)
    assert unused_keys(recipe) == set()


def test_defaults_in_a_saved_recipe_are_no_settings_without_effect(tmp_path):
    recipe = Recipe().override({"diffusion": {"time": "uniform"}})
    text = recipe.save(tmp_path / "recipe.toml").read_text()
    assert "time_mean = 0.0" in text
    assert "decay = 0.2" in text
    check_recipe(Recipe.load(tmp_path / "recipe.toml"))


def test_a_run_of_an_earlier_version_resumes_without_the_setting():
    tables = {
        "diffusion": {"time": "uniform", "time_mean": 0.5},
        "train": {"lora_apart": True},
        "optim": {"decay": 0.5},
    }
    before = parse_recipe(tables)
    assert unused_keys(before) == {"diffusion.time_mean", "train.lora_apart", "optim.decay"}
    now = parse_recipe({"diffusion": {"time": "uniform"}})
    assert differences(before, now) == {}
    used = parse_recipe({"diffusion": {"time": "logit-normal", "time_mean": 0.5}})
    assert list(differences(used, now)) == ["diffusion.time", "diffusion.time_mean"]


def test_settings_of_an_autoencoder():
    with pytest.raises(InputError, match=r"^seed is -1; give 0 to 4294967295$"):
        check_settings(AutoencoderTraining(seed=-1))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"guidance": -1.0}, "guidance is -1.0; give a number that is not negative"),
        ({"eta": 2.0}, "eta is 2.0; give a number from 0 to 1"),
        ({"guidance_interval": (0.2, 5.0)}, "guidance_interval is 5.0; give a number from 0 to 1"),
        ({"steps": 0}, "steps is 0; give 1 to 10000"),
        ({"seed": -1}, "seed is -1; give 0 to 4294967295"),
        ({"within": 0.1}, "within is 0.1, but expect is not set; remove it or set expect"),
        ({"expect": 2.0, "within": -1.0}, "within is -1.0; give a number that is not negative"),
    ],
)
def test_settings_of_an_evaluation(settings, line):
    with pytest.raises(InputError) as error:
        check(Evaluation(reference="digits-held-out", **settings))
    assert str(error.value) == line


@pytest.mark.parametrize("conditional", [True, False])
def test_guidance_of_a_recipe_needs_classes(tmp_path, conditional):
    labels, names = (torch.arange(8) % 2, ["a", "b"]) if conditional else (torch.zeros(8, dtype=torch.long), [])
    data = InMemory(torch.arange(512).reshape(8, 1, 8, 8).byte(), labels, names)
    recipe = {
        "model": {"name": "DiT-S/4", "width": 16, "depth": 1, "heads": 2}, "sample": {"guidance": 1.5, "steps": 2},
        "train": {"images": 8, "batch": 8, "precision": "float32", "compile": "never", "device": "cpu"},
    }  # fmt: skip
    if conditional:
        assert train(recipe, tmp_path / "run", data=data, console=Console(quiet=True)).resolve().guidance == 1.5
        return
    with pytest.raises(InputError) as error:
        train(recipe, tmp_path / "run", data=data, console=Console(quiet=True))
    assert str(error.value) == (
        "sample.guidance is 1.5, but the data have no classes, so the model is unconditional; set sample.guidance to "
        "1, "
        "or give data with classes"
    )
    assert not (tmp_path / "run" / "recipe.toml").exists()


def test_guidance_settings_of_a_call_need_classes():
    objective = make_objective(Recipe().diffusion)
    for words, line in (
        (
            {"guidance_interval": (0.2, 0.8)},
            r"guidance_interval is \(0\.2, 0\.8\), but the model is unconditional; leave it",
        ),
        (
            {"guidance_channels": 3},
            "guidance_channels is 3, but the model is unconditional; leave it out or give a guide",
        ),
    ):
        with pytest.raises(InputError, match=line):
            resolve(words, objective, conditional=False)


def test_guidance_settings_of_a_call_need_guidance():
    objective = make_objective(Recipe().diffusion)
    for words, line in (
        (
            {"guidance_interval": (0.2, 0.8)},
            "guidance_interval is (0.2, 0.8), but guidance is 1, which disables it; "
            "leave guidance_interval out or set guidance",
        ),
        (
            {"guidance_channels": 3},
            "guidance_channels is 3, but guidance is 1, which disables it; leave guidance_channels out or set guidance",
        ),
    ):
        with pytest.raises(InputError) as error:
            resolve(words, objective)
        assert str(error.value) == line
        for scale in (1.0, 1.5):  # 1 for comparisons
            assert resolve(words | {"guidance": scale}, objective).guidance == scale
    assert resolve({"guidance_interval": (0.0, 1.0)}, objective).guidance == 1
