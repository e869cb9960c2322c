"""Everything that computes on a device computes on one without 64-bit floating-point numbers, such as MPS."""

import copy
import json

import pytest
import torch
from accelerator import NAME, accelerator
from helpers import tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.autoencoders.io import load_autoencoder
from ditlab.backbones import create
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.reader import parse_recipe
from ditlab.data import open_dataset
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.diffusion.samplers import SAMPLERS
from ditlab.evaluation.features import open_features
from ditlab.inference.export import network_inputs
from ditlab.training import train
from ditlab.training.autoencoder import train_autoencoder

QUIET = Console(quiet=True)
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # it is none


MODERN = {"rms_norm": True, "swiglu": True, "rope": True, "qk_norm": True}
FAMILIES = {
    "DiT": {"width": 32, "depth": 1, "heads": 2, "patch": 2} | MODERN,
    "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    "U-ViT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiMSUM": {"width": 32, "depth": 1, "heads": 4, "patch": 2, "attention_every": 1},
    "FiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "FiTv2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiC": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer": {"width": 16, "heads": 2, "depths": [1, 2, 1], "patch": 1, "window": 4, "periodic": False},
}


def recipe(device, **settings):
    tables = {
        "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
        "data": {"source": "digits"},
        "optim": {"lr": 2e-3, "warmup": 16},
        "train": {"batch": 16, "precision": "float32", "ema": 0.9, "power_ema": [0.1], "layer_sync": [0, 1]}
        | {"log_every": 16, "preview_every": 32, "save_every": 16, "device": device, "images": 32, "compile": "never"}
        | settings,
        "sample": {"sampler": "euler", "steps": 2},
    }
    return parse_recipe(tables)


def test_the_device_refuses_what_mps_refuses():
    with accelerator():
        x = torch.ones(2, 2).to(NAME)
        assert (x @ x).cpu().tolist() == [[2, 2], [2, 2]]
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64, device=NAME)
        with pytest.raises(TypeError, match="float64"):
            x.copy_(torch.zeros(2, 2, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


@pytest.mark.slow
def test_a_run_trains_saves_and_resumes_there_as_on_the_cpu(tmp_path):
    train(recipe("cpu"), tmp_path / "cpu", console=QUIET)
    with accelerator() as mode:
        train(recipe(NAME, images=16), tmp_path / "device", console=QUIET)
        train(recipe(NAME), tmp_path / "device", console=QUIET, changes=True)
        assert mode.operations > 500
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("cpu", "device")
    ]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    a, b = (ditlab.load(tmp_path / run)([3], seeds=[0], output_type="pt").images for run in ("cpu", "device"))
    assert (a - b).abs().max() < 1e-2


@pytest.mark.slow
def test_further_options_of_training_work_there(tmp_path):
    losses = []
    for device in ("cpu", NAME):
        tables = {
            "model": {"name": "DiT-S/2", "width": 32, "depth": 4, "heads": 2} | MODERN,
            "data": {"source": "digits"},
            "diffusion": {"target": "velocity", "weight": "min-snr", "direction": 1.0},
            "optim": {"name": "muon"},
            "train": {"images": 16, "batch": 8, "precision": "float32", "compile": "never", "device": device}
            | {"log_every": 8, "preview_every": 1000, "save_every": 1000, "route": 0.5},
            "sample": {"sampler": "euler", "steps": 1},
        }
        with accelerator():
            train(parse_recipe(tables), tmp_path / device, console=QUIET)
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_there_what_it_does_on_the_cpu(family):
    torch.manual_seed(0)
    net = create(family, size=8, channels=1, classes=3, **FAMILIES[family]).eval()
    with torch.no_grad(), accelerator():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        x, t, condition = net.example(2, torch.Generator().manual_seed(0))
        expected = net(x, t, condition)
        moved = copy.deepcopy(net).to(NAME)(x.to(NAME), t.to(NAME), condition.to(torch.device(NAME)))
        assert (moved.cpu() - expected).abs().max() < 1e-5


def test_inputs_for_an_export_are_made_there():
    expected = network_inputs(tiny_pipeline(), 2)
    with accelerator():
        made = {name: value.cpu() for name, value in network_inputs(tiny_pipeline().to(NAME), 2).items()}
    assert all(torch.equal(made[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_images_of_the_cpu(sampler):
    learned = sampler == "ddpm"
    objective = Objective(DDPM(), "eps", learn_variance=True) if learned else Objective()
    settings = {"sampler": sampler, "steps": 4, "guidance": 2.0, "guidance_interval": (0.1, 0.9)}
    settings |= {"seeds": [0, 1], "output_type": "pt"}
    expected = tiny_pipeline(learn_variance=learned, objective=objective)([0, 1], **settings).images
    with accelerator():
        pipe = tiny_pipeline(learn_variance=learned, objective=objective).to(NAME)
        images = pipe([0, 1], **settings).images
    assert (images - expected).abs().max() < 1e-2


@pytest.mark.slow
def test_an_autoencoder_trains_and_is_normalized_there(tmp_path):
    settings = {
        "images": 32,
        "batch": 16,
        "stride": 2,
        "latent_channels": 2,
        "width": 8,
        "depth": 1,
        "precision": "float32",
    }
    results = {}
    for device in ("cpu", NAME):
        with accelerator():
            out = tmp_path / device
            results[device] = train_autoencoder(
                open_dataset("digits"), AutoencoderTraining(**settings, device=device), out, QUIET
            )
    assert results[NAME].psnr == pytest.approx(results["cpu"].psnr, rel=1e-3)


def test_features_are_extracted_there():
    images = open_dataset("digits").fetch(torch.arange(4)).x
    features = open_features("digits")
    with accelerator():
        moved = open_features("digits", device=torch.device(NAME))(images)
    assert (moved.features - features(images).features).abs().max() < 1e-3


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the machine has an accelerator")
@pytest.mark.parametrize(
    "device",
    ["cuda", "cuda:9", "mps", "xpu", "meta", "gpu", *map(torch.device, ("cuda", "cuda:9", "mps", "xpu", "meta"))],
)
def test_a_device_that_cannot_be_used_is_one_clear_line(device, tmp_path):
    pipe = tiny_pipeline()
    pipe.save(tmp_path / "model")
    for use in (
        lambda: ditlab.load(tmp_path / "model", device=device),
        lambda: ditlab.load(tmp_path / "model", device="cpu", guidance_device=device),
        lambda: pipe.to(device),
        lambda: load_autoencoder(tmp_path / "model", device=device),
    ):
        with pytest.raises(ditlab.InputError, match=rf'^device "{device}" cannot be used \([^\n]*\); try auto or cpu$'):
            use()
