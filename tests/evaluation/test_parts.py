"""Evaluation of a model that was trained with `held_out`: the parts of its data are read as in training."""

import pytest
import torch
from helpers import tiny_pipeline, two_classes
from rich.console import Console

from ditlab.autoencoders import Pixel
from ditlab.config.sections import Model, Preparation, Recipe
from ditlab.data import InMemory, open_dataset
from ditlab.evaluation.features import open_features
from ditlab.evaluation.features.own import train_features
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import make_reference
from ditlab.training.setup import build

QUIET = Console(quiet=True)
DIVIDED = Preparation(held_out=0.2)
SETTINGS = {"count": 4, "steps": 1, "metrics": ("frechet",), "device": "cpu", "features": "own"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images in two classes, a model that was trained on a part of them, and features."""
    place = tmp_path_factory.mktemp("parts")
    two_classes(place / "photos")
    pipe = tiny_pipeline(classes=2)
    pipe.config |= {"recipe": {"data": {"source": str(place / "photos"), "held_out": 0.2}}, "held_out": 0.2}
    pipe.save(place / "model")
    train_features(open_dataset(str(place / "photos"), DIVIDED), place / "own.safetensors", QUIET, steps=1)
    return place


def test_a_part_is_divided_as_in_training(place):
    def score(reference):
        weights = str(place / "own.safetensors")
        return evaluate(str(place / "model"), reference=reference, feature_weights=weights, **SETTINGS)

    val = open_dataset(f"{place / 'photos'}:val", DIVIDED)
    assert 4 <= len(val) <= 14
    part = score(f"{place / 'photos'}:val")
    made = make_reference("", val, open_features("own", str(place / "own.safetensors")), QUIET)
    about = part.protocol["reference"]
    assert (about["hash"], about["count"]) == (made.about["hash"], len(val))
    assert about["preprocessing"]["held_out"] == 0.2
    assert score(str(place / "photos")).protocol["reference"]["count"] == 40  # all images, if no part is named
    assert score(f"{place / 'photos'}:train").protocol["reference"]["count"] == 40 - len(val)
    assert score(f"{place / 'photos'}:val").folder == part.folder


def test_a_model_records_the_share():
    data = InMemory(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), [])
    recipe, cpu = Recipe(model=Model("DiT-S/2", width=32, depth=1, heads=2)), torch.device("cpu")
    assert "held_out" not in build(recipe, data, Pixel(), cpu).config
    data.preprocessing = {"held_out": 0.2, "split": "train"}  # also that of a latent cache
    assert build(recipe, data, Pixel(), cpu).config["held_out"] == 0.2
