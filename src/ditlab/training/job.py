"""A training run, whose parts the stages of the setup fill in."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.config.sections import Recipe
from ditlab.core.terminal import say
from ditlab.core.types import Batch
from ditlab.data import Dataset, training_order
from ditlab.inference.optimize.timing import CLOCKS
from ditlab.inference.pipeline import Pipeline
from ditlab.training.callbacks import Callback
from ditlab.training.captions import Captions
from ditlab.training.context import TrainingContext
from ditlab.training.parallel import Place
from ditlab.training.run_folder import RunFolder
from ditlab.training.state import TrainState


@dataclass
class Job:
    """A training run, whose parts the stages of the setup fill in one after the other."""

    recipe: Recipe
    folder: RunFolder
    place: Place
    console: Console
    changes: bool = False  # whether settings may have changed since the run began
    callbacks: Sequence[Callback] = ()
    given_data: Dataset | None = None  # replaces the data source of the recipe
    parts: int = field(init=False)  # in which each process computes its images of a batch, one after the other
    processes: dict[str, int] = field(init=False)  # for which the recipe divides a batch, see `ditlab.training.elastic`
    dataset: Dataset = field(init=False)
    source: Pipeline | None = field(init=False, default=None)  # the model that training starts from
    resumed: bool = field(init=False, default=False)  # whether `source` is a checkpoint of this run
    captions: Captions | None = field(init=False, default=None)  # None if the model reads no captions
    pipe: Pipeline = field(init=False)
    run: TrainingContext = field(init=False)
    state: TrainState = field(init=False)
    trial: Callable[[torch.dtype], None] = field(init=False)

    @property
    def net(self) -> Backbone:
        """The network that is trained."""
        return self.run.net

    @cached_property
    def files(self) -> Tensor | None:
        """The file that must be fetched for each image; None if no file is fetched."""
        return self.dataset.fetched_files(self.recipe.data.shuffle_shards)

    def order(self) -> Iterator[Tensor]:
        """The indices of the batches, from the present position of the run."""
        settings, mixed = self.recipe.train, self.recipe.data.shuffle_shards
        if self.dataset.buckets is not None:
            return self.dataset.buckets.order(settings.batch, settings.seed, self.state.seen)
        return training_order(len(self.dataset), settings.batch, settings.seed, self.state.seen, self.files, mixed)

    def images_in(self, batch: Batch) -> int:
        """Number of images of all processes in the batch of which this process has a part."""
        return self.recipe.train.batch if self.dataset.buckets is None else self.place.teams * len(batch)

    @property
    def finished(self) -> bool:
        """Whether the run has seen all images of the recipe, or has taken all its time."""
        return self.state.seen >= self.recipe.train.images or self.elapsed >= 1

    @property
    def elapsed(self) -> float:
        """Share of the training time that has passed; 0 if the time is not limited."""
        minutes = self.recipe.train.minutes
        return self.state.seconds / (60 * minutes) if minutes else 0.0

    @property
    def now(self) -> float:
        """Seconds of the clock with which training time is measured."""
        return CLOCKS[self.recipe.train.clock]()

    @property
    def seconds_left(self) -> float:
        """Training time that is left; infinite if the time is not limited."""
        minutes = self.recipe.train.minutes
        return max(0.0, 60 * minutes - self.state.seconds) if minutes else math.inf

    @property
    def skipped_images(self) -> Path:
        """File in which this process lists images that cannot be read."""
        return self.folder.folder / ("skipped.csv" if self.place.first else f"skipped-{self.place.rank}.csv")

    @property
    def steps_alone(self) -> bool:
        """Whether each process can take a step without the others, which is needed to time it."""
        return not self.state.sharded and self.place.sequence == 1

    def say(self, line: str) -> None:
        """Print a line on the console."""
        say(self.console, line)
