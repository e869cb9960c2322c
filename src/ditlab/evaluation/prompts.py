"""How well a model follows prompts, on data sets whose images have a known truth.

The prompts are captions of the data set: of pairs that are in the training images ("seen"), and of pairs that never
were, although each of their words was ("held-out"). A reader compares each image with true renders. The same reader
also reads real images, because no score can be better than its reader; and images that are generated without a prompt.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ditlab.config.evaluation import Evaluation
from ditlab.core.device import describe, pick_device
from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.core.version import __version__
from ditlab.data import Dataset, open_dataset
from ditlab.data.builtin.colored_shapes import ColoredShapes
from ditlab.data.builtin.emoji_captions import EmojiCaptions
from ditlab.evaluation.clip_score import ClipScore
from ditlab.evaluation.emoji_reader import EmojiReader
from ditlab.evaluation.features import Features
from ditlab.evaluation.generated import load_for
from ditlab.evaluation.metrics import frechet_distance
from ditlab.evaluation.references import short_hash
from ditlab.evaluation.results import SHOWN, Result, read_result, write_result
from ditlab.evaluation.shape_reader import ShapeReader
from ditlab.inference.base import BasePipeline
from ditlab.inference.folder import generate_images
from ditlab.report.sheets import contact_sheet, save_sheet, to_pil

NORMAL = 1.959964  # quantile of the normal distribution of an interval of 95 %
REFERENCE, REAL_SUBSETS = 4000, 4  # real images of a distance, and most subsets of others
SEEN, HELD_OUT, REAL, WITHOUT = "seen", "held-out", "real held-out images", "without a prompt"


class Reader(Protocol):
    """Reads what images show."""

    def outcomes(self, images: Tensor, indices: Tensor) -> dict[str, Tensor]:
        """Whether images (N, 3, H, W) uint8 show the scenes with these indices (N,), aspect by aspect: (N,) bool."""


def reader_of(data: Dataset) -> Reader:
    """The reader of a data set.

    Raises:
        InputError: the truth of its images is not known.
    """
    if isinstance(data, EmojiCaptions):
        return EmojiReader(data)
    if isinstance(data, ColoredShapes):
        return ShapeReader(data)
    raise InputError(
        "the truth of these images is not known; give emoji-captions-SIZE, emoji-captions-all-SIZE or "
        "colored-shapes-SIZE, which the model was trained on"
    )


@dataclass(frozen=True)
class Rate:
    """A share of images."""

    count: int
    of: int

    @property
    def share(self) -> float:
        """The share, 0..1."""
        return self.count / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % for the share."""
        z, n, p = NORMAL**2, self.of, self.share
        middle = (p + z / (2 * n)) / (1 + z / n)
        half = NORMAL * sqrt(p * (1 - p) / n + z / (4 * n * n)) / (1 + z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class PromptScore:
    """The shares of images that show what was asked for, by set of prompts and aspect."""

    rates: Mapping[str, Mapping[str, Rate]]
    clip: Mapping[str, float] = field(default_factory=dict)
    """Mean CLIP score, 0..100, by set; empty without a CLIP."""

    def lines(self) -> list[str]:
        """The shares in words: a line for each set of prompts, with Wilson's intervals of 95 %."""
        clip = "; ".join(f"{name} {score:.2f}" for name, score in self.clip.items())
        return [
            f"{name}, {counted(next(iter(aspects.values())).of, 'image')}: "
            + ", ".join(f"{aspect} {rate}" for aspect, rate in aspects.items())
            for name, aspects in self.rates.items()
        ] + ([f"CLIP score: {clip}"] if clip else [])

    def as_json(self) -> dict[str, Any]:
        """The shares with their intervals, for JSON."""
        rates: dict[str, Any] = {
            name: {
                aspect: asdict(rate) | {"share": rate.share, "interval": rate.interval}
                for aspect, rate in aspects.items()
            }
            for name, aspects in self.rates.items()
        }
        return rates | ({"clip": dict(self.clip)} if self.clip else {})


@dataclass(frozen=True)
class Prompts:
    """Prompts of one set, and the images of the data set that they describe."""

    data: Dataset
    indices: Tensor  # (N,) int64
    texts: list[str]

    @classmethod
    def of(cls, data: Dataset, count: int, seed: int) -> "Prompts":
        """The first captions, which name everything, of random images."""
        indices = torch.randint(len(data), (count,), generator=torch.Generator().manual_seed(seed))
        return cls(data, indices, [data.captions(i)[0] for i in indices.tolist()])

    def rates(self, reader: Reader, images: Tensor) -> dict[str, Rate]:
        """The shares of images that show what the prompts ask for."""
        outcomes = reader.outcomes(images, self.indices)
        return {aspect: Rate(int(right.sum()), len(right)) for aspect, right in outcomes.items()}


@dataclass(frozen=True)
class Outcome:
    """A score, and the images that it was computed from."""

    score: PromptScore
    prompts: Mapping[str, Prompts]
    images: Mapping[str, Tensor]


@dataclass(frozen=True)
class Distance:
    """Frechet distances to real images, in small features that are trained on the data set itself."""

    fd: float
    """Between samples and real images."""
    real_fd: float
    """Real-vs-real FD: the same distance for subsets of as many other real images, their mean."""
    samples: int

    @property
    def ratio(self) -> float:
        """The distance of samples, divided by that of equally many real images; 1 is ideal."""
        return self.fd / self.real_fd

    def __str__(self) -> str:
        counts = counted(self.samples, "sample")
        return f"FD {self.fd:.3g}, real-vs-real FD {self.real_fd:.3g}: {self.ratio:.2f}x ({counts})"


@torch.inference_mode()
def distance(images: Tensor, data: Dataset, features: Features, seed: int = 0) -> Distance:
    """Compare samples with real images.

    Args:
        images: (N, 3, H, W) uint8, generated from prompts of random images of the data set.
        data: the data set.
        features: the feature network, such as `train_features` returns.
        seed: chooses the real images.

    Raises:
        InputError: there are too few real images, or too few samples for a covariance.
    """
    count = len(images)
    if count <= features.dimension:
        raise InputError(
            f"{counted(count, 'sample')}; give more than {features.dimension} for a Frechet distance in "
            f"{features.dimension} features"
        )
    if len(data) < REFERENCE + count:
        raise InputError(f"{counted(len(data), 'real image')} for {counted(count, 'sample')}; give fewer samples")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    real = features_of(lambda part: data.fetch(part).x, order[:REFERENCE], features)
    subsets = [part for part in torch.split(order[REFERENCE:], count) if len(part) == count][:REAL_SUBSETS]
    others = [features_of(lambda part: data.fetch(part).x, part, features) for part in subsets]
    fake = features_of(lambda part: images[part], torch.arange(count), features)
    return Distance(frechet_distance(fake, real), fmean(frechet_distance(other, real) for other in others), count)


def features_of(fetch: Callable[[Tensor], Tensor], indices: Tensor, features: Features) -> NDArray[np.float32]:
    """The features (N, D) of the images that a function returns for indices (N,)."""
    return torch.cat([features(fetch(part)).features for part in torch.split(indices, 256)]).numpy()


def score_prompts(
    pipe: BasePipeline, source: str, console: Console | None = None, *, count: int = 200, seed: int = 0,
    batch_size: int = 50, options: dict[str, Any] | None = None, clip: ClipScore | None = None,
) -> Outcome:  # fmt: skip
    """Generate images of prompts and read them.

    Args:
        pipe: a model that reads text.
        source: the data set that it was trained on, such as "emoji-captions-32".
        console: where progress is shown; None shows nothing.
        count: number of prompts of each set.
        seed: chooses the prompts.
        batch_size: images generated at a time.
        options: sampling settings.
        clip: a CLIP that also scores images and prompts.

    Raises:
        InputError: the model reads no text, or the truth of the data is not known.
    """
    console = console or Console(quiet=True)
    if not pipe.net.text:
        raise InputError("this model reads no text; give a model that was trained on captions")
    if count < 1:
        raise InputError(f"count is {count}; give 1 or more")
    sets = open_sets(source, count, seed)
    readers = {name: reader_of(prompts.data) for name, prompts in sets.items()}

    def generated(texts: Sequence[str | None]) -> Tensor:
        seeds = list(range(count))
        pixels = generate_images(pipe, texts, seeds, console, batch_size=batch_size, options=options or {})
        return pipe.values.displayed(pixels)

    images = {name: generated(prompts.texts) for name, prompts in sets.items()}
    rates = {name: prompts.rates(readers[name], images[name]) for name, prompts in sets.items()}
    held_out, reader = sets[HELD_OUT], readers[HELD_OUT]
    real = held_out.data.fetch(held_out.indices).x
    rates |= {REAL: held_out.rates(reader, real), WITHOUT: held_out.rates(reader, generated([None] * count))}
    scored = {name: (images[name], prompts.texts) for name, prompts in sets.items()} | {REAL: (real, held_out.texts)}
    means = {name: clip(*pair).mean().item() for name, pair in scored.items()} if clip else {}
    return Outcome(PromptScore(rates, means), sets, images)


def open_sets(source: str, count: int, seed: int) -> dict[str, Prompts]:
    """Prompts of pairs that were seen in training, and of held-out pairs.

    Raises:
        InputError: the truth of the data is not known, or they are the held-out ones themselves.
    """
    seen = open_dataset(source)
    reader_of(seen)
    if not seen.held_out_name:
        raise InputError(f"{source} holds pairs that are never used in training; give the data set of the training")
    held_out = open_dataset(seen.held_out_name)
    return {SEEN: Prompts.of(seen, count, seed), HELD_OUT: Prompts.of(held_out, count, seed)}


def evaluate_prompts(source: str, settings: Evaluation, console: Console) -> Result:
    """Score the prompts of a trained model for a study; a second call returns the result of the first one.

    Args:
        source: the run folder.
        settings: count, seed, sampling settings and device.
        console: where progress is shown.

    Raises:
        InputError: the model reads no text, or the truth of its data is not known.
    """
    options = settings.sampling().given()
    protocol = {"count": settings.count, "seed": settings.seed, "sampling": options, "metrics": ["prompts"]}
    folder = Path(source) / "evaluations" / f"prompts-{short_hash(protocol)}"
    if (folder / "result.json").exists():
        return read_result(folder)
    started = time.monotonic()
    pipe = load_for(source, settings, pick_device(settings.device))
    outcome = score_prompts(
        pipe, pipe.config["recipe"]["data"]["source"], console, count=settings.count, seed=settings.seed,
        batch_size=settings.batch_size, options=options,
    )  # fmt: skip
    seen, held_out = outcome.score.rates[SEEN], outcome.score.rates[HELD_OUT]
    metrics = {"prompts_seen": seen["all"].share, "prompts_held_out": held_out["all"].share}
    errors = {"binding_errors": "swapped", "relation_errors": "relation"}
    metrics |= {name: held_out[aspect].share for name, aspect in errors.items() if aspect in held_out}
    seconds = round(time.monotonic() - started, 1)
    result = Result(metrics, protocol, [], seconds, __version__, describe(settings.device), folder)
    write_result(result)
    images = to_pil(outcome.images[HELD_OUT][:SHOWN])
    save_sheet(contact_sheet([images[i : i + 10] for i in range(0, len(images), 10)]), folder / "grid.png")
    return result
