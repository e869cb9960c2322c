"""Choose guidance and timestep schedule of a trained model by the Frechet distance to held-out images."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ditlab.auto.choose import table
from ditlab.conditioning import Text
from ditlab.config.sampling import Sample
from ditlab.core.errors import InputError
from ditlab.core.terminal import say
from ditlab.core.types import Label
from ditlab.data import Dataset, InMemory
from ditlab.data.buckets import mixed_order
from ditlab.evaluation.features import Features
from ditlab.evaluation.features.own import places_of
from ditlab.evaluation.metrics import frechet_distance
from ditlab.evaluation.own import see
from ditlab.inference.base import BasePipeline
from ditlab.inference.folder import generate_images

FIRST_SEED = 10_000_000  # the score uses seeds from 0 on, so that the settings are not fitted to its samples
FEWEST, MOST = 130, 650  # samples of a trial; a Frechet distance in 64 features needs more than 64
TRIALS = 6  # that are made on average
BATCH = 65


@dataclass(frozen=True)
class Trial:
    """Sampling settings, and the distance of their samples."""

    guidance: float
    schedule: str
    fd: float


class Trials:
    """Measures sampling settings of a model, each once.

    Args:
        pipe: the model.
        base: its sampling settings.
        held_out: images to compare with.
        features: where they are compared.
        seconds: time for all trials, which determines how many samples each has.
    """

    def __init__(self, pipe: BasePipeline, base: Sample, held_out: Dataset, features: Features, seconds: float) -> None:
        self.pipe, self.base, self.held_out, self.features = pipe, base, held_out, features
        self.real = features_of(held_out, features)
        self.done: dict[tuple[float, str], Trial] = {}
        started = time.monotonic()
        self.draw(BATCH, base)
        a_trial = seconds / TRIALS * BATCH / (time.monotonic() - started)
        self.count = int(max(FEWEST, min(MOST, a_trial)))

    def draw(self, count: int, sample: Sample) -> Tensor:
        """Samples (N, C, H, W) with the classes of the held-out images."""
        labels = conditions(self.pipe, self.held_out, count)
        guidance = sample.guidance if self.pipe.conditional else None
        return draw(self.pipe, labels, range(FIRST_SEED, FIRST_SEED + count), guidance, sample.schedule)

    def fd(self, guidance: float, schedule: str) -> float:
        """Frechet distance of samples with these settings to the held-out images."""
        key = (guidance, schedule)
        if key not in self.done:
            images = self.draw(self.count, replace(self.base, guidance=guidance, schedule=schedule))
            samples = InMemory(self.pipe.values.displayed(images), torch.zeros(self.count, dtype=torch.long), [])
            self.done[key] = Trial(*key, self.distance(features_of(samples, self.features)))
        return self.done[key].fd

    def distance(self, found: NDArray[np.float32]) -> float:
        """Frechet distance of features to those of the held-out images; infinite if all are equal."""
        try:
            return frechet_distance(found, self.real)
        except InputError:
            return math.inf


def features_of(images: Dataset, features: Features) -> NDArray[np.float32]:
    """The features (N, D) of all images."""
    return see(images, torch.arange(len(images)), features).features


def draw(
    pipe: BasePipeline,
    labels: Sequence[Label],
    seeds: Sequence[int],
    guidance: float | None = None,
    schedule: str | None = None,
) -> Tensor:
    """Samples (N, C, H, W) with these conditions and seeds; None is the model's setting."""
    options = {"guidance": guidance, "schedule": schedule}
    return generate_images(pipe, labels, seeds, Console(quiet=True), batch_size=BATCH, options=options)


def conditions(pipe: BasePipeline, images: Dataset, count: int) -> list[Label]:
    """Conditions of `count` samples: the classes or captions of real images, mixed; None where there are none."""
    if not pipe.conditional:
        return [None] * count
    if isinstance(pipe.conditioner, Text):
        texts = [texts[0] for i in mixed_order(images.labels)[:count].tolist() if (texts := images.captions(i))]
        readable: list[Label] = [text for text in texts if reads_whole(pipe.conditioner, text)]
        return [readable[i % len(readable)] for i in range(count)] if readable else [None] * count
    return [pipe.conditioner.value(label) for label in mixed_labels(pipe, images, count).tolist()]


def mixed_labels(pipe: BasePipeline, images: Dataset, count: int) -> Tensor:
    """Classes (count,) of real images, mixed, as positions in the classes of a model, which may have more of them."""
    order = mixed_order(images.labels)
    return places_of(pipe.model.classes, images)[images.labels[order[torch.arange(count) % len(order)]]]


def reads_whole(conditioner: Text, text: str) -> bool:
    """Whether a model reads all of a held-out caption, which may have words that the training captions lack."""
    encoder = conditioner.encoder
    if not encoder.reads(text) or encoder.cut(text):
        return False
    if not encoder.shape.vocabulary:
        return True
    try:
        encoder.encode([text])
    except InputError:
        return False
    return True


def best_sampling(
    pipe: BasePipeline, base: Sample, held_out: Dataset, features: Features, seconds: float, console: Console
) -> tuple[Sample, list[Trial]]:
    """Try more and less guidance as long as the distance falls, then other schedules.

    Args:
        pipe: the model.
        base: the settings to start from.
        held_out: images to compare with.
        features: where they are compared.
        seconds: time for all trials.
        console: where the choice is printed.

    Returns:
        The best settings, and all trials.
    """
    rules = table()["tuning"]
    trials = Trials(pipe, base, held_out, features, seconds)
    guidance, schedule = base.guidance, base.schedule
    if pipe.conditional:
        scales = sorted({*rules["guidance"], guidance})
        position = scales.index(guidance)
        for direction in (1, -1):
            while 0 <= (nearby := position + direction) < len(scales):
                if trials.fd(scales[nearby], schedule) >= trials.fd(scales[position], schedule):
                    break
                position = nearby
        guidance = scales[position]
    schedule = min([schedule, *rules["schedules"]], key=lambda name: trials.fd(guidance, name))
    best = trials.done[guidance, schedule]
    words = f"guidance {guidance:g}, " if pipe.conditional else ""
    say(
        console,
        f"sampling: {words}schedule {schedule} (lowest Frechet distance of {len(trials.done)} settings: {best.fd:.3g}, "
        f"{trials.count} samples each)",
    )
    return replace(base, guidance=guidance, schedule=schedule), [*trials.done.values()]
