"""Runs whose processes are lost, hang, or hold other numbers than the rest."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import posix_only
from processes import in_processes
from rich.console import Console
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import ditlab
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import RunError
from ditlab.core.types import Batch, Condition
from ditlab.training import elastic, loop, losses, replicas, train
from ditlab.training.elastic import divide_batch
from ditlab.training.hanging import stack_of
from ditlab.training.job import Job
from ditlab.training.losses import backward
from ditlab.training.parallel import Place
from ditlab.training.run_folder import RunFolder

QUIET, CPU = Console(quiet=True), torch.device("cpu")
RECIPE = {
    "model": {"name": "DiT", "width": 32, "depth": 1, "heads": 2, "patch": 4},
    "data": {"source": "digits"},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {
        "images": 128, "batch": 32, "ema": 0.9, "precision": "float32", "compile": "never", "device": "cpu",
        "log_every": 32, "preview_every": 1_000_000, "save_every": 64,
    },
    "sample": {"sampler": "euler", "steps": 2},
    "parallel": {"timeout": 5},
}  # fmt: skip


class Squares:
    """A training context whose loss of each image is the square of one weight times the image."""

    def __init__(self, batch):
        self.net = self.network = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.net.weight)
        self.settings = type("Settings", (), {"batch": batch})()


@pytest.mark.parametrize(("world", "parts"), [(1, 3), (3, 1), (3, 2), (5, 3)])
def test_unequal_shares_of_a_batch_add_up_to_its_gradient(monkeypatch, world, parts):
    images = torch.arange(1.0, 18)
    monkeypatch.setattr(
        losses,
        "batch_losses",
        lambda run, rows, seen, first, dtype, total: losses.Losses(
            {"loss": (run.net.weight[0, 0] * images[first : first + len(rows)]) ** 2}, None
        ),
    )
    gradients, counts = [], []
    for rank in range(world):
        run, rows = Squares(17), Place(CPU, rank, world).rows(17)
        batch = Batch(images[rows], Condition())
        counts.append(len(batch))
        found = backward(run, batch, 0, rows.start, parts, torch.float32, world)
        assert len(found.total) == len(batch)
        gradients.append(run.net.weight.grad.item())
        assert -(-len(batch) // parts) <= Place(CPU, rank, world).share(17, parts)
    assert sum(counts) == 17
    assert max(counts) - min(counts) <= 1
    assert sum(gradients) / world == pytest.approx(2 * (images**2).mean().item(), rel=1e-6)


def job_of(world, folder, said, **parallel):
    """A run of some processes, of which this is one that needs no exchange with the others."""
    recipe = parse_recipe(RECIPE | {"parallel": parallel})
    place = Place(CPU, 0, world)
    job = Job(recipe, RunFolder(folder), place, QUIET)
    job.say = said.append
    return job


def test_processes_that_are_left_compute_a_batch_in_more_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(Place, "agree", lambda self, value: value)
    monkeypatch.setattr(elastic, "saved_processes", lambda job: {"count": 4, "at_once": 4})
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    said = []
    for world, parts in ((8, 2), (4, 2), (3, 3), (2, 4), (1, 8)):
        job = job_of(world, tmp_path, said, accumulate=2)
        divide_batch(job)
        assert job.parts == parts, world
        assert job.place.share(32, job.parts) <= 4
        assert job.processes == {"count": max(world, 4), "at_once": 2 if world == 8 else 4}
    assert said == [
        "3 of 4 processes are left; each computes its images of a batch in 3 parts",
        "3 processes share a batch of 32: 10 or 11 images each",
        "2 of 4 processes are left; each computes its images of a batch in 4 parts",
        "1 of 4 processes are left; each computes its images of a batch in 8 parts",
    ]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")  # whoever starts the processes chooses the parts
    job = job_of(2, tmp_path, said, accumulate=2)
    divide_batch(job)
    assert job.parts == 2


def test_the_processes_with_the_rarest_numbers_are_found():
    assert replicas.minority([(None, 5)] * 4) == []
    assert replicas.minority([(None, 5), (None, 6), (None, 5), (None, 5)]) == [1]
    assert replicas.minority([(None, 5), (None, 6)]) == [0, 1]
    assert replicas.minority([("a", 1), ("b", 2), ("a", 1), ("b", 3), ("b", 2)]) == [3]
    assert replicas.minority([("a", 1), ("b", 2)]) == []


def test_moments_of_several_inner_tensors_are_compared():
    value = TwoTensor(torch.zeros(3), torch.ones(3))
    assert [part.tolist() for part in replicas.plain_parts(value)] == [[0, 0, 0], [1, 1, 1]]
    assert replicas.plain_parts(torch.ones(())) == []
    assert int(replicas.checksum(torch.tensor([3, 4], dtype=torch.uint8))) == 7


def test_one_bit_changes_a_checksum():
    value = torch.randn(1000)
    before = replicas.checksum(value)
    value.view(torch.int32)[500] ^= 1
    assert abs(int(replicas.checksum(value) - before)) == 1


def test_the_place_where_a_process_hangs_is_read_from_its_stack(tmp_path):
    assert stack_of(3, tmp_path) == stack_of(3, None) == ""
    (tmp_path / "rank-3.txt").write_text(
        'Timeout (0:08:00)!\nThread 0x1 (most recent call first):\n  File "a.py", line 5 in wait\n\n'
        'Thread 0x2 (most recent call first):\n  File "/x/reader.py", line 88 in fetch\n  File "b.py", line 1 in main\n'
    )
    expected = f" (it hangs in fetch, /x/reader.py:88; all its stacks: {tmp_path}/rank-3.txt)"
    assert stack_of(3, tmp_path) == expected
    (tmp_path / "rank-3.txt").write_text("")
    assert stack_of(3, tmp_path) == ""


def harmed(out, harm, recipe):
    """Train, where the second process does harm after its step at 64 images."""
    step = loop.take_step

    def bad_step(state, rate):
        step(state, rate)
        if os.environ["RANK"] == "1" and state.seen >= 64:
            harm(state)

    loop.take_step = bad_step
    train(recipe, out, console=QUIET)


def flip(state):
    with torch.no_grad():
        next(state.net.parameters()).view(torch.int32).view(-1)[0] ^= 1


def ruin(state):
    with torch.no_grad():
        next(iter(state.ema.net.parameters())).view(-1)[0] = torch.nan


def hang(state):
    time.sleep(40)


@pytest.fixture(scope="module")
def warm():
    """What the processes need is imported once, before they are forked."""
    import torch._dynamo  # noqa: F401

    ditlab.data.open_dataset("digits")


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip, "rank 1: x_embedder.proj.weight differs from that of the other processes after 96 images"),
        (ruin, "rank 1: the average of x_embedder.proj.weight is not finite after 96 images"),
    ],
)
def test_a_process_with_other_numbers_is_named(tmp_path, warm, harm, problem):
    recipe = RECIPE | {"parallel": {"check_every": 32, "timeout": 30}}
    for error in in_processes(3, harmed, tmp_path / "run", harm, recipe):
        assert isinstance(error, RunError), error
        assert str(error) == f"{problem}; the same command resumes at the newest checkpoint"
    assert ditlab.load(tmp_path / "run").config["images_seen"] == 64


@posix_only
@pytest.mark.slow
def test_a_process_that_hangs_is_named_with_its_stack(tmp_path, warm):
    first, _ = in_processes(2, harmed, tmp_path / "run", hang, RECIPE)
    assert isinstance(first, RunError), first
    assert re.match(
        r"rank 0: rank 1 \(it hangs in hang, .*test_lost\.py:\d+; all its stacks: .*rank-1\.txt\) did not", str(first)
    )
    assert "hang" in (tmp_path / "run" / "stacks" / "rank-1.txt").read_text()


@posix_only
@pytest.mark.slow
def test_processes_without_equal_shares_compute_what_one_does(tmp_path, warm):
    recipe = RECIPE | {"parallel": {"accumulate": 2}}
    assert in_processes(3, harmed, tmp_path / "three", id, recipe) == [None] * 3
    os.environ["RANK"] = "0"
    harmed(tmp_path / "one", id, recipe)
    three, one = (ditlab.load(tmp_path / name).net.state_dict() for name in ("three", "one"))
    assert all((three[key] - one[key]).norm() <= 2e-4 * max(one[key].norm(), 1e-2) for key in one)
    assert not (tmp_path / "three" / "stacks").exists()


@posix_only
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_host_is_lost_and_returns(tmp_path):
    """Two launchers of two processes each, of which one is killed: takes minutes."""
    program, out = Path(__file__).parents[2] / "benchmarks" / "elastic.py", tmp_path / "result.json"
    subprocess.run([sys.executable, program, "--images", "4800", "--out", out], check=True, timeout=1200)
    result = json.loads(out.read_text())
    assert result["lines"] == 150
    assert result["lost_steps"] <= 10  # no step before the last checkpoint
    assert result["largest_loss_difference"] < 1e-4  # of the same images in the same order
    assert result["difference"] < 1e-3
