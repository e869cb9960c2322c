import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import relative, tiny_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.autoencoders import KL, create_autoencoder
from ditlab.autoencoders.io import OLDER, WEIGHTS, fingerprint
from ditlab.checkpoints import convert, load_autoencoder, save_autoencoder
from ditlab.cli import main
from ditlab.core import weights
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM

ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 2,
}


@pytest.fixture
def theirs():
    """diffusers' own autoencoder with random weights, not those of a fresh one."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(**ARCHITECTURE, scaling_factor=0.18215).eval().requires_grad_(False)


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).byte()


def mean(theirs, pictures):
    return theirs.encode(pictures.float() / 127.5 - 1).latent_dist.mean


def ldm_names(state):
    """A state dict under the names of the original latent diffusion code."""
    out = {}
    for key, value in state.items():
        for part in ("encoder", "decoder"):
            key = key.replace(f"{part}.conv_norm_out", f"{part}.norm_out")
        for i in range(2):
            key = key.replace(f"down_blocks.{i}.resnets.", f"down.{i}.block.")
            key = key.replace(f"down_blocks.{i}.downsamplers.0.", f"down.{i}.downsample.")
            key = key.replace(f"up_blocks.{i}.resnets.", f"up.{1 - i}.block.")
            key = key.replace(f"up_blocks.{i}.upsamplers.0.", f"up.{1 - i}.upsample.")
            key = key.replace(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.")
        key = key.replace("conv_shortcut", "nin_shortcut")
        if "mid_block.attentions.0." in key:
            key = key.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            for new, old in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
                key = key.replace(f".{new}.", f".{old}.")
            value = value[..., None, None] if value.ndim == 2 else value
        out[f"first_stage_model.{key}"] = value
    return out


class TestReading:
    @pytest.mark.slow
    def test_folder(self, theirs, pictures, tmp_path):
        theirs.save_pretrained(tmp_path / "vae")
        for path in (tmp_path, tmp_path / "vae"):
            ours = load_autoencoder(path)
            assert relative(ours.encode(pictures)[:, :4], mean(theirs, pictures)) < 3e-6
            assert (ours.config["scale"], ours.config["shift"]) == (0.18215, 0.0)

    def test_constants_for_each_channel(self, theirs, tmp_path):
        theirs.register_to_config(latents_mean=[1, 2, 3, 4], latents_std=[1, 2, 4, 8], scaling_factor=2.0)
        theirs.save_pretrained(tmp_path)
        assert load_autoencoder(tmp_path).config["scale"] == [2.0, 1.0, 0.5, 0.25]
        assert load_autoencoder(tmp_path).config["shift"] == [1, 2, 3, 4]
        assert load_autoencoder(tmp_path, scale=3, shift=1).config["scale"] == 3

    def test_older_attention_names(self, theirs, pictures, tmp_path):
        theirs.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / WEIGHTS)
        back = {new: old for old, new in OLDER.items()}
        older = {}
        for key, value in tensors.items():
            for new, old in back.items():
                key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            older[key] = value
        assert older.keys() != tensors.keys()
        save_file(older, tmp_path / WEIGHTS)
        assert relative(load_autoencoder(tmp_path).encode(pictures)[:, :4], mean(theirs, pictures)) < 3e-6

    @pytest.mark.parametrize("names", ["diffusers", "original"])
    def test_single_file(self, theirs, pictures, tmp_path, names):
        state = theirs.state_dict()
        if names == "original":
            state = ldm_names(state) | {"model.diffusion_model.out.2.bias": torch.zeros(4)}
        save_file(state, tmp_path / "ae.safetensors")
        ours = load_autoencoder(tmp_path / "ae.safetensors")
        assert relative(ours.encode(pictures)[:, :4], mean(theirs, pictures)) < 3e-6
        assert ours.config["scale"] == 0.18215
        assert load_autoencoder(tmp_path / "ae.safetensors", scale=0.13025).config["scale"] == 0.13025

    def test_a_file_of_sixteen_channels_needs_a_scale(self, tmp_path):
        other = KL(ARCHITECTURE | {"latent_channels": 16})
        save_file({k.removeprefix("net."): v for k, v in other.state_dict().items()}, tmp_path / "ae.safetensors")
        with pytest.raises(InputError, match="does not contain the scale of its latents; give scale="):
            load_autoencoder(tmp_path / "ae.safetensors")
        assert load_autoencoder(tmp_path / "ae.safetensors", scale=0.36, shift=0.12).latent_channels == 16

    def test_other_things_are_rejected(self, theirs, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(InputError, match=r"holds no KL autoencoder \(its tensors are a, \.\.\.\)"):
            load_autoencoder(tmp_path / "a.safetensors")
        with pytest.raises(InputError, match=r"config.json is missing; give a model's folder"):
            load_autoencoder(tmp_path)
        theirs.save_pretrained(tmp_path)
        (tmp_path / WEIGHTS).unlink()
        with pytest.raises(InputError, match=f"{WEIGHTS} is missing; download the whole folder"):
            load_autoencoder(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
        with pytest.raises(InputError, match="holds a VQModel; give an AutoencoderKL"):
            load_autoencoder(tmp_path)


class TestWriting:
    @pytest.mark.parametrize("constants", [{"scale": 0.18215}, {"shift": [0.5, -1, 0, 2], "scale": [1, 2, 0.3, 5]}])
    def test_round_trip(self, pictures, tmp_path, constants):
        ours = KL(ARCHITECTURE, **constants).eval()
        again = load_autoencoder(save_autoencoder(ours, tmp_path / "a"))
        assert torch.equal(again.encode(pictures), ours.encode(pictures))
        assert again.config["scale"] == pytest.approx(ours.config["scale"], rel=1e-7)
        from diffusers import AutoencoderKL

        theirs = AutoencoderKL.from_pretrained(tmp_path / "a")
        assert relative(mean(theirs, pictures), ours.encode(pictures)[:, :4]) < 3e-6

    def test_folded_constants_give_the_same_images(self, pictures, tmp_path):
        ours = KL(ARCHITECTURE, shift=[0.5, -1, 0, 2], scale=[1, 2, 0.3, 5]).eval()
        folded = load_autoencoder(save_autoencoder(ours, tmp_path / "a", folded=True))
        assert (folded.config["shift"], folded.config["scale"]) == (0, 1)
        eps = torch.randn(2, 4, 8, 8)
        latents = [each.latents(each.encode(pictures), lambda like: eps) for each in (ours, folded)]
        assert relative(latents[1], latents[0]) < 1e-5
        assert (folded.decode(latents[0]).int() - ours.decode(latents[0]).int()).abs().max() <= 1


@pytest.fixture
def latent_model(theirs, tmp_path):
    """A small latent DiT as diffusers trains them, with its autoencoder."""

    def make(classes=3, **options):
        theirs.save_pretrained(tmp_path / "own-vae")
        objective = Objective(DDPM(), "eps", learn_variance=True)
        options = {"channels": 4, "learn_variance": True, "frequency_shift": 1, "size": 8} | options
        pipe = tiny_pipeline(classes=classes, objective=objective, **options)
        return ditlab.load(pipe.save(tmp_path / "model"), autoencoder=tmp_path / "own-vae")

    return make


class TestPipelines:
    def test_a_saved_model_keeps_its_autoencoder(self, latent_model, tmp_path):
        pipe = latent_model()
        again = ditlab.load(pipe.save(tmp_path / "again"))
        pictures = [each([0, 1], seeds=[0, 1], output_type="pt").images for each in (pipe, again)]
        assert pictures[0].shape == (2, 3, 16, 16)
        assert torch.equal(*pictures)

    @pytest.mark.slow
    def test_the_command_line_samples_with_a_custom_autoencoder(self, latent_model, tmp_path, capsys, monkeypatch):
        model = latent_model().save(tmp_path / "with")
        convert(ditlab.load(model), tmp_path / "a.pt", "official")
        foreign = [str(tmp_path / "a.pt"), "--heads", "2", "--autoencoder", str(tmp_path / "own-vae")]
        for arguments, file in (([str(model)], "class_0-seed1.png"), (foreign, "0-seed1.png")):
            monkeypatch.setattr(sys, "argv", ["ditlab", "sample", *arguments, "--labels", "0", "--seeds", "0-1"])
            out = tmp_path / f"out{len(arguments)}"
            sys.argv += ["--steps", "2", "--sampler", "ddim", "--out", str(out)]
            main()
            assert Image.open(out / file).size == (16, 16)

    def test_latents_of_other_channels_are_rejected(self, theirs, tmp_path):
        theirs.save_pretrained(tmp_path / "vae")
        with pytest.raises(InputError, match="latents of 4 channels and the network takes 3; give the autoencoder"):
            ditlab.load(tiny_pipeline(channels=3).save(tmp_path / "a"), autoencoder=tmp_path / "vae")

    @pytest.mark.slow
    @pytest.mark.parametrize(("classes", "scale"), [(1000, 3.0), (10, 1.0), (1001, 1.0)])
    def test_diffusers_generates_the_same_images(self, latent_model, tmp_path, classes, scale):
        # With guidance only at 1000 classes: DiTPipeline takes 1000 for the null label whatever the class count.
        from diffusers import DiTPipeline

        pipe = latent_model(classes)
        pipe.classes = [f"class {i}" for i in range(classes)]
        convert(pipe, tmp_path / "out", "diffusers")
        theirs = DiTPipeline.from_pretrained(tmp_path / "out")
        theirs.set_progress_bar_config(disable=True)
        assert theirs.labels["class 7"] == 7
        seeds = [3, 4]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        expected = theirs(
            theirs.get_label_ids(["class 7", f"class {classes - 1}"]),
            guidance_scale=scale,
            generator=generators,
            num_inference_steps=20,
            output_type="np",
        ).images
        drawn = pipe(
            ["class 7", classes - 1],
            seeds=seeds,
            sampler="ddim",
            grid="leading",
            num_inference_steps=20,
            guidance_scale=scale,
            output_type="latent",
        ).images
        with torch.no_grad():
            z = drawn / pipe.autoencoder.config["scale"]
            ours = (pipe.autoencoder.net.decode(z).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        assert np.abs(ours - expected).max() < 1e-4
        assert ours.std() > 0.01

    def test_their_folder_comes_with_its_autoencoder_and_names(self, latent_model, tmp_path):
        pipe = latent_model()
        convert(pipe, tmp_path / "out", "diffusers")
        again = ditlab.load(tmp_path / "out")
        assert again.classes == pipe.classes
        # A folder of diffusers has no sampling defaults; its pipeline guides with 4.
        a, b = (each([0, 2], seeds=[0, 1], guidance=4.0, output_type="pt").images for each in (pipe, again))
        assert torch.equal(a, b)

    def test_original_frequencies_survive_the_conversion_through_diffusers(self, latent_model, tmp_path):
        pipe = latent_model(frequency_shift=0)
        convert(pipe, tmp_path / "out", "diffusers")
        assert not ditlab.load(tmp_path / "out").net.config["frequency_shift"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_without_permission(tmp_path):
    folder = tiny_pipeline().save(tmp_path / "a")
    folder.chmod(0o700)
    code = f"import os, ditlab; load = ditlab.load; os.seteuid(65534); load({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"you have no permission to read {folder}; change its permissions" in done.stderr


def test_the_autoencoder_of_a_model_is_read_without_its_network(tmp_path, monkeypatch):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(kind="patch", picture_channels=1, latent_channels=2, stride=2, width=8, depth=1)
    pipe = replace(tiny_pipeline(channels=2), autoencoder=autoencoder.eval().requires_grad_(False))
    pipe.save(tmp_path / "model")
    opened = []
    read = weights.load_file
    monkeypatch.setattr(weights, "load_file", lambda file: opened.append(file.name) or read(file))
    (tmp_path / "model" / "model.safetensors").unlink()  # so that any other way to read it fails too
    again = load_autoencoder(tmp_path / "model")
    assert opened == ["autoencoder.safetensors"]
    assert fingerprint(again) == fingerprint(autoencoder)
