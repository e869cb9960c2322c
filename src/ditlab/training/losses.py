"""Losses of a batch and their gradient, computed part by part in the precision of training."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data import Dataset
from ditlab.data.base import numbered
from ditlab.data.buckets import sample_batch
from ditlab.inference.pipeline import Pipeline
from ditlab.training.aids import active_aids
from ditlab.training.context import TrainingContext
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.parallel import no_exchange
from ditlab.training.rng import Randomness, RunRandomness


@dataclass(frozen=True)
class Losses:
    """The losses of B images."""

    named: dict[str, Tensor]  # (B,) float32 each
    times: Tensor | None  # (B,) float64 on the CPU; None if the objective reports none

    @property
    def total(self) -> Tensor:
        """The sum of all losses (B,), which is minimized."""
        return reduce(operator.add, self.named.values())

    def uncounted(self) -> "Losses":
        """The losses of no image, with the same names, in a process whose images another one counts."""
        times = None if self.times is None else self.times[:0]
        return Losses({name: value[:0] for name, value in self.named.items()}, times)


def make_context(pipe: Pipeline, recipe: Recipe, dataset: Dataset | None = None) -> TrainingContext:
    """The training context of a model, with the objective and the aids of the recipe, after their setup.

    Raises:
        InputError: an objective or aid does not exist, or does not support the network.
    """
    objective = OBJECTIVES.find(recipe.train.objective).from_recipe(recipe)
    run = TrainingContext(pipe, recipe, pipe.net, pipe.net, objective, active_aids(recipe))
    run.features = {} if dataset is None else dataset.image_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # initial weights of further modules
        objective.setup(run)
        for aid in run.aids:
            aid.setup(run)
    if recipe.parallel.shard != "none" and len(run.trained):
        raise InputError(f"{', '.join(run.trained)}: modules of training aids cannot be sharded; omit parallel.shard")
    return run


def batch_losses(
    run: TrainingContext, images: Batch, seen: int, first: int, dtype: torch.dtype, total: int | None = None
) -> Losses:
    """The losses of a part of a batch; all randomness depends on the seed and the position of the images in the run.

    Args:
        run: the training context.
        images: the B images of this part.
        seen: number of images that the run saw before the batch.
        first: position in the batch of the first image of this part.
        dtype: precision of the network; autocast is used unless it is float32.
        total: images of the batch of all processes; None is the batch size of the recipe.
    """
    source = RunRandomness(run.settings.seed, run.several_sizes)
    randomness = Randomness(source, seen, first, len(images), total or run.settings.batch)
    run.batch = images
    with torch.autocast(run.device.type, dtype, enabled=dtype is not torch.float32):
        named = run.objective.losses(run, images, randomness)
    return Losses(named, randomness.times)


def backward(
    run: TrainingContext,
    batch: Batch,
    seen: int,
    first: int,
    parts: int,
    dtype: torch.dtype,
    world: int = 1,
    total: int | None = None,
) -> Losses:
    """Compute the gradient of the mean loss, and return the losses without gradients.

    The mean of the gradients of all processes is that of the whole batch, also if they have different numbers of
    images.

    Args:
        run: the training context; gradients are added to its parameters.
        batch: the images of this process.
        seen: number of images that the run saw before the batch.
        first: position of the first image of this process in the batch of all processes.
        parts: number of parts that are computed one after the other; their sizes differ by one image at most.
        dtype: precision of the network.
        world: number of parts of the batch of all processes.
        total: images of the batch of all processes; None is the batch size of the recipe.
    """
    computed = []
    images = (total or run.settings.batch) / world  # of a process, on average
    for part in range(parts):
        rows = slice(len(batch) * part // parts, len(batch) * (part + 1) // parts)
        with no_exchange(run.network, last=part == parts - 1):
            losses = batch_losses(run, batch[rows], seen, first + rows.start, dtype, total)
            (losses.total.mean() / (images / (rows.stop - rows.start))).backward()  # type: ignore[no-untyped-call]
        computed.append(Losses({name: value.detach() for name, value in losses.named.items()}, losses.times))
    named = {name: torch.cat([losses.named[name] for losses in computed]) for name in computed[0].named}
    times = [losses.times for losses in computed if losses.times is not None]
    return Losses(named, torch.cat(times) if times else None)


def trial_step(run: TrainingContext, dataset: Dataset, count: int) -> Callable[[torch.dtype], None]:
    """A function that computes a gradient without changing the weights, for timing.

    It reads its `count` images when it is first called.
    """

    @cache
    def images() -> Batch:
        indices = sample_batch(dataset, count)
        return numbered(dataset.fetch(indices), indices)

    def step(dtype: torch.dtype) -> None:
        batch_losses(run, images(), 0, 0, dtype).total.mean().backward()  # type: ignore[no-untyped-call]
        run.net.zero_grad()
        run.trained.zero_grad()

    return step
