"""How far rounding alone moves the weights of a run: the same run, with its batches summed in another order.

    python benchmarks/rounding.py [--steps N]

A run that loses a host sums the gradients of a batch in another order, which changes their last bits. This program
makes the same change without any host: it trains the model of `benchmarks/elastic.py` once undisturbed, once more
undisturbed (the difference must be zero), and with batches in two and in four parts. It reports the relative
difference of all weights and of each tensor, and of the first gradient and the first step of Adam: Adam divides a
gradient by its own absolute value, so a gradient that is nearly zero, and whose sign rounding decides, moves its
weight by a full step in one direction or the other.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import cyclopts
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from ditlab.config.reader import parse_recipe
from ditlab.core.weights import checkpoints
from ditlab.data import open_dataset
from ditlab.data.base import numbered
from ditlab.training import train
from ditlab.training.losses import backward, make_context
from ditlab.training.model import build, pick_autoencoder

BATCH, LR = 32, 2e-3


def recipe(steps: int, parts: int, every: int) -> Any:
    """The recipe of a run whose batches are computed in parts."""
    settings = {"batch": BATCH, "ema": 0.9, "precision": "float32", "compile": "never", "device": "cpu", "keep": 1000}
    settings |= {
        "images": steps * BATCH,
        "save_every": every * BATCH,
        "preview_every": 10**9,
        "log_every": every * BATCH,
    }
    return parse_recipe(
        {
            "model": {"name": "DiT", "width": 32, "depth": 1, "heads": 2, "patch": 4},
            "optim": {"lr": LR, "warmup": 64},
            "train": settings,
            "parallel": {"accumulate": parts},
        }
    )


def weights(run: Path, step: int) -> dict[str, Tensor]:
    """All weights after a step, in float64."""
    folder = next(folder for folder in checkpoints(run) if int(folder.name) == step * BATCH)
    return {name: tensor.double() for name, tensor in load_file(folder / "raw.safetensors").items()}


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Differences of all weights together, and of the tensors: ||a - b|| / ||b||."""
    together = [torch.cat([tensors[name].flatten() for name in b]) for tensors in (a, b)]
    of_tensor = {name: float((a[name] - b[name]).norm() / b[name].norm().clamp_min(1e-30)) for name in b}
    worst = max(of_tensor, key=of_tensor.__getitem__)
    return {
        "all weights": float((together[0] - together[1]).norm() / together[1].norm()),
        "mean over tensors": sum(of_tensor.values()) / len(of_tensor),
        f"largest, {worst}": of_tensor[worst],
    }


def first_update() -> dict[str, float]:
    """The gradient of the first batch in one part and in four, and the first step of Adam from both."""
    settings = recipe(1, 1, 1)
    dataset = open_dataset(settings.data.source, settings.data)
    updates, gradients = [], []
    for parts in (1, 4):
        torch.manual_seed(0)
        pipe = build(settings, dataset, pick_autoencoder("", dataset, None), torch.device("cpu"))
        indices = torch.arange(BATCH)
        batch = numbered(dataset.fetch(indices), indices)
        backward(make_context(pipe, settings), batch, 0, 0, parts, torch.float32)
        trained = [parameter for parameter in pipe.net.parameters() if parameter.grad is not None]
        before = torch.cat([parameter.detach().flatten().double() for parameter in trained])
        gradients.append(
            torch.cat([parameter.grad.flatten().double() for parameter in trained if parameter.grad is not None])
        )
        torch.optim.AdamW(trained, lr=LR, weight_decay=0.0).step()
        updates.append(torch.cat([parameter.detach().flatten().double() for parameter in trained]) - before)
    whole, parted = gradients
    moved, used = (updates[0] - updates[1]).abs(), whole != 0
    apart = used & (moved > 0.01 * LR)
    return {
        "gradient, relative difference": float((whole - parted).norm() / whole.norm()),
        "first step of Adam, relative difference": float((updates[0] - updates[1]).norm() / updates[0].norm()),
        "largest difference of a weight, in learning rates": float(moved.max() / LR),
        "share of the weights that differ by over 1 % of a learning rate": float(
            apart.double().sum() / used.double().sum()
        ),
        "their median gradient / that of all": float(whole[apart].abs().median() / whole[used].abs().median()),
    }


def main(*, steps: int = 300) -> None:
    """Train the four runs, and print the differences.

    Args:
        steps: length of the runs.
    """
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, parts in (("undisturbed", 1), ("again", 1), ("in 2 parts", 2), ("in 4 parts", 4)):
            train(recipe(steps, parts, max(1, steps // 6)), home / name, console=Console(quiet=True))
        whole = home / "undisturbed"
        moments = [int(folder.name) // BATCH for folder in checkpoints(whole)]
        for name in ("again", "in 2 parts", "in 4 parts"):
            results[name] = {step: difference(weights(home / name, step), weights(whole, step)) for step in moments}
    results["first batch, in 4 parts"] = first_update()
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    app = cyclopts.App()
    app.default(main)
    app()
