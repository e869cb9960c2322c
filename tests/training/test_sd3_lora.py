"""The recipe sd3-lora on a pipeline folder of Stable Diffusion 3 with small random weights."""

import pytest
import torch
from PIL import Image
from rich.console import Console
from sd3_folder import pipeline

import ditlab
from ditlab.checkpoints import convert
from ditlab.cli import app, import_commands
from ditlab.config.reader import find_recipe

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")
QUIET = Console(quiet=True)
FEW = {"images": 16, "batch": 8, "log_every": 8, "preview_every": 1000, "save_every": 8, "precision": "float32"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The pipeline, and a folder of images with captions."""
    path = tmp_path_factory.mktemp("sd3-lora")
    pipeline().save_pretrained(path / "sd3")
    (path / "photos").mkdir()
    for i in range(8):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (20, 16), name).save(path / "photos" / f"{i}.png")
        (path / "photos" / f"{i}.txt").write_text(f"a {name} square")
    words = ["encode", str(path / "photos"), "--captions", "--encoder", "sd3", "--out", str(path / "texts")]
    import_commands("encode")
    app([*words, "--encoder-options.model", str(path / "sd3")], result_action="return_value")
    return path


def recipe(home, **train):
    chosen = ditlab.Recipe.load("sd3-lora")
    settings = FEW | {"init_from": str(home / "sd3"), "device": "cpu", "compile": "never"} | train
    data = {"source": str(home / "photos"), "size": "16", "text_cache": str(home / "texts")}
    return chosen.override({"data": data, "train": settings, "optim": {"warmup": 0}, "sample": {"steps": 2}})


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.slow
def test_low_rank_updates_are_trained_and_loaded(home, tmp_path):
    assert "PLANNED, NOT RUN ON A GPU BY US" in find_recipe("sd3-lora").read_text()
    pipe = ditlab.train(recipe(home), tmp_path / "run", console=QUIET)
    again = ditlab.load(tmp_path / "run")
    names = changed(ditlab.load(home / "sd3").net.state_dict(), again.net.state_dict())
    assert "joint_blocks.0.x_block.attn2.qkv.weight" in names
    assert "final_layer.linear.weight" in names
    assert not any(name.startswith(("pos_embed", "x_embedder", "context_embedder")) for name in names)
    assert pipe.conditioner.encoder.config["kind"] == "sd3"
    image = again(["a red square"], seeds=0, negative_prompt="blue").images[0]
    assert image.size == (16, 16)


@pytest.mark.slow
def test_all_weights_are_trained_and_written_for_diffusers(home, tmp_path):
    pipe = ditlab.train(recipe(home, lora=0, lora_apart=False), tmp_path / "run", console=QUIET)
    names = changed(ditlab.load(home / "sd3").net.state_dict(), pipe.net.state_dict())
    assert names >= {"context_embedder.weight", "x_embedder.proj.weight", "joint_blocks.1.x_block.mlp.fc1.weight"}
    convert(pipe, tmp_path / "theirs", "diffusers")
    again = ditlab.load(tmp_path / "theirs").net.state_dict()
    assert not changed(pipe.net.state_dict(), again)


@pytest.mark.slow
def test_a_file_of_weights_takes_its_encoders_from_a_pipeline(home, tmp_path):
    convert(ditlab.load(home / "sd3"), tmp_path / "sd3.safetensors", "official")
    data = {
        "encoder": "sd3",
        "encoder_options": {"model": str(home / "sd3")},
        "autoencoder": str(home / "sd3"),
        "text_cache": "",
    }
    settings = recipe(home, init_from=str(tmp_path / "sd3.safetensors"), images=8).override({"data": data})
    pipe = ditlab.train(settings, tmp_path / "run", console=QUIET)
    assert pipe.conditioner.encoder.config["kind"] == "sd3"
    assert pipe.autoencoder.config["shift"] == 0.0609
