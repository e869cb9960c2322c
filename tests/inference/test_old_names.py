"""Names of version 0.1 in Python: accepted for one release, with a warning."""

import pytest
import torch
from helpers import tiny_pipeline

from ditlab import InputError


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("grid", "schedule", "cosine"), ("interval", "guidance_interval", (0.1, 0.5)), ("quality", "preset", "draft")],
)
def test_settings_of_sampling(old, new, value):
    pipe = tiny_pipeline()
    wanted = pipe([0, 1], guidance=2.0, output_type="pt", **{new: value}).images
    with pytest.warns(FutureWarning, match=f"{old} is now called {new}"):
        assert torch.equal(pipe([0, 1], guidance=2.0, output_type="pt", **{old: value}).images, wanted)


def test_methods_of_a_pipeline():
    pipe = tiny_pipeline()
    with pytest.warns(FutureWarning, match="conditioner.encode"):
        assert pipe.labels(["class 2", None, 1]).tolist() == [2, 3, 1]
    with pytest.warns(FutureWarning, match="Pipeline.resolve"):
        settings = pipe.preset("draft")
    assert settings == {"sampler": "ab4", "steps": 5, "schedule": "uniform"}


def test_license_under_two_names():
    with pytest.raises(InputError, match="licence and license are the same setting"):
        tiny_pipeline().push_to_hub("me/otters", licence="mit", license="mit")


def test_sections_of_a_recipe_where_they_were():
    from ditlab import Recipe, config

    recipe = config.Recipe(config.Model("DiT-S/4", width=32), train=config.Train(images=64))
    assert config.Recipe is Recipe
    assert (recipe.model.width, recipe.train.images, config.Sample().steps) == (32, 64, 20)
    with pytest.raises(AttributeError, match=r"ditlab\.config"):
        config.Recipes  # noqa: B018
