"""The recipes for diffusers: their models convert, and diffusers computes the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import perturbed, tiny_pipeline

import ditlab
from ditlab.autoencoders import KL
from ditlab.checkpoints import convert
from ditlab.checkpoints.diffusers import transformer_config
from ditlab.config.reader import find_recipe, parse_recipe, read_toml, shipped_recipes
from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Linear
from ditlab.training.checks import check_recipe
from ditlab.training.setup import build

RECIPES = ("digits-diffusers", "own-latent-diffusers")
KL_CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8], "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "layers_per_block": 1,
}  # fmt: skip


def recipe(name):
    path = find_recipe(name)
    return parse_recipe(read_toml(path), source=str(path))


def untrained(name):
    """The model of a recipe at its first step, with weights that all matter."""
    torch.manual_seed(0)
    latent = name.startswith("own")
    images = torch.zeros(20, 3 if latent else 1, 8, 8, dtype=torch.uint8)
    data = InMemory(images, torch.arange(20) % 10, [f"class {i}" for i in range(10)])
    autoencoder = (
        perturbed(KL(KL_CONFIG, scale=0.5)).eval().requires_grad_(False) if latent else ditlab.autoencoders.Pixel()
    )
    pipe = build(recipe(name), data, autoencoder, torch.device("cpu"))
    perturbed(pipe.net.eval(), 0.02)
    return pipe


@pytest.mark.parametrize("name", [RECIPES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES[1:])])
def test_the_recipe_is_valid_and_its_model_fits(name):
    assert name in shipped_recipes()
    check_recipe(recipe(name))
    pipe = untrained(name)
    parameters = sum(value.numel() for value in pipe.net.parameters())
    assert parameters == {"digits-diffusers": 5_261_840, "own-latent-diffusers": 7_628_816}[name]
    assert (pipe.net.classes, len(pipe.classes)) == (1000, 10)
    assert pipe.net.config["frequency_shift"] == 1


@pytest.mark.parametrize("name", [RECIPES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in RECIPES[1:])])
def test_the_transformer_of_diffusers_gives_the_same_numbers(name, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipe = untrained(name)
    convert(pipe, tmp_path / "out", "diffusers")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    scheduler.set_timesteps(20)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    x = torch.stack([torch.randn(pipe.shape, generator=seed) for seed in seeds])
    y, null = torch.tensor([3, 7]), torch.full((2,), 1000)
    with torch.no_grad():
        for t in scheduler.timesteps:
            good, bad = (theirs(x, t.expand(2), label).sample for label in (y, null))
            x = scheduler.step(bad + 1.5 * (good - bad), t, x).prev_sample
    ours = pipe([3, 7], seeds=[5, 6], steps=20, output_type="latent").images  # sampler and guidance of the recipe
    assert ((ours - x).norm() / x.norm()).item() < 1e-5


@pytest.mark.slow
def test_the_pipeline_of_diffusers_generates_the_same_images(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pipe = untrained("own-latent-diffusers")
    convert(pipe, tmp_path / "out", "diffusers")
    theirs = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        theirs.get_label_ids(["class 3", "class 7"]), guidance_scale=1.5, num_inference_steps=20, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)],
    ).images  # fmt: skip
    latents = pipe(["class 3", "class 7"], seeds=[5, 6], steps=20, output_type="latent").images
    with torch.no_grad():
        decoded = pipe.autoencoder.net.decode(latents / pipe.autoencoder.config["scale"]).sample
    ours = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() < 1e-5
    assert ours.std() > 0.01


@pytest.mark.parametrize(
    ("pipe", "words"),
    [
        (
            lambda: tiny_pipeline(qk_norm=True, objective=Objective(DDPM(), "eps")),
            "diffusers' DiT has qk_norm = False only, and this model True",
        ),
        (
            lambda: tiny_pipeline(),
            "diffusers' DiTPipeline needs the target eps on the ddpm process, and this model has velocity on linear",
        ),
        (  # a SiT, which has an official layout
            lambda: replace(tiny_pipeline(), objective=Objective(Linear(-1.0, 1.0), "velocity")),
            "diffusers' DiTPipeline needs the target eps on the ddpm process, and this model has velocity on linear",
        ),
    ],
    ids=["qk-norm", "flow", "SiT"],
)
def test_other_models_are_told_what_to_train(pipe, words, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(pipe(), tmp_path / "out", "diffusers")
    assert str(caught.value) == (
        f"{words}; convert to ditlab, or train a model that diffusers can run: see the recipes digits-diffusers and "
        "own-latent-diffusers"
    )
    assert not (tmp_path / "out").exists()


def test_a_network_that_reads_text_has_no_layout_of_diffusers():
    with pytest.raises(InputError, match=r"^diffusers' DiT reads no text; convert to ditlab instead$"):
        transformer_config({"name": "DiT-S/2", "size": (8, 8), "classes": 0, "text_length": 5})
