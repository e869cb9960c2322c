"""Flux.1 in the layouts of Black Forest Labs and of diffusers, and its pipeline against diffusers'."""

import json

import numpy as np
import pytest
import torch
from flux_folder import pipeline
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.checkpoints import convert
from ditlab.checkpoints.diffusers import outline
from ditlab.core.errors import InputError
from ditlab.core.types import TextShape

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
PROMPT = "a red apple on a blue square"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def folder(request, tmp_path_factory):
    """The folder, diffusers' pipeline, and whether it reads the guidance scale."""
    path, theirs = tmp_path_factory.mktemp("flux") / "pipeline", pipeline(guidance=request.param)
    theirs.save_pretrained(path)
    theirs.set_progress_bar_config(disable=True)
    return path, theirs, request.param


@pytest.fixture(scope="module")
def pipe(folder):
    return ditlab.load(folder[0], size=(8, 8))


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in second
    )


@pytest.mark.slow
def test_what_is_read(folder, pipe):
    constants = pipe.autoencoder.config
    assert (pipe.shape, constants["scale"], constants["shift"]) == ((16, 8, 8), 0.3611, 0.1159)
    assert ditlab.load(folder[0]).shape == (16, 128, 128)
    defaults = (pipe.defaults.steps, pipe.defaults.sampler, pipe.defaults.schedule, pipe.defaults.guidance)
    assert defaults == ((28, "euler", "flux", 3.5) if folder[2] else (4, "euler", "uniform", 1.0))
    assert pipe.conditioner.encoder.shape == pipe.net.text == TextShape(512, 24, pooled=20)
    assert pipe.net.inputs == (("scale",) if folder[2] else ())
    assert pipe.resolve(steps=5).evaluations == 5


@pytest.mark.slow
def test_the_same_image_as_diffusers(folder, pipe):
    options = {"num_inference_steps": 5, "guidance_scale": 3.5}
    theirs = folder[1](
        PROMPT, height=16, width=16, generator=torch.Generator().manual_seed(3), output_type="np", **options
    ).images[0]
    if not folder[2]:
        options["guidance_scale"] = 1.0  # that of diffusers has no effect
    latents = pipe([PROMPT], seeds=[3], output_type="latent", **options).images
    constants = pipe.autoencoder.config
    with torch.no_grad():
        ours = pipe.autoencoder.pictures(latents / constants["scale"] + constants["shift"])[0]
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    assert ours.std() > 0.1
    assert np.abs(ours - theirs).max() < 1e-4
    image = np.asarray(pipe([PROMPT], seeds=[3], **options).images[0])
    assert np.abs(image - theirs * 255).max() < 0.51


def test_guidance_is_an_input(folder, pipe):
    options = {"seeds": [3], "steps": 2, "output_type": "latent"}
    images = pipe([PROMPT], guidance=3.5, **options).images
    if not folder[2]:
        assert pipe.resolve(steps=5, guidance=3.5).evaluations == 10
        return
    assert (pipe([PROMPT], guidance=1.5, **options).images - images).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"guidance is 0\.5, but this model takes guidance 1 to 100; give 1"):
        pipe([PROMPT], guidance=0.5, **options)
    with pytest.raises(InputError, match="guidance built in, so that negative_prompt has no effect; leave it out"):
        pipe([PROMPT], negative_prompt="square", **options)


def test_another_size_has_the_image_of_diffusers(folder, pipe):
    options = {"num_inference_steps": 2, "guidance_scale": 3.5 if folder[2] else 1.0}
    theirs = folder[1](
        PROMPT, height=12, width=20, generator=torch.Generator().manual_seed(3), output_type="np", **options
    ).images[0]
    if not folder[2]:
        options |= {"schedule": "shifted", "shift": 1.0}  # diffusers has the same shift for every size
    image = np.asarray(pipe([PROMPT], seeds=[3], size=(12, 20), **options).images[0])
    assert np.abs(image - theirs * 255).max() < 0.51


