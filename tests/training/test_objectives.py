"""Objectives and training aids, of the package and from outside."""

import json
import shutil
import sys

import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.conditioning import ClassLabels
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.data import open_dataset
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.training import train
from ditlab.training.aids import AIDS, Aid, active_aids
from ditlab.training.losses import batch_losses, make_context
from ditlab.training.objectives import OBJECTIVES, RegressionObjective
from ditlab.training.rng import Randomness, RunRandomness

sys.modules["from_outside"] = sys.modules[__name__]  # what a recipe names as from_outside:Class
QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 3, "heads": 2},
    "train": {"images": 64, "batch": 32, "precision": "float32", "device": "cpu", "log_every": 32},
    "sample": {"sampler": "euler", "steps": 1},
}


def recipe(**sections):
    return parse_recipe({key: TINY.get(key, {}) | sections.get(key, {}) for key in {*TINY, *sections}})


class HalfRegression(RegressionObjective):
    """Half of the loss, and a second one, from outside of the package."""

    def losses(self, run, batch, randomness):
        losses = super().losses(run, batch, randomness)
        half = losses.pop("regression") / 2
        return {"half": half, "rest": half} | losses


class OutputNorm(Aid):
    """Keeps the output small; needs no settings."""

    taps = ("blocks.1",)

    def losses(self, run, forward, trace):
        assert trace.taps["blocks.1"].shape[0] == len(forward.x0)
        return {"norm": forward.output.square().flatten(1).mean(1)}


class Proposal(Aid):
    """A network that proposes a loss of its own, such as the balance of a router."""

    def prepare(self, run, trace, randomness):
        trace.loss("balance", torch.full((randomness.count,), 0.5))


class Projector(Aid):
    """An aid with weights of its own, as representation alignment has."""

    taps = ("blocks.1",)

    def setup(self, run):
        run.trained["projector"] = torch.nn.Linear(32, 1).to(run.device)

    def losses(self, run, forward, trace):
        wanted = forward.x0.flatten(1).mean(1)
        found = run.trained["projector"](trace.taps["blocks.1"].float()).mean((1, 2))
        return {"projected": (found - wanted).square()}


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_an_objective_and_an_aid_from_outside_train_and_each_loss_is_logged(tmp_path):
    given = recipe(train={"objective": "from_outside:HalfRegression", "aids": ["from_outside:OutputNorm"]})
    train(given, tmp_path, console=QUIET)
    lines = metrics(tmp_path)
    for line in lines:
        assert line["loss_half"] == pytest.approx(line["loss_rest"])
        total = line["loss_half"] + line["loss_rest"] + line["loss_norm"]
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert lines[-1]["loss_norm"] > 0
    assert ditlab.load(tmp_path).config["recipe"]["train"]["objective"] == "from_outside:HalfRegression"


