"""DyDiT's training: a trained DiT becomes a dynamic one, under a compute budget; and parts that are not trained."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.backbones import create
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Objective, Regression
from ditlab.inference.pipeline import Pipeline
from ditlab.training import train
from ditlab.training.aids import active_aids
from ditlab.training.aids.budget import ComputeBudget
from ditlab.training.checks import check_recipe
from ditlab.training.parallel import keep_inputs_only
from ditlab.training.rng import Randomness, RunRandomness

SIZES = {"width": 32, "depth": 2, "heads": 4, "patch": 4}
DYNAMIC = {"name": "DyDiT", **SIZES, "budget": 0.5}
QUIET = Console(quiet=True)


def recipe(model, **settings):
    train_table = {"images": 96, "batch": 32, "precision": "float32", "compile": "never", "ema": 0.5}
    train_table |= {"log_every": 32, "preview_every": 1024, "save_every": 1024}
    tables = {"model": model, "optim": {"lr": 1e-3}, "train": train_table | settings}
    return parse_recipe(tables | {"sample": {"sampler": "euler", "steps": 2}})


@pytest.fixture
def source(tmp_path):
    """A DiT for digits, as a model folder."""
    pipe = tiny_pipeline(classes=10, **SIZES)
    pipe.save(tmp_path / "dit")
    return pipe, str(tmp_path / "dit")


def read_metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_trained_dit_becomes_dynamic_in_two_stages(source, tmp_path):
    pipe, folder = source
    settings = {"init_from": folder, "budget_ramp": 64, "budget_complete": 32}
    train(recipe({"name": "DyDiT-S/2", "budget": 0.5}, **settings), tmp_path / "run", console=QUIET)
    first, second, third = read_metrics(tmp_path / "run")
    # Everything is kept at first, so that the dynamic network computes the same as the complete one, and as the DiT.
    assert first["loss_regression"] == pytest.approx(first["loss_complete_regression"])
    assert first["loss_budget"] == pytest.approx(0, abs=1e-9)
    assert second["loss_budget"] == pytest.approx(2 * 0.25**2, rel=0.05)  # the target has fallen to 0.75
    assert third["loss_budget"] == pytest.approx(2 * 0.5**2, rel=0.05)
    assert "loss_complete_regression" not in second
    assert third["loss"] == pytest.approx(third["loss_budget"] + third["loss_regression"])
    tuned = ditlab.load(tmp_path / "run").net
    assert tuned.config["name"] == "DyDiT"
    assert (tuned.config["budget"], tuned.config["depth"], tuned.config["width"]) == (0.5, 2, 32)
    assert relative(tuned.blocks[0].attn.qkv.weight, pipe.net.blocks[0].attn.qkv.weight) < 0.1


@pytest.mark.slow
def test_a_resumed_run_repeats_the_random_decisions(source, tmp_path):
    whole = recipe(DYNAMIC, budget_complete=64)
    train(whole, tmp_path / "whole", console=QUIET)
    part = replace(whole, train=replace(whole.train, images=32))
    train(part, tmp_path / "part", console=QUIET)
    train(whole, tmp_path / "part", console=QUIET)
    a, b = (ditlab.load(tmp_path / name).net.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_noise_depends_on_the_position_of_an_image_alone():
    aid, net = ComputeBudget(0.5, 0, 0), create("DyDiT", size=8, channels=1, learn_variance=False, **SIZES)
    run = SimpleNamespace(net=net, device=torch.device("cpu"))
    traces = [Trace() for _ in range(2)]
    aid.prepare(run, traces[0], Randomness(RunRandomness(3), 64, 0, 8, 8))
    aid.prepare(run, traces[1], Randomness(RunRandomness(3), 64, 4, 4, 8))
    assert traces[0].noise.shape == (8, 2 * (3 + 3 + 4))
    assert torch.equal(traces[0].noise[4:], traces[1].noise)


def test_recomputed_blocks_have_the_same_gradients():
    torch.manual_seed(0)
    net = create("DyDiT", size=8, channels=1, classes=3, learn_variance=False, **SIZES, swiglu=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for router in (router for block in net.dynamic for router in block.routers):
            router.bias.zero_()
    gradients = []
    for _ in range(2):
        trace = Trace(["compute", "complete"], noise=torch.linspace(-1, 1, 4 * net.gates).view(4, -1))
        out = net(torch.ones(4, 1, 8, 8), torch.arange(4) * 300.0, torch.arange(4), trace=trace)
        assert 0.2 < trace.taps["compute"].mean() < 0.8
        (out.mean() + trace.taps["compute"].mean() + trace.taps["complete"].square().mean()).backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
        net.zero_grad()
        keep_inputs_only(net)
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_the_loss_is_that_of_the_mean_share_and_the_target_falls():
    aid = ComputeBudget(0.5, 1000, 0)
    assert [aid.target_at(seen) for seen in (0, 500, 1000, 5000)] == [1.0, 0.75, 0.5, 0.5]
    assert ComputeBudget(0.25, 0, 0).target_at(0) == 0.25
    trace = Trace(["compute"])
    trace.taps["compute"] = torch.tensor([0.2, 0.4])
    aid.target = 0.5
    losses = aid.losses(SimpleNamespace(), Regression(*[torch.zeros(2)] * 6), trace)
    assert losses["budget"].tolist() == pytest.approx([2 * 0.2**2] * 2)


def test_settings_without_a_budget_have_no_effect():
    assert [type(aid).__name__ for aid in active_aids(recipe(DYNAMIC))] == ["ComputeBudget"]
    for key in ("budget_ramp", "budget_complete"):
        with pytest.raises(InputError, match=rf"^train.{key} has no effect without model.budget; set model.budget"):
            active_aids(recipe({"name": "DiT", **SIZES}, **{key: 64}))


def test_frozen_parts_stay(source, tmp_path):
    pipe, folder = source
    exits = {"exits": [1.0, 0.5]}
    train(recipe(exits, init_from=folder, freeze=["t_embedder"]), tmp_path / "run", console=QUIET)
    tuned, before = ditlab.load(tmp_path / "run").net.state_dict(), pipe.net.state_dict()
    same = {key.partition(".")[0] for key in tuned if torch.equal(tuned[key], before[key])}
    assert same == {"pos_embed", "t_embedder"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze": ["time"]},
            'names "time", which DiT-S/2 does not have; its parts are: x_embedder, t_embedder, y_embed',
        ),
        ({"freeze": ["t_embedder", "x_embedder", "y_embedder", "blocks", "final_layer"]}, "names all parts of the net"),
        ({"freeze": ["t_embedder"], "lora": 2}, "train.lora freezes the weights, so that train.freeze has no effect"),
    ],
)
def test_frozen_parts_must_exist(source, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train(recipe({}, init_from=source[1], **settings), tmp_path / "run", console=QUIET)


def test_freezing_needs_a_trained_model():
    with pytest.raises(InputError, match=r"train.freeze is .* but train.init_from is not set"):
        check_recipe(recipe({"name": "DiT", **SIZES}, freeze=["t_embedder"]))


@pytest.mark.slow
def test_a_dynamic_model_is_fine_tuned_to_another_budget(tmp_path):
    net = create("DyDiT", size=8, channels=1, classes=10, learn_variance=False, **SIZES, budget=0.7)
    Pipeline(net, Objective()).save(tmp_path / "source")
    again = recipe({"name": "DyDiT", "budget": 0.4}, init_from=str(tmp_path / "source"), images=32)
    train(again, tmp_path / "run", console=QUIET)
    assert ditlab.load(tmp_path / "run").net.config["budget"] == 0.4
