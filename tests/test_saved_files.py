"""A model folder and a run folder that version 0.1.0 wrote before the packages were laid out anew: both must go on."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import relative
from rich.console import Console

import ditlab
from ditlab.config.reader import parse_recipe, read_toml
from ditlab.training import train

SAVED = Path(__file__).parent / "golden" / "saved"
CLOSE = 1e-5  # of the norm: other CPUs add up in another order; on one machine the bits are equal


@pytest.fixture
def expected(golden):
    return golden("saved/expected")


def sampled(pipe, labels, seeds, **options):
    return pipe(labels, seeds=seeds, output_type="latent", **options).images


@pytest.mark.slow
def test_a_model_folder_loads_and_samples(expected):
    pipe = ditlab.load(SAVED / "model")
    labels, seeds = ["cat", 1, "otter", None], [5, 6, 7, 8]
    assert pipe.classes == ["cat", "dog", "otter"]
    assert relative(sampled(pipe, labels, seeds), expected["model.latent"]) < CLOSE
    assert relative(sampled(pipe.prepared("float32"), labels, seeds), expected["model.prepared"]) < CLOSE
    preset = sampled(pipe, ["cat", 1], 3, preset="dit-published", num_inference_steps=10)
    assert relative(preset, expected["model.preset"]) < CLOSE


def test_a_run_folder_samples_with_its_own_settings(expected):
    pipe = ditlab.load(SAVED / "run")
    assert relative(sampled(pipe, [3, "7", None], [0, 1, 2]), expected["run.latent"]) < CLOSE
    images = np.stack([np.array(image) for image in pipe([3, "7", None], seeds=[0, 1, 2]).images]).astype(int)
    assert np.abs(images - expected["run.images"].numpy()).max() <= 1


@pytest.mark.slow
def test_a_run_resumes_to_the_same_weights(expected, tmp_path):
    run = shutil.copytree(SAVED / "run", tmp_path / "run")
    recipe = parse_recipe(read_toml(run / "recipe.toml"))
    longer = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, images=2048))
    pipe = train(longer, run, console=Console(quiet=True))
    for name, value in pipe.net.state_dict().items():
        assert relative(value, expected[f"resumed.{name}"]) < CLOSE, name