@pytest.mark.slow
def test_named_losses_are_logged_as_if_the_run_had_not_stopped(tmp_path):
    more = {"images": 96, "log_every": 96, "save_every": 32, "keep": 3, "layer_sync": [0, 1]}
    given = recipe(train=more, diffusion={"direction": 0.3})
    for name in ("whole", "parts"):
        train(given, tmp_path / name, console=QUIET)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"{96:012d}")  # as if it had been killed before
    train(given, tmp_path / "parts", console=QUIET)
    whole, parts = (metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    names = {"loss_regression", "loss_direction", "loss_layer_sync"}
    assert {key for key in whole if key.startswith("loss_")} == names | {"loss_by_time"}
    assert whole["loss"] == pytest.approx(sum(whole[name] for name in names), rel=1e-5)
    assert {name: parts[name] for name in names} == pytest.approx({name: whole[name] for name in names}, rel=1e-6)


def test_a_single_loss_is_logged_once(tmp_path):
    train(recipe(), tmp_path, console=QUIET)
    assert not {key for line in metrics(tmp_path) for key in line if key.startswith("loss_")} - {"loss_by_time"}


@pytest.mark.slow
def test_modules_of_an_aid_are_trained_and_resumed_but_no_part_of_the_model(tmp_path):
    given = recipe(train={"aids": ["from_outside:Projector"], "save_every": 32, "keep": 3}, optim={"lr": 1e-2})
    pipe = train(given, tmp_path / "whole", console=QUIET)
    assert not any("projector" in key for key in pipe.net.state_dict())
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"{64:012d}")
    train(given, tmp_path / "parts", console=QUIET)
    states = [
        torch.load(tmp_path / name / "checkpoints" / f"{64:012d}" / "state.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    before = torch.load(tmp_path / "whole" / "checkpoints" / f"{32:012d}" / "state.pt", weights_only=True)["further"]
    whole, parts = (state["further"] for state in states)
    assert list(whole) == ["projector.weight", "projector.bias"]
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not torch.equal(whole["projector.weight"], before["projector.weight"])


def test_losses_that_the_network_proposes_are_trained_too():
    run = make_context(tiny_pipeline(classes=10), recipe(train={"batch": 4, "aids": ["from_outside:Proposal"]}))
    losses = batch_losses(run, open_dataset("digits").fetch(torch.arange(4)), 0, 0, torch.float32)
    assert losses.named["balance"].tolist() == [0.5] * 4
    assert torch.equal(losses.total, losses.named["regression"] + 0.5)


def test_losses_of_a_part_of_a_batch_are_those_of_the_whole():
    pipe = tiny_pipeline(classes=10, objective=Objective(DDPM(), "eps", learn_variance=True), learn_variance=True)
    diffusion = {"process": "ddpm", "target": "eps", "learn_variance": True, "direction": 0.1}
    run = make_context(pipe, recipe(train={"batch": 8, "layer_sync": [0, 1]}, diffusion=diffusion))
    batch = open_dataset("digits").fetch(torch.arange(8))
    whole = batch_losses(run, batch, 32, 0, torch.float32)
    part = batch_losses(run, batch[slice(4, 8)], 32, 4, torch.float32)
    assert list(whole.named) == ["regression", "variational", "direction", "layer_sync"]
    assert torch.equal(part.times, whole.times[4:])
    for name, value in part.named.items():
        assert torch.allclose(value, whole.named[name][4:], rtol=1e-4, atol=1e-6)


def test_aids_are_active_when_their_settings_say_so():
    every = recipe(train={"route": 0.5}, diffusion={"direction": 0.1})
    assert [type(aid) for aid in active_aids(every)] == [AIDS["routing"], AIDS["direction"]]
    assert active_aids(recipe()) == ()
    with pytest.raises(InputError, match=r'train\.aids names "routing", but its settings are missing'):
        active_aids(recipe(train={"aids": ["routing"]}))
    assert len(active_aids(recipe(train={"route": 0.5, "aids": ["routing"]}))) == 1


@pytest.mark.parametrize(
    ("section", "setting", "words"),
    [
        ("train", {"objective": "regresion"}, r'unknown objective "regresion"; did you mean "regression"'),
        ("train", {"objective": "from_outside:Aid"}, "is no subclass of ditlab.training.objectives"),
        ("train", {"aids": ["layersync"]}, r'unknown training aid "layersync"; did you mean "layer-sync"'),
        ("train", {"aids": ["from_outside:DDPM"]}, "is no subclass of ditlab.training.aids.Aid"),
        ("train", {"report": ["tensorbord"]}, r'unknown tracker "tensorbord"; did you mean "tensorboard"'),
        ("diffusion", {"process": "linea"}, r'unknown process "linea"; did you mean "linear"'),
        ("diffusion", {"target": "epsilon"}, r'unknown target "epsilon"; did you mean "eps"'),
        ("diffusion", {"time": "unifrom"}, r'unknown time distribution "unifrom"; did you mean "uniform"'),
        ("diffusion", {"weight": "min_snr"}, r'unknown loss weight "min_snr"; did you mean "min-snr"'),
        ("diffusion", {"process_options": {"clock_rat": 1}}, r'no option "clock_rat"; did you mean "clock_rate"'),
        ("diffusion", {"process_options": {"clock_rate": "x"}}, "clock_rate of the process is 'x'; give a number"),
        ("diffusion", {"process": "ddpm", "process_options": {"timesteps": 1.5}}, "give a whole number"),
        ("data", {"conditioner": "clas"}, r'unknown conditioner "clas"; did you mean "class"'),
    ],
)
def test_unknown_names_are_rejected_before_anything_is_written(tmp_path, section, setting, words):
    with pytest.raises(InputError, match=words):
        train(recipe(**{section: setting}), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_registries_and_recipes_have_the_same_names():
    for name in OBJECTIVES:
        assert recipe(train={"objective": name}).train.objective == name


class Vectors(ClassLabels):
    """Another kind of condition."""

    def values(self, given):
        return self.null(len(given))

    def null(self, count):
        return Condition(pooled=torch.zeros(count, 4))


def test_data_with_another_kind_of_condition_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r'"from_outside:Vectors" gives pooled, but the data has label') as caught:
        train(recipe(data={"conditioner": "from_outside:Vectors"}), tmp_path / "run", console=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_randomness_of_any_rank():
    randomness = Randomness(RunRandomness(3), 64, 8, 2, 32)
    video = torch.empty(2, 3, 4, 5, 6)
    noise = randomness.noise(0)(video)
    assert noise.shape == video.shape
    assert torch.equal(noise, RunRandomness(3).normal(0, 72, tuple(video.shape)))
    objective = Objective()
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    losses = objective.losses(lambda x, t, c: torch.zeros_like(x), noise, None, t, noise)
    assert losses["regression"].shape == (2,)
    assert losses["regression"].abs().max() < 1e-12  # noise - data is zero


def test_taps_are_the_outputs_of_the_blocks():
    families = {
        "DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
        "Skip-DiT": {"width": 32, "depth": 4, "heads": 2, "patch": 2},
        "U-ViT": {"width": 32, "depth": 5, "heads": 2, "patch": 2},
        "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    }
    for name, options in families.items():
        net = ditlab.create(name, size=8, channels=1, classes=3, learn_variance=False, **options).eval()
        outputs = {}
        for i, block in enumerate(net.repeated):
            block.register_forward_hook(lambda m, a, out, i=i, into=outputs: into.update({f"blocks.{i}": out}))
        trace = Trace([f"blocks.{i}" for i in range(len(net.repeated))])
        net(*net.example(2), trace=trace)
        assert trace.taps.keys() == outputs.keys(), name
        assert all(torch.equal(value, outputs[key]) for key, value in trace.taps.items()), name
