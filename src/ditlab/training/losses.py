"""From a batch to a gradient: the losses of its images, in the precision of training, part by part."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Batch
from ditlab.data import Dataset
from ditlab.inference.pipeline import Pipeline
from ditlab.training.aids import active_aids
from ditlab.training.context import TrainingContext
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.parallel import no_exchange
from ditlab.training.rng import Chance, Randomness


@dataclass(frozen=True)
class Losses:
    """The losses of some images."""

    named: dict[str, Tensor]  # (B,) float32 each
    times: Tensor | None  # (B,) float64 on the CPU; None if the objective reports none

    @property
    def total(self) -> Tensor:
        """Their sum (B,), which is trained."""
        return reduce(operator.add, self.named.values())


def make_context(pipe: Pipeline, recipe: Recipe) -> TrainingContext:
    """The run of a model, with the objective and the aids that the recipe asks for, both set up.

    Raises:
        InputError: an objective or aid that does not exist, or that the network does not allow.
    """
    objective = OBJECTIVES.find(recipe.train.objective).from_recipe(recipe)
    run = TrainingContext(pipe, recipe, pipe.net, pipe.net, objective, active_aids(recipe))
    objective.setup(run)
    for aid in run.aids:
        aid.setup(run)
    return run


def batch_losses(run: TrainingContext, images: Batch, seen: int, first: int, dtype: torch.dtype) -> Losses:
    """The losses of some images of a batch; all randomness is a function of the seed and their place in the run.

    Args:
        run: the run.
        images: B of them.
        seen: images before the batch.
        first: place of the first of these images in the batch.
        dtype: precision of the network, in autocast unless it is float32.
    """
    settings = run.settings
    randomness = Randomness(Chance(settings.seed), seen, first, len(images), settings.batch)
    with torch.autocast(run.device.type, dtype, enabled=dtype is not torch.float32):
        named = run.objective.losses(run, images, randomness)
    return Losses(named, randomness.times)


def backward(run: TrainingContext, batch: Batch, seen: int, first: int, parts: int, dtype: torch.dtype) -> Losses:
    """Add the gradient of the mean loss, part by part; returns the losses of the whole batch, without gradients."""
    found = []
    count = len(batch) // parts
    for part in range(parts):
        rows = slice(part * count, (part + 1) * count)
        with no_exchange(run.network, last=part == parts - 1):
            losses = batch_losses(run, batch[rows], seen, first + rows.start, dtype)
            (losses.total.mean() / parts).backward()  # type: ignore[no-untyped-call]
        found.append(Losses({name: value.detach() for name, value in losses.named.items()}, losses.times))
    named = {name: torch.cat([losses.named[name] for losses in found]) for name in found[0].named}
    times = [losses.times for losses in found if losses.times is not None]
    return Losses(named, torch.cat(times) if times else None)


def trial_step(run: TrainingContext, dataset: Dataset, count: int) -> Callable[[torch.dtype], None]:
    """A step that changes nothing, for timing; its images are read when it is first taken."""

    @cache
    def images() -> Batch:
        return dataset.fetch(torch.arange(count) % len(dataset))

    def step(dtype: torch.dtype) -> None:
        batch_losses(run, images(), 0, 0, dtype).total.mean().backward()  # type: ignore[no-untyped-call]
        run.net.zero_grad()

    return step
