"""Training time by processor time, which other programs on the machine hardly change."""

import json

import pytest
import torch
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.inference.optimize.timing import CLOCKS
from ditlab.training import train
from ditlab.training.checks import check_clock

TINY = {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}


def recipe(**settings):
    train_table = {"images": 3200, "batch": 32, "precision": "float32", "compile": "never", "device": "cpu"}
    return parse_recipe({"model": TINY, "train": train_table | {"log_every": 32} | settings})


def test_a_limit_by_processor_time_holds_on_a_busy_machine(tmp_path, monkeypatch):
    calls = {"wall": 0, "cpu": 0}

    def clock(name, seconds):
        def read():
            calls[name] += 1
            return calls[name] * seconds

        return read

    monkeypatch.setitem(CLOCKS, "cpu", clock("cpu", 1.0))
    monkeypatch.setitem(CLOCKS, "wall", clock("wall", 1000.0))
    monkeypatch.setattr("ditlab.training.loop.show_preview", lambda *args: None)
    train(recipe(minutes=0.1, clock="cpu"), tmp_path, console=Console(quiet=True))  # six seconds
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["images"], line["seconds"]) for line in lines] == [(32 * i, float(i)) for i in range(1, 7)]
    assert not calls["wall"]


def test_processor_time_does_not_measure_a_gpu():
    check_clock(recipe(clock="cpu"), torch.device("cpu"))
    check_clock(recipe(), torch.device("cuda"))
    with pytest.raises(InputError) as error:
        check_clock(recipe(clock="cpu"), torch.device("cuda"))
    assert (
        str(error.value) == 'train.clock is "cpu", which does not measure the work of cuda; set train.clock to "wall"'
    )
