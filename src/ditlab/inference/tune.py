"""Tune timestep schedules for a model: times at which few steps give nearly the same images as many steps.

The times are moved one by one as long as images of fixed seeds come closer to the images of a fine schedule. This needs
neither gradients nor a metric, and takes a few hundred short sampling runs per number of steps.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.progress import progress_bar
from ditlab.core.weights import read_json
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.samplers import time_grid
from ditlab.inference.base import BasePipeline

FINE = 100  # steps of the fine schedule
STOCHASTIC = ("ddpm", "sde")
STARTS = ("uniform", "cosine", "shifted")
MOVES = (0.4, 0.2, 0.1, 0.05)  # moves as shares of the distance to the neighboring time, tried in this order


@dataclass(frozen=True)
class Tuned:
    """A tuned schedule, and the distance of its images from those of the fine schedule, relative to their norm."""

    times: list[float]
    before: float  # error of the uniform schedule
    after: float  # error of the tuned schedule


def tune(
    pipe: BasePipeline,
    steps: list[int],
    sampler: str,
    images: int,
    console: Console,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
) -> dict[int, Tuned]:
    """Tune a schedule for each number of steps.

    Args:
        pipe: the model.
        steps: numbers of steps, each at least 2.
        sampler: name of a deterministic sampler.
        images: number of images in each trial, with the seeds 0 to images - 1.
        console: console for the progress bar.
        guidance, guidance_interval: settings with which the schedules will be used (default: the model's).

    Raises:
        InputError: the model is a flow map, the sampler adds noise, or a number of steps is less than 2.
    """
    check_tunable(pipe, steps, sampler, images)
    pipe = pipe.model.fused()
    options = {"sampler": sampler, "guidance": guidance, "guidance_interval": guidance_interval}
    fine = fine_images(pipe, images, options)
    tuned = {}
    with progress_bar(console) as progress:
        for count in steps:
            task = progress.add_task(f"{count} steps", total=trials(count))
            error = distance(pipe, fine, images, options, partial(progress.advance, task))
            tuned[count] = descend(pipe, count, error)
    return tuned


def check_tunable(pipe: BasePipeline, steps: Sequence[int], sampler: str, images: int) -> None:
    """Check that schedules of a model can be tuned; arguments and errors are those of `tune`."""
    if isinstance(pipe.objective, FlowMap):
        raise InputError("this model is a flow map, whose times are fixed; there is nothing to tune")
    if sampler in STOCHASTIC:
        raise InputError(f"sampler {sampler} adds noise in each step, so schedules cannot be tuned; use ab4 or dpmpp")
    if min(steps) < 2 or images < 1:
        raise InputError(f"steps {min(steps)} and images {images}; give 2 or more, and 1 or more")


def fine_images(pipe: BasePipeline, images: int, options: dict[str, Any]) -> Tensor:
    """Generate the images or latents (B, C, ...) of the fixed seeds with a fine schedule."""
    exact = time_grid("uniform", pipe.objective.process, FINE, pipe.objective.last_time())
    return final(pipe, exact, images, options)


def trials(count: int) -> int:
    """Number of schedules that `descend` tries for a number of steps."""
    return len(STARTS) + 2 * (count - 1) * len(MOVES)


def distance(
    pipe: BasePipeline, fine: Tensor, images: int, options: dict[str, Any], advance: Callable[[], object]
) -> Callable[[Tensor], float]:
    """Return a function that computes the error of a schedule relative to `fine`, and calls `advance`."""

    def error(times: Tensor) -> float:
        advance()
        return float((final(pipe, times, images, options) - fine).norm() / fine.norm())

    return error


def check_target(file: Path) -> None:
    """Check that schedules may be written: there is no such file, or it holds earlier schedules.

    Raises:
        InputError: another file would be lost.
    """
    try:
        ours = not file.exists() or "grids" in read_json(file)
    except InputError:  # not JSON
        ours = False
    if not ours:
        raise InputError(f"{file} exists and holds no schedules; give another name")


def write_schedules(
    file: Path, pipe: BasePipeline, sampler: str, tuned: dict[int, Tuned], reuse: int | None = None
) -> None:
    """Write schedules as a file for `ditlab.diffusion.samplers.time_grid`, with the caching that they are tuned for."""
    times = {str(count): schedule.times for count, schedule in tuned.items()}
    content = {"process": pipe.model.describe()["objective"]["process"], "sampler": sampler, "grids": times}
    content |= {} if reuse is None else {"reuse": reuse}
    replace_text(file, json.dumps(content, indent=1) + "\n")


def descend(pipe: BasePipeline, count: int, error: Callable[[Tensor], float]) -> Tuned:
    """Start from the best of the named schedules, and move one time after another if that reduces the error."""
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
    """Generate the images or latents (B, C, ...) of the fixed seeds."""
    examples = pipe.examples
    labels = [examples[i % len(examples)] for i in range(images)]
    *_, last = pipe.steps(labels, seeds=range(images), schedule=times, **options)
    return last.x
