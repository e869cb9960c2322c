"""A run that does not fit in memory: warnings and refusals before the first step."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.units import GIB
from ditlab.data.base import InMemory
from ditlab.training import setup, train
from ditlab.training.memory import Room, shortage
from ditlab.training.state import STATE

TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "train": {"images": 32, "batch": 16, "compile": "never", "device": "cpu", "log_every": 32}
    | {"preview_every": 1000, "save_every": 32},
    "sample": {"sampler": "euler", "steps": 1},
}


def run(tmp_path, *options, **arguments):
    """Train, and return what was printed."""
    console = Console(file=io.StringIO())
    train(parse_recipe(TINY, options), tmp_path / "run", console=console, **arguments)
    return console.file.getvalue()


def machine(monkeypatch, total, free=1000.0):
    """A machine with so many GiB."""
    monkeypatch.setattr("ditlab.training.memory.total_memory", lambda device: int(total * GIB))
    monkeypatch.setattr("ditlab.training.memory.free_memory", lambda device: int(free * GIB))
    monkeypatch.setattr("ditlab.training.memory.peak_memory", lambda device: 0)


def test_a_run_that_barely_does_not_fit_is_warned_of(tmp_path, monkeypatch):
    machine(monkeypatch, 0.4)
    lines = run(tmp_path, "--train.precision=float32").splitlines()
    assert lines[0] == (
        "this run needs about 0.5 GiB of memory, and 0.4 GiB are available; what helps: parallel.checkpointing = true "
        "recomputes the blocks instead of keeping them, for a third more work; or more devices with parallel.shard = "
        '"full", or a smaller network'
    )
    assert lines[3] == "training DiT-S/4 on cpu in float32"


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    machine(monkeypatch, 0.1)
    with pytest.raises(InputError, match=r"^this run needs about 0\.5 GiB of memory, and 0\.1 GiB are available; what"):
        run(tmp_path)
    assert not (tmp_path / "run").exists()
    assert "0.1 GiB are available" in run(tmp_path, "--parallel.check_memory=false")
    assert (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_small_patches_on_pixels_need_a_hundred_gigabytes(tmp_path, monkeypatch):
    """The recipe of the guide with 1,024 tokens an image, as `ditlab plan` predicts it."""
    machine(monkeypatch, 32)
    images = InMemory(torch.zeros(128, 3, 64, 64, dtype=torch.uint8), torch.zeros(128, dtype=torch.long), ["a"])
    model = {"name": "DiT-S/2", "condition": "adaln-zero", "qk_norm": True}
    recipe = parse_recipe(TINY | {"model": model}, ["--train.batch=128", "--train.precision=float32"])
    with pytest.raises(InputError) as error:
        train(recipe, tmp_path / "run", data=images, console=Console(quiet=True))
    assert str(error.value) == (
        "this run needs about 59.9 GiB of memory, and 32.0 GiB are available; what helps: parallel.checkpointing = "
        "true recomputes the blocks instead of keeping them, for a third more work; or parallel.accumulate = 4 "
        "processes the batch in parts; or parallel.check_memory = false trains nevertheless"
    )


def test_steps_are_not_timed_in_a_precision_that_does_not_fit(tmp_path, monkeypatch):
    def predicted(job, batch, *, half):
        return {"activations": batch * GIB * (0.6 if half else 1.0), "workspace": 0.0}

    monkeypatch.setattr(setup, "predicted_memory", predicted)
    monkeypatch.setattr(setup, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(setup, "probe", lambda *_, **__: pytest.fail("a step was timed"))
    machine(monkeypatch, 12)  # 16 GiB in float32, 9.6 GiB in bfloat16
    said = run(tmp_path)
    assert "a step in float32 does not fit in memory, so the run uses bfloat16 without timing both" in said
    assert "GiB" not in said
    saved = torch.load(tmp_path / "run" / "checkpoints" / f"{32:012d}" / STATE, weights_only=True)
    assert saved["precision"] == "bfloat16"


def test_memory_that_other_programs_use_is_said(tmp_path, monkeypatch):
    machine(monkeypatch, 64, free=0.25)
    said = run(tmp_path, "--train.precision=float32")
    assert said.startswith(
        "this run needs about 0.5 GiB of memory, and 0.2 of 64.0 GiB are free now; end other programs first\n"
    )


def test_an_estimate_that_fails_is_said(tmp_path, monkeypatch):
    def fail(job, batch, *, half):
        raise NotImplementedError("no meta device")

    monkeypatch.setattr(setup, "predicted_memory", fail)
    assert "the memory of DiT-S/4 cannot be predicted (NotImplementedError: no meta device)" in run(tmp_path)


def test_the_parts_of_a_lack_of_memory():
    def parts(gib):
        return lambda count: {"activations": count / 64 * gib * GIB, "workspace": 0.0}

    recipe = parse_recipe({"train": {"batch": 128}})
    room = Room(total=16 * GIB, free=20 * GIB)
    assert shortage(recipe, parts(15), room, 64, 2) == ""
    assert shortage(recipe, parts(20), room, 64, 2) == (
        "this run needs about 20.0 GiB of memory in each process, and 16.0 GiB are available; what helps: "
        "parallel.checkpointing = true recomputes the blocks instead of keeping them, for a third more work; or "
        "parallel.accumulate = 2 processes the batch in parts; or "
        'parallel.shard = "full" keeps a part of weights, gradients and moments in each process'
    )
    with pytest.raises(InputError, match=r"parallel\.check_memory = false trains nevertheless$"):
        shortage(recipe, parts(24.1), room, 64, 2)
    checked = replace(recipe, parallel=replace(recipe.parallel, check_memory=False))
    assert shortage(checked, parts(24.1), room, 64, 2).startswith("this run needs about 24.1 GiB")
