import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.training import train
from ditlab.training.optim import make_optimizer
from ditlab.training.power_ema import PowerAverages, combination, exponent, product, rebuild

QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {"images": 1024, "batch": 16, "precision": "float32", "compile": "never", "device": "cpu"}
    | {"power_ema": [0.05, 0.1], "save_every": 64, "preview_every": 1024, "log_every": 256},
    "sample": {"sampler": "euler", "steps": 2},
}


def test_exponents_are_those_of_the_paper():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)  # Karras et al. 2024, section 3.1
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for width in (0.0, 0.29, -1):
        with pytest.raises(InputError, match=r"give a share of the run above 0 and below 0\.288"):
            exponent(width)


def test_an_average_weighs_steps_by_their_power():
    net = tiny_pipeline().net
    averages = PowerAverages(net, [0.1])
    name, parameter = next(iter(net.named_parameters()))
    total = 40
    with torch.no_grad():
        for step in range(1, total + 1):
            for each in net.parameters():
                each.fill_(step)
            averages.update(net)
    gamma = exponent(0.1)
    # (1 - 1/n)^(gamma + 1) at each step gives step m the share (m/n)^(gamma+1) - ((m-1)/n)^(gamma+1).
    edges = (np.arange(total + 1) / total) ** (gamma + 1)
    expected = (np.diff(edges) * np.arange(1, total + 1)).sum()
    assert averages.values[f"0.1/{name}"].flatten()[0].item() == pytest.approx(expected, rel=1e-5)
    assert parameter.flatten()[0] == total


def test_products_of_profiles_are_their_integrals():
    def profile(n, gamma, m):
        return np.where(m <= n, (gamma + 1) * m**gamma / n ** (gamma + 1), 0)

    m = (np.arange(200_000) + 0.5) / 200_000 * 50
    for a, b in (((50, 7.0), (50, 17.0)), ((50, 3.0), (20, 7.0)), ((10, 17.0), (30, 1.0))):
        integral = (profile(*a, m) * profile(*b, m)).mean() * 50
        assert product(a, b) == pytest.approx(integral, rel=1e-3)


def test_a_profile_that_is_there_is_taken_as_it_is():
    profiles = [(n, exponent(width)) for n in (100.0, 200.0, 300.0) for width in (0.05, 0.1)]
    assert combination(profiles, profiles[3]) == pytest.approx(np.eye(6)[3], abs=1e-6)
    shares = combination(profiles, (300.0, exponent(0.08)))
    assert shares.sum() == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_any_width_can_be_rebuilt_after_training_and_resuming_changes_nothing(tmp_path, monkeypatch):
    recipe = parse_recipe(TINY | {"train": TINY["train"] | {"power_ema": [0.05, 0.1, 0.075]}})
    run = tmp_path / "run"
    parts = parse_recipe(TINY | {"train": TINY["train"] | {"power_ema": [0.05, 0.1, 0.075], "images": 512}})
    train(parts, run, console=QUIET)
    train(recipe, run, console=QUIET)
    train(recipe, tmp_path / "whole", console=QUIET)
    mine, whole = (rebuild(folder, 0.1) for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(mine[key], whole[key]) for key in mine)
    # The one that was followed, against the one from the snapshots of the other two.
    followed = rebuild(run, 0.075)
    only(run, ("0.05", "0.1"))
    rebuilt = rebuild(run, 0.075)
    short = rebuild(run, 0.05)
    off, far = (sum((followed[k] - each[k]).square().sum() for k in followed).sqrt() for each in (rebuilt, short))
    assert off < 0.05 * far
    raw = ditlab.load(run, weights="model").net.state_dict()
    assert sum((raw[k] - short[k]).square().sum() for k in short).sqrt() > 0.5 * far
    with pytest.raises(InputError, match=r"no averages to rebuild one from; set train.power_ema"):
        rebuild(run, 0.1, images=10)


def only(run, widths):
    for file in (run / "averages").iterdir():
        with safe_open(file, "pt") as opened:
            reported = opened.metadata()
        save_file({key: value for key, value in load_file(file).items() if key.split("/")[0] in widths}, file, reported)


@pytest.mark.slow
def test_muon_takes_the_matrices_of_the_blocks_and_resumes(tmp_path):
    net = tiny_pipeline().net
    both = make_optimizer(net, parse_recipe({"optim": {"name": "muon"}}).optim)
    adamw, muon = both.parts
    shapes = [p.shape for group in muon.param_groups for p in group["params"]]
    assert len(shapes) == 2 * 4  # qkv, proj, fc1, fc2 of two blocks
    rest = sum(len(group["params"]) for group in adamw.param_groups)
    assert len(shapes) + rest == len(list(net.parameters()))

    def settings(images):
        options = {"images": images, "power_ema": []}
        return parse_recipe(TINY | {"optim": TINY["optim"] | {"name": "muon"}, "train": TINY["train"] | options})

    whole = train(settings(512), tmp_path / "whole", console=QUIET)
    train(settings(256), tmp_path / "parts", console=QUIET)
    parts = train(settings(512), tmp_path / "parts", console=QUIET)
    a, b = whole.net.state_dict(), parts.net.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    sharded = parse_recipe({"optim": {"name": "muon"}, "parallel": {"shard": "full"}})
    with pytest.raises(InputError, match="muon needs whole matrices"):
        train(sharded, tmp_path / "no", console=QUIET)
