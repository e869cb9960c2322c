"""Generated images as a data set, for evaluation."""

from collections.abc import Callable, Sequence
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
from ditlab.inference.prompts import prompts_of

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
        prompts: Sequence[str | None] | str = "",
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
            prompts: of a model that reads text: prompts, or a source of them as in `prompts_of`. The images have them
                in turn, or uniformly at random.
            precision: with a precision other than float32 the model is prepared (`ready`) before the first image.
            console: console for messages about the preparation.

        Raises:
            InputError: the count is not divisible by the number of classes, there are no prompts, or the options or
                prompts do not fit the model.
        """
        classes = pipe.net.classes
        check_count(count, seed, labels, classes)
        self.pipe = pipe.model.fused() if pipe is pipe.model else pipe
        self.plan = pipe.resolve(**options)
        self.batch_size, self.options = batch_size, options
        self.precision, self.console = precision, console or Console(quiet=True)
        self.first_seed = seed * count
        self.classes = pipe.model.classes or [str(i) for i in range(classes)]
        generator = torch.Generator().manual_seed(seed)
        self.prompts = checked_prompts(pipe, prompts, count, seed)
        """Prompts, which the images of a model that reads text have in turn or at random; empty for other models."""
        kinds = len(self.prompts) or classes
        if kinds == 0:
            self.numbers = torch.zeros(count, dtype=torch.long)
        elif labels == "balanced":
            self.numbers = torch.arange(count) % kinds
        else:
            self.numbers = torch.randint(kinds, (count,), generator=generator)
        self.labels = torch.zeros_like(self.numbers) if self.prompts else self.numbers
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
        pipe, batch_size = self.generating
        latents = pipe(
            self.conditions(indices),
            seeds=[self.first_seed + i for i in indices.tolist()],
            batch_size=batch_size,
            output_type="latent",
            callback_on_step_end=self.on_step,
            **self.options,
        ).images
        return Batch(
            torch.cat([pipe.decode(part) for part in latents.split(batch_size)]), Condition(label=self.labels[indices])
        )

    def conditions(self, indices: Tensor) -> list[Any] | None:
        """The prompts or labels of images (B,); None for an unconditional model."""
        if self.prompts:
            return [self.prompts[i] for i in self.numbers[indices].tolist()]
        return (
            [self.pipe.conditioner.value(label) for label in self.labels[indices].tolist()]
            if self.pipe.net.classes
            else None
        )

    def captions(self, i: int) -> tuple[str, ...]:
        prompt = self.prompts[int(self.numbers[i])] if self.prompts else None
        return () if prompt is None else (prompt,)


def checked_prompts(pipe: BasePipeline, prompts: Sequence[str | None] | str, count: int, seed: int) -> list[str | None]:
    """Prompts for a set of images, see `Samples`; empty for a model that reads no text.

    Raises:
        InputError: the model reads no text, there are no prompts, or it cannot encode one of them.
    """
    if not isinstance(pipe.conditioner, Text):
        if prompts:
            raise InputError("prompts for a model that reads no text; leave them out")
        return []
    texts = prompts_of(pipe, prompts, count, seed) if isinstance(prompts, str) else [*prompts]
    pipe.conditioner.texts(texts)
    return texts


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
