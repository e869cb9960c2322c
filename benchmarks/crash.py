"""A training run that is killed again and again, against one that was left alone.

    python benchmarks/crash.py [KILLS] [OUT]

Each time the run is killed (SIGKILL) at a random moment: in a step, a checkpoint, a preview, or before it has begun.
After each kill every checkpoint must be whole; in the end weights, average, optimiser state and metrics must equal
those of the undisturbed run bit for bit. Prints what was found as JSON; 1 is returned where anything differs.
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

MORE = 480  # images by which the run is made longer when it ends before it is killed; all that is due falls on these
LONGEST = 1.5  # seconds from the start of a process to its end
RECIPE = {
    "model": {"name": "DiT", "width": 32, "depth": 2, "heads": 2, "patch": 2},
    "data": {"source": "digits"},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {"batch": 16, "precision": "float32", "compile": "never", "device": "cpu", "ema": 0.9}
    # Neither divides the other: sums of metrics are carried over checkpoints.
    | {"log_every": 80, "save_every": 48, "preview_every": 96},
    "sample": {"sampler": "euler", "steps": 2},
}


def main() -> None:
    """Kill, compare, print."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(folder)
        found = crash(kills, out)
    print(json.dumps(found))
    sys.exit(0 if found["bit_exact"] and not found["torn"] else 1)


def crash(kills: int, out: Path) -> dict[str, Any]:
    """The disturbed run, and then the other one of the same length."""
    open_dataset("digits")  # loads its library before the processes part, as the next line does
    torch.optim.AdamW([torch.zeros(1)])
    chance = random.Random(0)
    torn, resumed, images, happened = 0, 0, MORE, 0
    while happened < kills:
        process = start(out / "killed", images)
        time.sleep(chance.uniform(0.02, LONGEST))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        kept = checkpoints(out / "killed")
        torn += any(damage(folder, hashes=True) for folder in kept)
        resumed += bool(kept)
        happened += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):  # it had come to its end before
            images += MORE
    for run in ("killed", "whole"):
        os.waitpid(start(out / run, images), 0)
    ours, theirs = content(out / "killed"), content(out / "whole")
    return {
        "kills": happened,
        "with_a_checkpoint": resumed,
        "images": images,
        "torn": torn,
        "bit_exact": ours == theirs,
        "differing": [key for key in theirs if ours.get(key) != theirs[key]],
    }


def start(out: Path, images: int) -> int:
    """The run in a process of its own, forked, so that it need not load PyTorch again; its number."""
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
    """The run of that length."""
    train_options: dict[str, Any] = dict(RECIPE["train"])
    return parse_recipe(RECIPE | {"train": train_options | {"images": images}})


def content(run: Path) -> dict[str, Any]:
    """All that must be equal."""
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
