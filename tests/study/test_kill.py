"""A study that is killed at any moment gives the results of one that was never disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from processes import FORK
from rich.console import Console

from ditlab.study.recipe import read_study
from ditlab.study.run import run_study

QUIET = Console(quiet=True)
TINY = """
seeds = [0, 1]
[budget]
images = 96
[settings]
model = {name = "DiT-S/4", width = 32, depth = 1, heads = 2}
train = {batch = 32, precision = "float32", compile = "never", device = "cpu"}
[parts]
"a" = {}
"b" = {model.width = 48}
[evaluation]
reference = "digits-held-out"
count = 70
steps = 2
sampler = "euler"
device = "cpu"
metrics = ["frechet"]
[evaluations]
"half" = {at = 0.5}
"end" = {}
"""


def recipe(folder, text=TINY):
    (folder / "tiny.toml").write_text(text, encoding="utf-8")
    return read_study(str(folder / "tiny.toml"))


def scores(out):
    """Everything in the results except for measured times."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key != "seconds"} for line in lines if "metrics" in line]
    return sorted(kept, key=lambda line: (line["run"], line["evaluation"]))


def killed_at(name, number, study, out):
    """In a process of its own: run the study until the given call of a function of `os`, which kills the process."""
    original, calls = getattr(os, name), 0

    def counted(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(os, name, counted)
    run_study(study, out, QUIET)


@pytest.mark.slow
def test_a_study_killed_between_any_two_files(tmp_path):
    one = TINY.replace('"b" = {model.width = 48}\n', "").replace("seeds = [0, 1]", "seeds = [0]")
    study, out, undisturbed = recipe(tmp_path, one), tmp_path / "out", tmp_path / "undisturbed"
    for name, number in (("replace", 5), ("fsync", 9)):  # while the run is trained; the second time resumes
        process = FORK.Process(target=killed_at, args=(name, number, study, out))
        process.start()
        process.join(100)
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "results.jsonl").exists() or len(scores(out)) < 2
    run_study(study, out, QUIET)
    run_study(study, undisturbed, QUIET)
    assert scores(out) == scores(undisturbed)


@pytest.mark.slow
def test_a_study_killed_at_random_moments(tmp_path):
    recipe(tmp_path)
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "ditlab", "study", str(tmp_path / "tiny.toml"), "--out"]
    started = time.monotonic()
    subprocess.run([*command, str(undisturbed)], check=True, capture_output=True)
    whole, moments = time.monotonic() - started, random.Random(0)
    killed = 0
    for _ in range(6):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(whole * moments.uniform(0.3, 0.9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed >= 2
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert scores(out) == scores(undisturbed)
    first, second = (json.loads((folder / "study.json").read_text())["results"] for folder in (out, undisturbed))
    for row in (*first, *second):
        del row["results"]["seconds"]
    assert first == second
