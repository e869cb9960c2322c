"""A training run that is killed again and again, compared with an uninterrupted one.

    python benchmarks/crash.py [KILLS] [OUT]

The run is killed (SIGKILL) at random moments: in a step, a checkpoint, a preview, or before it has started. After each
kill, every checkpoint must be complete. In the end, the weights, their average, the optimizer state, the metrics and
the previews must equal those of the uninterrupted run bit for bit. The program prints the result as JSON and exits
with 1 if anything differs.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.io import damage
from ditlab.core.weights import checkpoints
from ditlab.data import open_dataset
from ditlab.training import train

MORE = 480  # images added to the length if the run ends before it is killed; a multiple of all intervals below
LONGEST = 1.5  # most seconds before a process is killed
RECIPE = {
    "model": {"name": "DiT", "width": 32, "depth": 2, "heads": 2, "patch": 2},
    "data": {"source": "digits"},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {"batch": 16, "precision": "float32", "compile": "never", "device": "cpu", "ema": 0.9}
    # Neither interval divides the other, so that checkpoints contain sums of metrics that are not yet logged.
    | {"log_every": 80, "save_every": 48, "preview_every": 96},
    "sample": {"sampler": "euler", "steps": 2},
}


def main() -> None:
    """Kill, compare and print."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder)
        result = crash(kills, out)
    print(json.dumps(result))
    sys.exit(0 if result["bit_exact"] and not result["torn"] else 1)


def crash(kills: int, out: Path) -> dict[str, Any]:
    """Run and kill one training run, then compare it with an uninterrupted run of the same length."""
    open_dataset("digits")  # imports its library before the processes are forked; so does the next line
    torch.optim.AdamW([torch.zeros(1)])
    rng = random.Random(0)
    torn, resumed, images, killed = 0, 0, MORE, 0
    while killed < kills:
        process = start(out / "killed", images)
        time.sleep(rng.uniform(0.02, LONGEST))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        kept = checkpoints(out / "killed")
        torn += any(damage(folder, hashes=True) for folder in kept)
        resumed += bool(kept)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):  # the run ended before it was killed
            images += MORE
    for run in ("killed", "whole"):
        os.waitpid(start(out / run, images), 0)
    ours, theirs = content(out / "killed"), content(out / "whole")
    return {
        "kills": killed,
        "with_a_checkpoint": resumed,
        "images": images,
        "torn": torn,
        "bit_exact": ours == theirs,
        "differing": [key for key in theirs if ours.get(key) != theirs[key]],
    }


def start(out: Path, images: int) -> int:
    """Start the run in a forked process, which need not import PyTorch again; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            train(recipe(images), out, console=Console(quiet=True))
            code = 0
        finally:
            os._exit(code)
    return process


def recipe(images: int) -> Recipe:
    """The recipe of a run of this length."""
    train_options: dict[str, Any] = dict(RECIPE["train"])
    return parse_recipe(RECIPE | {"train": train_options | {"images": images}})


def content(run: Path) -> dict[str, Any]:
    """Everything that must be equal in both runs."""
    last = checkpoints(run)[-1]
    hashes = json.loads((last / "manifest.json").read_text())
    state = torch.load(last / "state.pt", weights_only=True)
    moments = {
        f"{number} {key}": value.tolist()
        for number, values in state["optimizer"]["state"].items()
        for key, value in values.items()
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]
    previews = {file.name: file.read_bytes() for file in (run / "previews").iterdir() if file.suffix == ".png"}
    return {
        "checkpoint": last.name,
        "average": hashes["model.safetensors"]["sha256"],
        "weights": hashes["raw.safetensors"]["sha256"],
        "moments": moments,
        "metrics": metrics,
        "previews": previews,
    }


if __name__ == "__main__":
    main()
