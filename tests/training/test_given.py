"""Training with given frames."""

import json

import pytest
import torch
from rich.console import Console

import ditlab
from ditlab.config.sections import Train
from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.training.given import given_frames

RECIPE = {
    "model": {"name": "VideoDiT", "depth": 1, "width": 16, "heads": 2, "patch": 4},
    "train": {"images": 16, "batch": 8, "precision": "float32", "device": "cpu", "log_every": 8, "save_every": 8}
    | {"preview_every": 1000, "compile": "never", "given_first": 0.4, "given_start": 0.3, "given_ends": 0.2},
    "sample": {"sampler": "euler", "steps": 1},
}


def clips(frames=4):
    generator = torch.Generator().manual_seed(0)
    return InMemory(
        torch.randint(256, (16, 1, frames, 8, 8), generator=generator).byte(), torch.arange(16) % 2, ["a", "b"]
    )


def test_shares_and_forms_of_given_frames():
    settings = Train(given_first=0.3, given_start=0.2, given_ends=0.1)
    given = given_frames(settings, 20_000, 8, torch.Generator().manual_seed(0))
    counts = given.sum(1)
    ends = given[:, 7]
    first = given[:, 0] & (counts == 1)
    start = given[:, 0] & ~ends & (counts > 1)
    assert abs(ends.float().mean() - 0.1) < 0.01
    assert abs(first.float().mean() - (0.3 + 0.2 / 4)) < 0.01  # a start has 1 to 4 frames
    assert abs(start.float().mean() - 0.15) < 0.01
    assert abs((counts == 0).float().mean() - 0.4) < 0.01
    assert counts.max() == 4
    assert torch.equal(given[start].int().diff().clamp(min=0).sum(1), torch.zeros(int(start.sum()), dtype=torch.long))
    assert given_frames(Train(), 4, 8, torch.Generator()) is None
    assert not given_frames(Train(given_first=1.0), 4, 1, torch.Generator()).any()  # an image


@pytest.mark.slow
def test_a_run_resumes_with_the_same_given_frames(tmp_path):
    quiet = Console(quiet=True)
    whole = ditlab.train(RECIPE, tmp_path / "whole", data=clips(), console=quiet)
    half = RECIPE | {"train": RECIPE["train"] | {"images": 8}}
    ditlab.train(half, tmp_path / "parts", data=clips(), console=quiet)
    state = ditlab.train(RECIPE, tmp_path / "parts", data=clips(), console=quiet).net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.net.state_dict().items())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    without = {key: value for key, value in RECIPE["train"].items() if not key.startswith("given")}
    ditlab.train(RECIPE | {"train": without}, tmp_path / "other", data=clips(), console=quiet)
    other = [json.loads(line)["loss"] for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert losses != other


@pytest.mark.parametrize(
    ("frames", "changes", "message"),
    [
        (2, {}, "train.given_ends is 0.2, for clips of 2 frames; give clips of 3 or more"),
        (4, {"train": {"given_first": 0.9}}, "more than 1 together; give shares of all clips"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(tmp_path, frames, changes, message):
    recipe = {name: values | changes.get(name, {}) for name, values in RECIPE.items()}
    with pytest.raises(InputError, match=message):
        ditlab.train(recipe, tmp_path / "run", data=clips(frames), console=Console(quiet=True))


def test_networks_for_images_are_refused(tmp_path):
    recipe = RECIPE | {"model": {"name": "DiT", "depth": 1, "width": 16, "heads": 2, "patch": 4}}
    with pytest.raises(
        InputError,
        match=r"DiT has no given frames; choose a network for clips \(Latte, STDiT3, VideoDiT, ClipHourglass\)",
    ):
        ditlab.train(recipe, tmp_path / "run", data="digits", console=Console(quiet=True))
