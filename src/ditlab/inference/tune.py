"""Timestep schedules made for one model: the few times at which a sampler comes closest to a solution with many steps.

Each time is moved as long as images of fixed seeds come closer to those of the fine solution. This needs no gradients
and no score, only the model, and takes a few hundred short sampling runs for each number of steps.
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
from ditlab.inference.base import BasePipeline

FINE = 100  # steps of the solution that the others are compared with
STOCHASTIC = ("ddpm", "sde")
STARTS = ("uniform", "cosine", "shifted")
MOVES = (0.4, 0.2, 0.1, 0.05)  # of the distance to the neighbor, one after the other


@dataclass(frozen=True)
class Tuned:
    """A schedule, and how far its images are from the fine solution, relative to the spread of the solution."""

    times: list[float]
    before: float  # of the uniform schedule
    after: float


def tune(
    pipe: BasePipeline,
    steps: list[int],
    sampler: str,
    images: int,
    console: Console,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
) -> dict[int, Tuned]:
    """Find a schedule for each number of steps.

    Args:
        pipe: the model.
        steps: numbers of steps, each at least 2.
        sampler: a deterministic one.
        images: generated in each trial, with the seeds 0 to images - 1.
        console: where progress is shown.
        guidance, guidance_interval: with which the schedule will be used (default: the model's).

    Raises:
        InputError: a sampler with noise of its own, or fewer than 2 steps.
    """
    if sampler in STOCHASTIC:
        raise InputError(f"sampler {sampler} adds noise in each step, so schedules cannot be tuned; use ab4 or dpmpp")
    if min(steps) < 2 or images < 1:
        raise InputError(f"steps {min(steps)} and images {images}; give 2 or more, and 1 or more")
    pipe = pipe.model.fused()
    options = {"sampler": sampler, "guidance": guidance, "guidance_interval": guidance_interval}
    exact = time_grid("uniform", pipe.objective.process, FINE, pipe.objective.last_time())
    fine = final(pipe, exact, images, options)
    trials = {count: len(STARTS) + 2 * (count - 1) * len(MOVES) for count in steps}
    tuned = {}
    with progress_bar(console) as progress:
        for count in steps:
            task = progress.add_task(f"{count} steps", total=trials[count])

            def error(times: Tensor, task: TaskID = task) -> float:
                progress.advance(task)
                return float((final(pipe, times, images, options) - fine).norm() / fine.norm())

            tuned[count] = descend(pipe, count, error)
    return tuned


def write_schedules(file: Path, pipe: BasePipeline, sampler: str, tuned: dict[int, Tuned]) -> None:
    """Write the file that `ditlab.diffusion.samplers.time_grid` reads."""
    times = {str(count): schedule.times for count, schedule in tuned.items()}
    content = {"process": pipe.model.describe()["objective"]["process"], "sampler": sampler, "grids": times}
    replace_text(file, json.dumps(content, indent=1) + "\n")


def descend(pipe: BasePipeline, count: int, error: Callable[[Tensor], float]) -> Tuned:
    """Start at the best of the named schedules, and move one time after another as long as the error falls."""
    process, last = pipe.objective.process, pipe.objective.last_time()
    starts = {name: time_grid(name, process, count, last) for name in STARTS}
    errors = {name: error(times) for name, times in starts.items()}
    name = min(errors, key=lambda name: errors[name])
    times, least = starts[name], errors[name]
    for move in MOVES:
        for i in range(1, count):
            for neighbor in (i - 1, i + 1):
                moved = times.clone()
                moved[i] = torch.lerp(times[i], times[neighbor], move)
                trial = error(moved)
                if trial < least:
                    times, least = moved, trial
    return Tuned(times.tolist(), errors["uniform"], least)


def final(pipe: BasePipeline, times: Tensor, images: int, options: dict[str, Any]) -> Tensor:
    """The images, or latents, of the fixed seeds (B, C, ...)."""
    labels = [i % pipe.net.classes for i in range(images)] if pipe.net.classes else None
    *_, last = pipe.steps(labels, seeds=range(images), schedule=times, **options)
    return last.x
