"""Time grids made for one model: the few times at which a sampler comes nearest to what very many would give.

The times are moved one by one as long as pictures of fixed seeds come nearer to those of a fine solution. This needs no
gradients and no score, only the model; it takes a few hundred short samplings for each count of steps.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import TaskID
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.progress import progress_bar
from ditlab.diffusion.samplers import time_grid
from ditlab.inference.pipeline import Pipeline

FINE = 100  # steps of the solution that is taken for exact
STOCHASTIC = ("ddpm", "sde")
STARTS = ("uniform", "cosine", "shifted")
MOVES = (0.4, 0.2, 0.1, 0.05)  # of the distance to the neighbour, one after the other


@dataclass(frozen=True)
class Tuned:
    """A grid, and how far pictures are from the fine solution, relative to its spread."""

    times: list[float]
    before: float  # with the uniform grid
    after: float


def tune(
    pipe: Pipeline,
    steps: list[int],
    sampler: str,
    pictures: int,
    console: Console,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
) -> dict[int, Tuned]:
    """Find a grid for each count of steps.

    Args:
        pipe: the model.
        steps: counts of steps, each at least 2.
        sampler: a deterministic one.
        pictures: drawn at each trial, with the seeds 0 to pictures - 1.
        console: where progress is shown.
        guidance, interval: with which the grid shall be used; the model's own if None.

    Raises:
        InputError: a sampler with noise of its own, or fewer than 2 steps.
    """
    if sampler in STOCHASTIC:
        raise InputError(f"sampler {sampler} draws noise at each step, so no grid can be measured; take ab4 or dpmpp")
    if min(steps) < 2 or pictures < 1:
        raise InputError(f"steps {min(steps)} and pictures {pictures}; give 2 or more, and 1 or more")
    pipe = pipe.fused()
    options = {"sampler": sampler, "guidance_scale": guidance, "guidance_interval": interval}
    exact = time_grid("uniform", pipe.objective.process, FINE, pipe.objective.last_time())
    fine = final(pipe, exact, pictures, options)
    trials = {count: len(STARTS) + 2 * (count - 1) * len(MOVES) for count in steps}
    found = {}
    with progress_bar(console) as progress:
        for count in steps:
            task = progress.add_task(f"{count} steps", total=trials[count])

            def error(grid: Tensor, task: TaskID = task) -> float:
                progress.advance(task)
                return float((final(pipe, grid, pictures, options) - fine).norm() / fine.norm())

            found[count] = descend(pipe, count, error)
    return found


def write_grids(file: Path, pipe: Pipeline, sampler: str, found: dict[int, Tuned]) -> None:
    """The file that `ditlab.diffusion.samplers.time_grid` reads."""
    grids = {str(count): each.times for count, each in found.items()}
    content = {"process": pipe.describe()["objective"]["process"], "sampler": sampler, "grids": grids}
    replace_text(file, json.dumps(content, indent=1) + "\n")


def descend(pipe: Pipeline, count: int, error: Callable[[Tensor], float]) -> Tuned:
    """From the best of the named grids, one time after another to where the error is less."""
    process, last = pipe.objective.process, pipe.objective.last_time()
    grids = {name: time_grid(name, process, count, last) for name in STARTS}
    errors = {name: error(grid) for name, grid in grids.items()}
    name = min(errors, key=lambda name: errors[name])
    grid, least = grids[name], errors[name]
    for move in MOVES:
        for i in range(1, count):
            for neighbour in (i - 1, i + 1):
                moved = grid.clone()
                moved[i] = torch.lerp(grid[i], grid[neighbour], move)
                trial = error(moved)
                if trial < least:
                    grid, least = moved, trial
    return Tuned(grid.tolist(), errors["uniform"], least)


def final(pipe: Pipeline, grid: Tensor, pictures: int, options: dict[str, Any]) -> Tensor:
    """The pictures, or latents, of the fixed seeds (B, C, H, W)."""
    labels = [i % pipe.net.classes for i in range(pictures)] if pipe.net.classes else None
    *_, last = pipe.steps(labels, seeds=range(pictures), grid=grid, **options)
    return last.x
