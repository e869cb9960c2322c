"""Time of a training step in each part of a study, relative to the first part, on the same images.

    python benchmarks/steps.py [STUDY] [ROUNDS]

Whole steps (loss, gradient, clipping, optimizer, weight average) in the precision that a run would choose, and compiled
if a run would compile. All parts run in turns; medians.
"""

from collections.abc import Callable

import torch
from cyclopts import run
from rich.console import Console

from ditlab.config.sections import Recipe
from ditlab.core.device import keep_freed_memory, pick_device
from ditlab.data import open_dataset
from ditlab.inference.optimize.compilation import compile_and_tell
from ditlab.inference.optimize.timing import interleaved
from ditlab.study.recipe import read_study
from ditlab.training.ema import EMA
from ditlab.training.loop import take_step
from ditlab.training.losses import backward, make_context, trial_step
from ditlab.training.optim import make_optimizer
from ditlab.training.power_ema import PowerAverages
from ditlab.training.setup import build, pick_autoencoder, probe
from ditlab.training.state import TrainState

CONSOLE = Console(stderr=True)


def main(study: str = "options", rounds: int = 9) -> None:
    """Build all parts, time them and print the table."""
    keep_freed_memory()
    sides = {}
    for name, recipe in read_study(study).parts.items():
        CONSOLE.print(name)
        sides[name] = step_of(recipe)
    seconds = interleaved(sides, rounds)
    base = next(iter(seconds.values()))
    print("| part | s/step | relative to the first |\n|---|---|---|")
    for name, time in seconds.items():
        print(f"| {name} | {time:.3f} | {time / base:.2f}x |")


def step_of(recipe: Recipe) -> Callable[[], None]:
    """A training step like the trainer's, always on the same images."""
    settings = recipe.train
    dataset = open_dataset(recipe.data.source, recipe.data)
    autoencoder = pick_autoencoder(recipe.data.autoencoder, dataset, None)
    pipe = build(recipe, dataset, autoencoder, pick_device(settings.device))
    net = pipe.net.train()
    state = TrainState(net, EMA(net, settings.ema), make_optimizer(net, recipe.optim), PowerAverages(net, ()))
    context = make_context(pipe, recipe)
    trial = trial_step(context, dataset, settings.batch)
    precision = probe(trial, net, alone=True) if settings.precision == "auto" else settings.precision
    dtype = getattr(torch, precision)
    CONSOLE.print(precision)
    if settings.compile != "never":
        compile_and_tell(net, lambda: trial(dtype), CONSOLE, dynamic=bool(net.config.get("exits")))
    batch = dataset.fetch(torch.arange(settings.batch))

    def step() -> None:
        backward(context, batch, 0, 0, 1, dtype)
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.optim.clip or float("inf"))
        take_step(state, recipe.optim.lr)

    return step


if __name__ == "__main__":
    run(main)
