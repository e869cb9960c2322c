"""Choose the cheapest settings of memory with which a run fits a machine."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Self

import torch

from ditlab.config.sections import Recipe
from ditlab.core.units import GIB
from ditlab.training.memory import (
    ActivationSizes,
    Held,
    Make,
    Sizes,
    held_in_training,
    host_parts,
    of_blocks,
    parts_with,
    peak,
    shares_of,
)

# Overhead of a step in seconds, apart from its arithmetic: launching about a hundred kernels for the forward and
# backward pass of each block, reading the batch, and updating weights and averages.
OVERHEAD_OF_BLOCK, OVERHEAD_OF_STEP = 0.5e-3, 3e-3
# Bytes per second, of which published peaks are two to three times as high.
TO_HOST = 20e9  # between a GPU and its host (PCIe 4 with 16 lanes)
BETWEEN = 100e9  # between GPUs, per GPU (NVLink; 8 GPUs of a host)
IN_HOST = 40e9  # of a process that updates weights on its host
USUAL = {
    "parallel.shard": "none",
    "parallel.checkpointing": False,
    "parallel.offload": (),
    "optim.moments": "float32",
    "parallel.accumulate": 1,
}
OFFLOADS = ((), ("average",), ("average", "moments"), ("activations",), ("average", "moments", "activations"))


@dataclass(frozen=True)
class Fit:
    """Settings with which a run fits."""

    settings: dict[str, Any]  # "parallel.shard" -> "full"; those that are not the default
    peak: float  # bytes of a GPU
    host: float  # bytes of the host, for each process
    seconds: float  # of a step, apart from launching kernels
    at_once: int  # images of a process at a time

    def words(self) -> str:
        """The settings as recipes write them."""
        return ", ".join(f"{key} = {written(value)}" for key, value in self.settings.items()) or "the defaults"


def written(value: Any) -> str:
    """A value as recipes write it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class Question:
    """A run, and the machine that it must fit."""

    make: Make
    recipe: Recipe
    devices: int
    usable: float  # bytes of a GPU
    flops: float  # per second, of a GPU
    flop: float  # of a step of all processes, without recomputing
    again: float  # share of it that activation checkpointing adds
    launch: float  # seconds in which the kernels of a part of a batch are launched

    @classmethod
    def of(
        cls, make: Make, recipe: Recipe, held: Held, gmacs: float, *, devices: int, usable: float, flops: float
    ) -> Self:
        """The question for a network.

        Args:
            make: function that builds the network.
            recipe: the settings of the run.
            held: memory that does not depend on the batch size.
            gmacs: of the network for one image.
            devices: number of GPUs.
            usable: bytes of a GPU.
            flops: operations per second of a GPU.
        """
        trained = held.gradients / held.weights  # gradients are a third of the work if all weights have some
        with torch.device("meta"):
            launch = OVERHEAD_OF_BLOCK * len(make().repeated)
        flop = (4 + 2 * trained) * gmacs * 1e9 * recipe.train.batch
        return cls(make, recipe, devices, usable, flops, flop, 2 / (4 + 2 * trained), launch)


def candidates(recipe: Recipe, devices: int) -> Iterator[Recipe]:
    """The settings that are considered, each as a recipe."""
    adamw, plain = recipe.optim.name == "adamw", not recipe.train.lora
    choices: Iterator[tuple[Any, ...]] = product(("none", "full"), (False, True), OFFLOADS, ("float32", "8bit"))
    for shard, checkpointing, offload, moments in choices:
        if shard == "full" and (devices == 1 or offload or moments == "8bit" or not adamw or not plain):
            continue
        if ("moments" in offload and (moments == "8bit" or not adamw)) or (moments == "8bit" and not adamw):
            continue
        memory: dict[str, Any] = {"shard": shard, "checkpointing": checkpointing, "offload": offload, "accumulate": 1}
        yield replace(with_moments(recipe, moments), parallel=replace(recipe.parallel, **memory))


def cheapest(question: Question, sizes: Sizes) -> Fit | None:
    """The settings that fit and take the least time; of equal ones, those that change least. None if nothing fits.

    Moments of 8 bits, which change the result, are proposed only if nothing else fits.
    """
    held = cache(lambda moments: held_in_training(question.make, with_moments(question.recipe, moments)))

    fits = (
        fit_of(question, recipe, held(recipe.optim.moments), sizes)
        for recipe in candidates(question.recipe, question.devices)
    )
    return min(filter(None, fits), key=order, default=None)


def order(fit: Fit) -> tuple[bool, float, int]:
    """The order of preference, best first."""
    return "optim.moments" in fit.settings, fit.seconds, len(fit.settings)


def with_moments(recipe: Recipe, moments: Any) -> Recipe:
    """A recipe with another precision of the moments."""
    return replace(recipe, optim=replace(recipe.optim, moments=moments))


def fit_of(question: Question, recipe: Recipe, held: Held, sizes: Sizes) -> Fit | None:
    """How a run fits with these settings, with as few parts of a batch as possible; None if it does not."""
    parallel, teams = recipe.parallel, question.devices // recipe.parallel.sequence
    share = -(-recipe.train.batch // teams)
    two, four = (sizes(*of_blocks(recipe), batch) for batch in (2, 4))

    def of(count: int) -> tuple[float, ActivationSizes]:
        line = ActivationSizes(*(a + (count - 2) * (b - a) / 2 for a, b in zip(two, four, strict=True)))
        parts = replace(recipe, parallel=replace(parallel, accumulate=-(-share // count)))
        return peak(parts_with(parts, held, question.devices, "cuda", line)), line

    accumulate = next((n for n in range(1, share + 1) if of(-(-share // n))[0] <= question.usable), None)
    if accumulate is None or recipe.train.batch // teams < accumulate:
        return None
    at_once = -(-share // accumulate)
    memory, line = of(at_once)
    chosen = {
        "parallel.shard": parallel.shard,
        "parallel.checkpointing": parallel.checkpointing,
        "parallel.offload": parallel.offload,
        "optim.moments": recipe.optim.moments,
        "parallel.accumulate": accumulate,
    }
    return Fit(
        {key: value for key, value in chosen.items() if value != USUAL[key]},
        memory,
        sum(host_parts(held, recipe, question.devices, line.offloaded).values()),
        seconds_of(question, recipe, held, accumulate, line.offloaded),
        at_once,
    )


def seconds_of(question: Question, recipe: Recipe, held: Held, accumulate: int, offloaded: float) -> float:
    """Seconds of a step: the arithmetic, and what the settings move between GPUs and to the host."""
    parallel = recipe.parallel
    arithmetic = question.flop * (1 + question.again * parallel.checkpointing) / (question.flops * question.devices)
    work = max(arithmetic, question.launch * accumulate)
    moved = 2 * offloaded * accumulate
    if "average" in parallel.offload:
        moved += held.weights
    if "moments" in parallel.offload:
        moved += held.gradients + held.weights
        work += (held.moments + 3 * held.gradients) / IN_HOST
    if shares_of(recipe, question.devices) > 1:  # weights are gathered twice for each part, gradients are divided once
        work += (2 * accumulate + 1) * held.weights / BETWEEN
    elif question.devices > 1:
        work += 2 * held.gradients / BETWEEN
    return work + moved / TO_HOST


def line(fit: Fit | None) -> str:
    """The cheapest settings as a line of text."""
    if fit is None:
        return "no settings fit; take more devices, or a smaller network"
    return (
        f"cheapest settings that fit: {fit.words()} ({fit.peak / GIB:,.1f} GiB of each device, "
        f"{fit.host / GIB:,.1f} GiB of its host)"
    )
