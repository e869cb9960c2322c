"""How far rounding alone moves the weights of a run: the same run, with its batches summed in another order.

    python benchmarks/rounding.py [--steps N]

A run that loses a host sums the gradients of a batch in another order, which changes their last bits. This program
makes the same change without any host: it trains the model of `benchmarks/elastic.py` once undisturbed, once more
undisturbed (the difference must be zero), and with batches in two and in four parts. It reports the relative
difference of all weights and of each tensor, and of the biases of queries, keys and values. A key's bias adds one
number to all scores of a query, which softmax ignores, so its gradient is zero but for rounding. Adam divides a
gradient by its own absolute value, and makes full steps of this noise, which change no output.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cyclopts
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

import ditlab
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.weights import checkpoints
from ditlab.data import open_dataset
from ditlab.data.base import numbered
from ditlab.training import train
from ditlab.training.losses import backward, make_context

BATCH, LR = 32, 2e-3
BIAS = "blocks.0.attn.qkv.bias"


def recipe(steps: int, parts: int, every: int) -> Recipe:
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
    useful = [torch.cat([values.flatten() for values in without_keys(tensors, b)]) for tensors in (a, b)]
    worst = max(of_tensor, key=of_tensor.__getitem__)
    return {
        "all weights": float((together[0] - together[1]).norm() / together[1].norm()),
        "all but the biases of keys": float((useful[0] - useful[1]).norm() / useful[1].norm()),
        "mean over tensors": sum(of_tensor.values()) / len(of_tensor),
        f"largest, {worst}": of_tensor[worst],
    }


def biases(tensor: Tensor) -> dict[str, Tensor]:
    """The biases of queries, keys and values, which are one tensor."""
    return dict(zip(("queries", "keys", "values"), tensor.chunk(3), strict=True))


def without_keys(tensors: dict[str, Tensor], names: Iterable[str]) -> Iterator[Tensor]:
    """All weights, without the biases of keys."""
    for name in names:
        if name == BIAS:
            parts = biases(tensors[name])
            yield parts["queries"]
            yield parts["values"]
        else:
            yield tensors[name]


def gradients(run: Path, settings: Recipe) -> dict[str, float]:
    """Norms of the gradients of the three biases, for the first images and the last weights of a run."""
    pipe = ditlab.load(run, device="cpu", weights="model")
    pipe.net.requires_grad_()
    dataset, indices = open_dataset(settings.data.source, settings.data), torch.arange(BATCH)
    backward(make_context(pipe, settings), numbered(dataset.fetch(indices), indices), 0, 0, 1, torch.float32)
    gradient = pipe.net.get_parameter(BIAS).grad
    assert gradient is not None
    return {name: float(part.norm()) for name, part in biases(gradient).items()}


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
        ours, theirs = (biases(weights(home / name, moments[-1])[BIAS]) for name in ("in 4 parts", "undisturbed"))
        results["biases"] = {
            "norm of the difference": {name: float((ours[name] - part).norm()) for name, part in theirs.items()},
            "norm": {name: float(part.norm()) for name, part in theirs.items()},
            "norm of the gradient": gradients(whole, recipe(steps, 1, steps)),
        }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    app = cyclopts.App()
    app.default(main)
    app()
