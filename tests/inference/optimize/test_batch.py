import io
import time
from functools import partial

import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console

from ditlab.inference.optimize import batch
from ditlab.inference.optimize.batch import best_batch
from ditlab.inference.prepare import ready

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine on which a call takes 1 s and 0.01 s more for each picture, and a picture 1 MiB."""
    now, peak = [0.0], [0]

    def call(pictures):
        now[0] += 1 + 0.01 * pictures
        peak[0] = max(peak[0], pictures * 2**20)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(batch, "peak_memory", lambda device: peak[0])
    monkeypatch.setattr(batch, "reset_peak_memory", lambda device: None)
    monkeypatch.setattr(batch, "free_memory", lambda device: 2**40)
    return call


def test_a_batch_is_doubled_while_images_get_faster(machine):
    # Each picture takes 1 / B + 0.01 s: 512 (0.0120) to 1024 (0.0110) is the last gain of more than 5 %.
    assert best_batch(machine, CPU, 100_000, 100) == 1024
    assert best_batch(lambda n: machine(n + 400 * (n > 64)), CPU, 100_000, 100) == 64


def test_trying_ends_before_it_costs_more_than_it_saves(machine):
    assert best_batch(machine, CPU, 64, 1) == 4
    assert best_batch(machine, CPU, 64, 1000) == 64


def test_memory_is_left(machine, monkeypatch):
    monkeypatch.setattr(batch, "free_memory", lambda device: 100 * 2**20)
    assert best_batch(machine, CPU, 100_000, 100) == 32  # with guidance 64 MiB; the next one would need 128


def test_a_model_gets_a_default_batch_and_keeps_a_given_one():
    settings = {"precision": "float32", "compile": "never", "count": 100, "options": {"num_inference_steps": 400}}
    pipe, found = ready(tiny_pipeline(), Console(quiet=True), batch_size=None, **settings)
    assert found in (4, 8, 16, 32, 64)
    assert ready(pipe, Console(quiet=True), batch_size=7, **settings)[1] == 7


def test_memory_that_is_too_small_halves_the_batch(machine, monkeypatch, capsys):
    def call(pictures):
        if pictures > 40:
            raise torch.OutOfMemoryError("too much")
        machine(pictures)

    assert best_batch(call, CPU, 100_000, 100) == 32
    assert best_batch(lambda n: call(100), CPU, 100_000, 100) == 1

    def work_of(net, dtype, setting, work, times, few):
        call(work.args[0])
        return False

    monkeypatch.setattr("ditlab.inference.prepare.wanted", work_of)
    monkeypatch.setattr("ditlab.inference.prepare.best_batch", lambda *values: 64)
    console = Console(file=io.StringIO())
    settings = {"precision": "float32", "compile": "auto", "count": 100, "options": {}}
    monkeypatch.setattr("ditlab.inference.prepare.partial", lambda run, batch: partial(call, batch))
    assert ready(tiny_pipeline(), console, batch_size=None, **settings)[1] == 32
    assert "not enough memory for the batch; continuing with 32 at a time" in console.file.getvalue()
