"""Training on pairs of states, and rolling the model out."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.cli.fields import Rollout, opened, rollout
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.diffusion.next_state import NextState
from ditlab.evaluation.rollouts import RolloutError, rolled_out
from ditlab.report.fields import comparison
from ditlab.training import train
from ditlab.training.distillation import check
from ditlab.training.losses import batch_losses, make_context

MODEL = {"name": "PDE-Transformer", "width": 8, "heads": 2, "depths": [1, 1, 1], "patch": 1, "window": 2}
TRAIN = {
    "objective": "next-state", "images": 16, "batch": 8, "device": "cpu", "precision": "float32", "compile": "never"
}  # fmt: skip


def recipe(**sections):
    base = {"model": MODEL, "data": {"source": "waves-8"}, "train": TRAIN}
    return parse_recipe({key: base.get(key, {}) | sections.get(key, {}) for key in {*base, *sections}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(), out, console=Console(quiet=True))
    return out


@pytest.fixture
def pipe(folder):
    pipe = ditlab.load(folder)
    torch.nn.init.normal_(pipe.net.final_layer.out_proj.weight, std=0.02)
    return pipe


@pytest.mark.slow
def test_the_loss_is_the_error_of_the_next_state(pipe):
    data = open_dataset("waves-8")
    run, batch = make_context(pipe, recipe()), data.fetch(torch.arange(18, 26))
    losses = batch_losses(run, batch, 0, 0, torch.float32)
    with torch.no_grad():
        output = pipe.net(batch.x, torch.zeros(8), batch.labels)
    assert [*losses.named] == ["next_state"]
    assert torch.allclose(losses.total, (output - batch.extra["next"]).square().mean((1, 2, 3)), rtol=1e-5)
    assert losses.times is None


def test_a_run_has_a_preview_and_no_samples(folder, pipe):
    assert [*folder.glob("previews/*.png")]
    assert isinstance(pipe.objective, NextState)
    with pytest.raises(InputError, match="predicts the next state of a field and does not generate from noise; roll"):
        pipe([None])


def test_a_rollout_feeds_predictions_back(pipe):
    data = open_dataset("waves-8-held-out")
    first = torch.stack([data.states(i, 0, 1)[0] for i in range(2)])
    series = ditlab.rollout(pipe, first, 2)
    x = pipe.values.normalized(first)
    expected = [x]
    for _ in range(2):
        with torch.no_grad():
            expected.append(pipe.net(expected[-1], torch.zeros(2), torch.zeros(2, dtype=torch.long)))
    assert series.shape == (2, 3, 2, 8, 8)
    assert torch.allclose(
        pipe.values.normalized(series.flatten(0, 1)), torch.stack(expected, 1).flatten(0, 1), atol=1e-5
    )
    assert torch.allclose(series[:, 0], first, atol=1e-5)


def test_errors_are_those_of_each_step(pipe):
    truth, predicted = rolled_out(pipe, open_dataset("waves-8-held-out"), 3, 4)
    result = RolloutError.of(truth, predicted)
    assert result.trajectories == 3
    error = [((predicted[i, 2] - truth[i, 2]).norm() / truth[i, 2].norm()).item() for i in range(3)]
    assert result.error[1] == pytest.approx(np.mean(error), rel=1e-5)
    assert result.spread[1] == pytest.approx(np.std(error) / 3**0.5, rel=1e-3)
    still = [((truth[i, 0] - truth[i, 2]).norm() / truth[i, 2].norm()).item() for i in range(3)]
    assert result.persistence[1] == pytest.approx(np.mean(still), rel=1e-5)
    assert RolloutError.of(truth, truth).error == [0] * 4
    strip = comparison(truth[0], truth[0], pipe.values)
    gray = np.asarray(strip)[-20, -20]  # no difference
    assert abs(gray.astype(int) - 127).max() <= 1


def test_the_command_writes_numbers_and_an_image(folder, tmp_path, capsys):
    out = tmp_path / "out"
    rollout(str(folder), out=out, settings=Rollout(count=2, steps=3, device="cpu"), json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == "waves-8-held-out"
    assert len(result["error"]) == 3
    assert np.load(out / "states.npy").shape == (2, 4, 2, 8, 8)
    assert (out / "rollout.png").exists()
    with pytest.raises(InputError, match="is not empty; give another folder"):
        rollout(str(folder), out=out)
    with pytest.raises(InputError, match="colored-shapes-16 holds no trajectories; give a folder of them, or waves"):
        rollout(str(folder), out=tmp_path / "b", settings=Rollout(data="colored-shapes-16"))


def test_bad_input_is_one_line(pipe):
    with pytest.raises(InputError, match="25 steps of trajectories with 21 states; give 1 to 20"):
        rolled_out(pipe, open_dataset("waves-8"), 1, 25)
    with pytest.raises(InputError, match="0 steps of trajectories with 21 states; give 1 to 20"):
        rolled_out(pipe, open_dataset("waves-8"), 1, 0)
    with pytest.raises(InputError, match="predicts the next state of a field and does not generate from noise"):
        check(pipe, "runs/fields", 1, None, 0)
    with pytest.raises(InputError, match=r"states of 1x3x8x8; give \(B, 2, height, width\)"):
        ditlab.rollout(pipe, torch.zeros(1, 3, 8, 8), 1)
    with pytest.raises(InputError, match="0 steps; give 1 or more"):
        ditlab.rollout(pipe, torch.zeros(1, 2, 8, 8), 0)
    with pytest.raises(InputError, match="this model generates images and does not predict the next state"):
        ditlab.rollout(tiny_pipeline(classes=10), torch.zeros(1, 1, 8, 8), 1)
    pipe.config.pop("recipe")
    with pytest.raises(InputError, match="the training data of this model is not known; give --data"):
        opened(pipe, "")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"source": "digits"}}, "needs pairs of states, which the data do not have; set data.trajectories"),
        ({"diffusion": {"weight": "min-snr"}}, 'diffusion.weight is "min-snr", which has no effect on train.objective'),
        ({"diffusion": {"process": "cosine"}}, 'diffusion.process is "cosine", which has no effect'),
        ({"diffusion": {"process": "ddpm", "learn_variance": True}}, "diffusion.process is"),
    ],
)
def test_settings_without_effect(sections, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(recipe(**sections), tmp_path / "run", console=Console(quiet=True))
