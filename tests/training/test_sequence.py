"""Runs in which several processes share the tokens of each image."""

import json
from functools import partial

import pytest
import torch
import torch.distributed._functional_collectives
from helpers import posix_only
from processes import in_processes
from rich.console import Console
from safetensors.torch import load_file

import ditlab
from ditlab.backbones import create
from ditlab.config.reader import parse_recipe
from ditlab.core import parts
from ditlab.core.errors import InputError
from ditlab.profiling.plan import plan
from ditlab.training import train
from ditlab.training.memory import Activations
from ditlab.training.parallel import Place

QUIET = Console(quiet=True)
RECIPE = {
    "model": {"name": "DiT", "width": 32, "depth": 3, "heads": 4, "patch": 2, "qk_norm": True},
    "data": {"source": "digits"},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {
        "images": 192, "batch": 32, "ema": 0.9, "precision": "float32", "compile": "never", "device": "cpu",
        "log_every": 64, "preview_every": 192, "save_every": 64,
    },
    "sample": {"sampler": "euler", "steps": 2},
}  # fmt: skip


def recipe(images=192, *, train=(), model=(), **parallel):
    changed = {"train": RECIPE["train"] | {"images": images} | dict(train), "parallel": parallel}
    return RECIPE | changed | {"model": RECIPE["model"] | dict(model)}


def trained(settings, out):
    torch.set_num_threads(1)
    train(settings, out, console=QUIET)


def shared(world, settings, out):
    found = in_processes(world, trained, settings, out)
    assert found == [None] * world, found


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process."""
    import torch._dynamo  # noqa: F401 - imported once, before the processes are forked, like the data

    ditlab.data.open_dataset("digits")
    out = tmp_path_factory.mktemp("sequence") / "one"
    trained(recipe(), out)
    return out


def weights(checkpoint, name, folder):
    """The weights in a file, or those that several processes wrote in a folder."""
    whole = checkpoint / name
    return load_file(whole) if whole.exists() else parts.read_complete(checkpoint / folder)


def assert_same_run(one, other):
    """Weights and averages agree to rounding, and the metrics with them."""
    for name, folder in (("raw.safetensors", "raw"), ("model.safetensors", "ema")):
        a, b = (weights(sorted((run / "checkpoints").iterdir())[-1], name, folder) for run in (one, other))
        assert a.keys() == b.keys()
        whole = torch.cat([value.flatten() for value in a.values()]).norm()
        assert torch.cat([(a[key] - b[key]).flatten() for key in a]).norm() < 1e-6 * whole
        for key in a:  # biases are small after a few steps
            assert (a[key] - b[key]).norm() < 2e-5 * a[key].norm().clamp(min=1e-2), key
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    assert len(lines[0]) == 3
    for mine, theirs in zip(*lines, strict=True):
        assert mine["images"] == theirs["images"]
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-6)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-5)
        for value, expected in zip(theirs["loss_by_time"], mine["loss_by_time"], strict=True):
            assert value == expected is None or value == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@posix_only
def test_two_processes_for_each_image_compute_what_one_does_and_it_goes_on_alone(one, tmp_path):
    shared(2, recipe(128, sequence=2), tmp_path / "run")
    trained(recipe(), tmp_path / "run")
    assert_same_run(one, tmp_path / "run")


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "options"),
    [
        (2, {"sequence": 2, "shard": "full", "checkpoint": "sharded"}),
        (4, {"sequence": 2}),
        (4, {"sequence": 4, "checkpointing": True}),
        (4, {"sequence": 2, "shard": "full", "checkpointing": True, "accumulate": 2}),
    ],
)
def test_all_divisions_compute_the_same(one, tmp_path, world, options):
    trained(recipe(128), tmp_path / "run")
    shared(world, recipe(**options), tmp_path / "run")
    assert_same_run(one, tmp_path / "run")


def test_processes_are_numbered_by_images_and_by_tokens():
    places = [Place(torch.device("cpu"), rank, 6).in_sequence(2) for rank in range(6)]
    assert [place.rows(8) for place in places[::2]] == [slice(0, 2), slice(2, 5), slice(5, 8)]
    assert all(a.rows(8) == b.rows(8) for a, b in zip(places[::2], places[1::2], strict=True))
    assert [place.leads for place in places] == [True, False] * 3
    assert places[0].share(8, 1) == 3
    with pytest.raises(InputError, match=r"among 6 processes \(2 for each image\) in 2 parts; set train.batch to 6 or"):
        places[0].share(5, 2)
    with pytest.raises(InputError, match="is 4, which does not divide 6 processes; start 4 or a multiple with torchru"):
        places[0].in_sequence(4)


def refusal(settings, out):
    try:
        train(settings, out, console=QUIET)
    except InputError as error:
        return str(error)
    return "no error"


@pytest.mark.slow
@posix_only
def test_what_cannot_be_shared_is_refused_before_anything_is_written(one, tmp_path):
    assert "parallel.sequence is 2, which does not divide 1 process" in refusal(recipe(sequence=2), tmp_path / "a")
    cases = {
        "the tokens of DyDiT cannot be shared": recipe(sequence=2, model={"name": "DyDiT"}),
        "which does not divide the 3 heads of DiT": recipe(sequence=2, model={"heads": 3, "width": 36}),
        "train.route needs all tokens in one process; omit": recipe(sequence=2, train={"route": 0.5}),
    }  # fmt: skip
    for problem, settings in cases.items():
        for said in in_processes(2, refusal, settings, tmp_path / "run"):
            assert problem in said
            assert "\n" not in said
    assert not (tmp_path / "run" / "recipe.toml").exists()


@pytest.mark.slow
def test_plans_divide_activations_by_the_processes():
    net = partial(
        create, "DiT", size=32, channels=1, classes=3, learn_variance=False, width=64, depth=4, heads=4, patch=2
    )
    counts = (Activations(net, 4, parse_recipe({"parallel": {"sequence": n}})) for n in (1, 4))
    whole, part = (count.sizes().kept for count in counts)
    assert part == pytest.approx(whole / 4, rel=0.08)
    settings = recipe(model={"width": 384, "depth": 6, "heads": 6})
    alone, split = (plan(parse_recipe(settings | {"parallel": {"sequence": n}}), "a10", 4) for n in (1, 2))
    assert split.batch == 2 * alone.batch
    assert split.memory["activations"] == pytest.approx(alone.memory["activations"], rel=0.08)
    assert split.memory["weights"] == alone.memory["weights"]
    with pytest.raises(InputError, match="is 3, which does not divide 4 processes"):
        plan(parse_recipe(settings | {"parallel": {"sequence": 3}}), "a10", 4)
