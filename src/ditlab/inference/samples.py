"""Generated images as a data set, for evaluation."""

import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, final

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ditlab.conditioning import Text
from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition, Step
from ditlab.core.units import counted
from ditlab.data.base import Dataset
from ditlab.inference.base import BasePipeline
from ditlab.inference.prepare import ready

Labels = Literal["balanced", "random"]


@final
class Samples(Dataset):
    """A data set of generated images; image i depends on the model, the seed, the count and i only."""

    def __init__(
        self,
        pipe: BasePipeline,
        count: int,
        *,
        labels: Labels,
        seed: int,
        batch_size: int,
        options: dict[str, Any],
        precision: str = "float32",
        console: Console | None = None,
    ) -> None:
        """Check the settings; images are generated when they are read.

        Args:
            pipe: the model, or a prepared model.
            count: number of images.
            labels: each class equally often ("balanced"), or uniformly at random ("random").
            seed: image i has the seed `seed * count + i`, so that another seed gives other images.
            batch_size: images generated at a time; does not change the images.
            options: arguments of `BasePipeline.steps`.
            precision: with a precision other than float32 the model is prepared (`ready`) before the first image.
            console: console for messages about the preparation.

        Raises:
            InputError: the count is not divisible by the number of classes, or the options do not fit the model.
        """
        classes = pipe.net.classes
        check_count(count, seed, labels, classes)
        if isinstance(pipe.conditioner, Text):
            line = (
                "this model reads prompts, but these images are generated without one, as those of a model without text"
            )
            warnings.warn(line, stacklevel=2)
        self.pipe = pipe.model.fused() if pipe is pipe.model else pipe
        self.plan = pipe.resolve(**options)
        self.batch_size, self.options = batch_size, options
        self.precision, self.console = precision, console or Console(quiet=True)
        self.first_seed = seed * count
        self.classes = pipe.model.classes or [str(i) for i in range(classes)]
        generator = torch.Generator().manual_seed(seed)
        if classes == 0:
            self.labels = torch.zeros(count, dtype=torch.long)
        elif labels == "balanced":
            self.labels = torch.arange(count) % classes
        else:
            self.labels = torch.randint(classes, (count,), generator=generator)
        self.channels, sides = pipe.picture_shape_of(self.plan.size)
        self.size = (*self.plan.size[:-2], *sides)
        self.values = pipe.values
        self.on_step: Callable[[Step], None] | None = None

    @property
    def steps(self) -> int:
        """Number of sampler steps per image."""
        return self.plan.steps

    @cached_property
    def generating(self) -> tuple[BasePipeline, int]:
        """The pipeline in the chosen precision, compiled if that saves time, and its batch size."""
        if self.precision == "float32":
            return self.pipe, self.batch_size
        return ready(
            self.pipe, self.console, precision=self.precision, compile="auto", count=len(self),
            batch_size=self.batch_size, options=self.options,
        )  # fmt: skip

    def fetch(self, indices: Tensor) -> Batch:
        labels = self.labels[indices]
        pipe, batch_size = self.generating
        latents = pipe(
            [pipe.conditioner.value(label) for label in labels.tolist()] if pipe.net.classes else None,
            seeds=[self.first_seed + i for i in indices.tolist()],
            batch_size=batch_size,
            output_type="latent",
            callback_on_step_end=self.on_step,
            **self.options,
        ).images
        return Batch(torch.cat([pipe.decode(part) for part in latents.split(batch_size)]), Condition(label=labels))


def check_count(count: int, seed: int, labels: str, classes: int) -> None:
    """Check the number of images.

    Raises:
        InputError: no images, a seed outside 0 to 2^32 - 1, or a balanced count that is not divisible by the number of
            classes.
    """
    if count < 1 or seed < 0:
        raise InputError(f"count {count} and seed {seed}; give 1 or more, and 0 or more")
    if seed >= 2**32:  # PyTorch's generator, which chooses random labels, ignores higher bits
        raise InputError(f"seed {seed} of an image set; give 0 to {2**32 - 1}")
    if labels == "balanced" and classes and count % classes:
        low = count // classes * classes
        counts = f"{low} or {low + classes}" if low else str(classes)
        raise InputError(
            f"{counted(count, 'image')} cannot be shared equally among {classes} classes; "
            f"give a count of {counts}, or random labels"
        )


def watch(images: Dataset, progress: Progress, what: str, total: int, left: int) -> Callable[[int], None]:
    """Add a task to a progress bar, and return a function to call with the size of each completed batch.

    If the images are generated, the task already advances with every sampler step, and the function does nothing.

    Args:
        images: generated or other images.
        progress: the progress bar.
        what: description of the task.
        total: number of all images.
        left: number of images that are not complete yet.
    """
    task = progress.add_task(what, total=total, completed=total - left)
    if isinstance(images, Samples):
        steps = images.steps
        images.on_step = lambda step: progress.advance(task, len(step.x) / steps)
        return lambda count: None
    return lambda count: progress.advance(task, count)
