"""A model's images as a data set."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, final

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition, Step
from ditlab.data.base import Dataset
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.prepare import ready

Labels = Literal["balanced", "random"]


@final
class Samples(Dataset):
    """A model's pictures as a data set: picture i depends on the seed, the count and i alone."""

    def __init__(
        self,
        pipe: Pipeline,
        count: int,
        *,
        labels: Labels,
        seed: int,
        batch_size: int,
        options: dict[str, Any],
        precision: str = "float32",
        console: Console | None = None,
    ) -> None:
        """Nothing is drawn yet.

        Args:
            pipe: the model.
            count: pictures in all.
            labels: each class equally often, or uniformly at random.
            seed: picture i is drawn with the seed `seed * count + i`, so that other seeds give other pictures.
            batch_size: pictures drawn at a time; they do not depend on it.
            options: settings of `Pipeline.steps`.
            precision: another than float32 makes the model `ready` for it before the first picture.
            console: where it is told what was done for that.

        Raises:
            InputError: a count that the classes do not divide, or a model without an autoencoder.
        """
        if count < 1 or seed < 0:
            raise InputError(f"count {count} and seed {seed}; give 1 or more, and 0 or more")
        if labels == "balanced" and pipe.net.classes and count % pipe.net.classes:
            low = count // pipe.net.classes * pipe.net.classes
            raise InputError(
                f"{count} pictures cannot be shared equally among {pipe.net.classes} classes; "
                f"give a count of {low or pipe.net.classes} or {low + pipe.net.classes}, or random labels"
            )
        self.pipe, self.batch_size, self.options = pipe.fused(), batch_size, options
        self.precision, self.console = precision, console or Console(quiet=True)
        self.first_seed = seed * count
        self.classes = pipe.classes or [str(i) for i in range(pipe.net.classes)]
        chance = torch.Generator().manual_seed(seed)
        places = torch.arange(count)
        if pipe.net.classes == 0:
            self.labels = torch.zeros(count, dtype=torch.long)
        elif labels == "balanced":
            self.labels = places % pipe.net.classes
        else:
            self.labels = torch.randint(pipe.net.classes, (count,), generator=chance)
        self.channels, self.size = pipe.picture_shape
        self.on_step: Callable[[Step], None] | None = None

    @property
    def steps(self) -> int:
        """Sampler steps of each picture."""
        return self.pipe.step_count(self.options)

    @cached_property
    def drawing(self) -> tuple[Pipeline, int]:
        """The pipeline in its precision, compiled where that pays, and how many pictures it draws at a time."""
        if self.precision == "float32":
            return self.pipe, self.batch_size
        return ready(
            self.pipe, self.console, precision=self.precision, compile="auto", count=len(self),
            batch_size=self.batch_size, options=self.options,
        )  # fmt: skip

    def fetch(self, indices: Tensor) -> Batch:
        labels = self.labels[indices]
        pipe, batch_size = self.drawing
        drawn = pipe(
            labels.tolist() if pipe.net.classes else None,
            seeds=[self.first_seed + i for i in indices.tolist()],
            batch_size=batch_size,
            output_type="latent",
            callback_on_step_end=self.on_step,
            **self.options,
        ).images
        whole = drawn.isfinite().flatten(1).all(1)
        if not whole.all():
            bad = int(indices[~whole][0])
            raise InputError(
                f"picture {bad} (seed {self.first_seed + bad}) is not finite; draw it in float32, or train the model on"
            )
        return Batch(torch.cat([pipe.decode(part) for part in drawn.split(batch_size)]), Condition(label=labels))


def watch(pictures: Dataset, progress: Progress, what: str, total: int, left: int) -> Callable[[int], None]:
    """A task of the bar, which moves with every step of drawn pictures; call the result with each batch's size."""
    task = progress.add_task(what, total=total, completed=total - left)
    if isinstance(pictures, Samples):
        steps = pictures.steps
        pictures.on_step = lambda step: progress.advance(task, len(step.x) / steps)
        return lambda count: None
    return lambda count: progress.advance(task, count)