def test_layouts_are_written_bit_for_bit(folder, pipe, tmp_path):
    state = load_file(folder[0] / WEIGHTS)
    convert(pipe, tmp_path / "theirs", "diffusers")
    assert equal(load_file(tmp_path / "theirs" / WEIGHTS), state)
    for file in ("transformer/config.json", "scheduler/scheduler_config.json", "vae/config.json"):
        before, after = (json.loads((place / file).read_text()) for place in (folder[0], tmp_path / "theirs"))
        assert {key: before[key] for key in before.keys() & after.keys() - {"_class_name"}}.items() <= after.items()
    convert(pipe, tmp_path / "file.safetensors", "official")
    published = load_file(tmp_path / "file.safetensors")
    assert published["single_blocks.1.linear2.weight"].shape == (32, 160)
    halves = {key: value.to(torch.bfloat16) for key, value in published.items()}
    save_file({f"model.diffusion_model.{key}": value for key, value in halves.items()}, tmp_path / "half.safetensors")
    again = ditlab.load(tmp_path / "file.safetensors")
    assert equal(dict(again.net.state_dict()), dict(pipe.net.state_dict()))
    assert (again.objective, again.net.inputs) == (pipe.objective, pipe.net.inputs)
    convert(ditlab.load(tmp_path / "half.safetensors"), tmp_path / "back.safetensors", "official")
    assert equal(load_file(tmp_path / "back.safetensors"), halves)
    save_file(state, tmp_path / "alone.safetensors")
    assert equal(dict(ditlab.load(tmp_path / "alone.safetensors").net.state_dict()), dict(pipe.net.state_dict()))


def test_it_is_saved_and_loaded_as_a_model_of_ditlab(pipe, tmp_path):
    pipe.save(tmp_path / "model")
    again = ditlab.load(tmp_path / "model")
    options = {"seeds": [3], "steps": 2, "output_type": "latent"}
    assert torch.equal(again([PROMPT], **options).images, pipe([PROMPT], **options).images)


def test_another_dynamic_shift_is_rejected(folder, tmp_path):
    for part in ("transformer", "vae"):
        (tmp_path / part).symlink_to(folder[0] / part)
    (tmp_path / "scheduler").mkdir()
    content = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "max_shift": 0.9}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"a dynamic shift with max_shift 0\.9; only that of Flux\.1 is supported"):
        ditlab.load(tmp_path)


def test_models_on_the_hub_are_described_by_their_names():
    dev, schnell = outline("black-forest-labs/FLUX.1-dev"), outline("black-forest-labs/FLUX.1-schnell")
    assert dev.objective.inputs == dev.net.inputs == ("scale",)
    assert schnell.objective.inputs == schnell.net.inputs == ()
    assert dev.net.text == schnell.net.text == TextShape(512, 4096, pooled=768)
    assert outline("black-forest-labs/FLUX.1-Fill-dev") is None


def captioned(folder):
    """The data section of a recipe, with eight images and their captions."""
    folder.mkdir()
    for i in range(8):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (16, 16), name).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {name} square")
    return {"source": str(folder), "size": "16", "conditioner": "text"}


def test_initial_weights_do_not_learn_a_scale(tmp_path):
    train = {"objective": "guidance-input", "images": 8, "batch": 8, "compile": "never", "device": "cpu"}
    recipe = {"model": {"name": "Flux-XS/4"}, "data": captioned(tmp_path / "data"), "train": train}
    with pytest.raises(InputError, match=r"the recipe starts from initial weights; set train\.init_from to one"):
        ditlab.train(recipe, tmp_path / "run", console=Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 2])
def test_it_is_fine_tuned_and_keeps_reading_the_scale(folder, tmp_path, lora):
    if lora:
        pytest.importorskip("peft")
    recipe = {
        "data": captioned(tmp_path / "data"),
        "train": {"init_from": str(folder[0]), "images": 16, "batch": 8, "log_every": 8, "lora": lora, "device": "cpu"}
        | {"precision": "float32", "preview_every": 1000, "save_every": 8, "compile": "never", "label_dropout": 0.0},
        "sample": {"sampler": "euler", "schedule": "flux", "steps": 2},
    }
    source = ditlab.load(folder[0])
    pipe = ditlab.train(recipe, tmp_path / "run", console=Console(quiet=True))
    assert type(pipe.objective) is type(source.objective)
    assert (pipe.objective.process, pipe.net.inputs) == (source.objective.process, source.net.inputs)
    before, after = source.net.state_dict(), ditlab.load(tmp_path / "run").net.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "blocks.0.x_block.attn.qkv.weight" in changed
    assert "blocks.1.attn.proj.weight" in changed
    assert ("context_embedder.weight" in changed) == (not lora)
    again = ditlab.load(tmp_path / "run")
    assert again(["a red square"], seeds=0, guidance=3.5 if folder[2] else 1.0).images[0].size == (16, 16)
