"""The recipes for GPUs on tiny stand-ins: a folder, a published autoencoder and a published DiT with small sizes.

Only sizes, lengths and paths are overridden.
"""

import json

import pytest
import torch
from helpers import perturbed, tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.autoencoders import KL
from ditlab.autoencoders.io import load_autoencoder
from ditlab.checkpoints import convert
from ditlab.config.reader import find_recipe
from ditlab.config.sections import Data
from ditlab.data import open_dataset
from ditlab.data.latents.encode import encode
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM

TABLE = "y_embedder.embedding_table.weight"
QUIET = Console(quiet=True)
KL_CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 8], "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1,
}  # fmt: skip
FEW = {"images": 24, "log_every": 8, "preview_every": 1000, "save_every": 1000, "device": "cpu", "compile": "never"}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A published DiT of two blocks with its autoencoder, in diffusers' layout, and the cache of a folder of images."""
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("stand-ins")
    torch.manual_seed(0)
    objective = Objective(DDPM(), "eps", learn_variance=True)
    pipe = tiny_pipeline(classes=1000, channels=4, learn_variance=True, objective=objective, frequency_shift=1)
    pipe.autoencoder = perturbed(KL(KL_CONFIG, scale=0.18215)).eval().requires_grad_(False)
    convert(pipe, home / "DiT-XL-2-256", "diffusers")
    for name in ("class 5", "otter"):
        (home / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.effect_noise((20, 16), 40 + 20 * i).convert("RGB").save(home / "photos" / name / f"{i}.png")
    photos, autoencoder = str(home / "photos"), load_autoencoder(home / "DiT-XL-2-256")
    encode(open_dataset(photos, Data(size="16")), photos, autoencoder, home / "cache", QUIET)
    return home


def recipe(name, home, images=24, **sections):
    """A recipe of the package with small sizes."""
    chosen = ditlab.Recipe.load(name)
    assert "PLANNED, NOT RUN ON A GPU BY US" in find_recipe(name).read_text()
    sizes = {"data": {"source": str(home / "cache")}, "optim": {"warmup": 0}, "sample": {"steps": 2}}
    sizes["train"] = FEW | {"images": images, "batch": 8, "precision": "float32"}
    if chosen.train.init_from:
        sizes["train"]["init_from"] = str(home / chosen.train.init_from.partition("/")[2])
    return chosen.override({key: sizes.get(key, {}) | sections.get(key, {}) for key in sizes | sections})


def weights(folder):
    return ditlab.load(folder).net.state_dict()


def stopped_and_resumed(name, home, out, **sections):
    """Train to the end, and the same run with a stop in between: the weights are equal."""
    pipe = ditlab.train(recipe(name, home, **sections), out / "whole", console=QUIET)
    ditlab.train(recipe(name, home, **sections), out / "run", console=QUIET, callbacks=[Stop()])
    assert ditlab.load(out / "run").config["images_seen"] == 8
    ditlab.train(recipe(name, home, **sections), out / "run", console=QUIET)
    whole, resumed = weights(out / "whole"), weights(out / "run")
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [8, 16, 24]
    return pipe, whole


class Stop:
    def on_log(self, seen, values):
        return True


def check_samples(run):
    """The saved model decodes samples with the autoencoder that it was saved with."""
    images = ditlab.load(run)([0, 1], seeds=[0, 1], steps=2).images
    assert [image.size for image in images] == [(16, 16)] * 2


@pytest.mark.slow
def test_a_folder_on_latents_of_a_published_autoencoder(stand_ins, tmp_path):
    small = {"model": {"width": 32, "depth": 2, "heads": 2}}
    pipe, trained = stopped_and_resumed("gpu-256-latent", stand_ins, tmp_path, **small)
    assert pipe.net.config["name"] == "DiT-B/2"
    assert all(pipe.net.config[key] for key in ("qk_norm", "rms_norm", "swiglu", "rope"))
    assert (pipe.shape, pipe.classes) == ((4, 8, 8), ["class 5", "otter"])
    assert {"blocks.0.mlp.w12.weight", "blocks.1.attn.q_norm.weight"} <= trained.keys()
    assert trained["blocks.0.adaLN_modulation.1.weight"].abs().max() > 0  # zero at the start
    check_samples(tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_all_weights(stand_ins, tmp_path):
    pipe, trained = stopped_and_resumed("finetune-dit-xl2", stand_ins, tmp_path)
    source = weights(stand_ins / "DiT-XL-2-256")
    assert (pipe.objective.process, pipe.objective.target, pipe.net.learn_variance) == (DDPM(), "eps", True)
    assert pipe.net.config["frequency_shift"] == 1
    changed = {key for key, value in trained.items() if key != TABLE and not torch.equal(value, source[key])}
    assert changed == trained.keys() - {TABLE, "pos_embed"}
    assert trained[TABLE].shape == (3, 32)
    check_samples(tmp_path / "run")


@pytest.mark.slow
def test_fine_tuning_with_low_rank_updates(stand_ins, tmp_path):
    _, trained = stopped_and_resumed("finetune-dit-xl2-lora", stand_ins, tmp_path)
    source = weights(stand_ins / "DiT-XL-2-256")
    changed = {key for key, value in trained.items() if key != TABLE and not torch.equal(value, source[key])}
    layers = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "adaLN_modulation.1")]
    whole = ["final_layer.linear.weight", "final_layer.linear.bias"]
    assert changed == {f"{layer}.weight" for layer in [*layers, "final_layer.adaLN_modulation.1"]} | {*whole}
    update = trained["blocks.0.attn.qkv.weight"] - source["blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-3) <= 16
    checkpoint = next((tmp_path / "run" / "checkpoints").iterdir())
    assert not (checkpoint / "model.safetensors").exists()
    # Rank 16 beside qkv, proj and modulation of two blocks and beside the modulation of the head; table and head whole.
    values = 2 * 16 * (32 + 96 + 32 + 32 + 32 + 192) + 16 * (32 + 64) + 3 * 32 + 32 * 32 + 32
    assert 4 * values < (checkpoint / "adapter.safetensors").stat().st_size < 4 * values + 8_000
    check_samples(tmp_path / "run")
