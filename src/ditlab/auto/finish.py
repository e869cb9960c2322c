"""After the training: features of the user's own images, sampling settings tuned with them, the score, and samples."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ditlab.auto.choose import table
from ditlab.auto.tuning import BATCH, Trial, best_sampling, conditions, draw, mixed_labels
from ditlab.config.sampling import Sample
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.terminal import say
from ditlab.data import Dataset, InMemory, open_dataset
from ditlab.data.parse import parse_source
from ditlab.evaluation.features import Features, open_features
from ditlab.evaluation.features.own import train_features
from ditlab.evaluation.memorization import Memorization, memorization
from ditlab.evaluation.own import OwnScore, score_own
from ditlab.inference.base import BasePipeline
from ditlab.inference.pipeline import Pipeline
from ditlab.report.run import write_report
from ditlab.report.sheets import contact_sheet, save_sheet
from ditlab.training.defaults import set_defaults
from ditlab.training.loop import network_in_words

FEATURES, SCORE, SAMPLES, NEAREST = "features.safetensors", "score.json", "samples.png", "nearest.png"
MOST, FEWEST = 2600, 130  # samples of a score
ROWS, COLUMNS = 16, 10  # of the contact sheet


@dataclass(frozen=True)
class Real:
    """The real images of a run, and the features in which they are compared with samples."""

    training: Dataset
    held_out: Dataset
    features: Features


@dataclass(frozen=True)
class Outcome:
    """A trained model, and its score."""

    pipe: Pipeline
    folder: Path
    sample: Sample
    score: OwnScore | None = None
    """None if no images are held out."""
    copies: Memorization | None = None

    def facts(self) -> dict[str, str]:
        """The rows of the report."""
        config = self.pipe.config
        rows = {
            "network": network_in_words(self.pipe.net),
            "images": f"{config['images_seen']:,}",
            "time": f"{config['train_seconds'] / 60:,.1f} minutes of training",
            "sampling": f"{self.sample.sampler}, {self.sample.steps} steps, guidance {self.sample.guidance:g}, "
            f"schedule {self.sample.schedule}",
        }
        if self.score is not None:
            rows["score"] = "; ".join(self.score.lines())
        if self.copies is not None:
            rows["memorization"] = self.copies.verdict()
        return rows

    def lines(self, command: str) -> list[str]:
        """The result for the terminal; `command` is how ditlab was called."""
        score = [] if self.score is None else self.score.lines()
        copies = [] if self.copies is None else [f"memorization: {self.copies.verdict()}"]
        return [
            *score,
            *copies,
            f"samples: {self.folder / SAMPLES}; report: {self.folder / 'report.html'}",
            f"try next: {command} sample {self.folder}",
        ]


def finish(pipe: Pipeline, recipe: Recipe, out: Path, minutes: float, console: Console) -> Outcome:
    """Tune and score a trained model.

    Args:
        pipe: the model.
        recipe: its recipe.
        out: the run folder.
        minutes: time for all this.
        console: where progress is shown.
    """
    end, fast = time.monotonic() + 60 * minutes, pipe.prepared()
    real = open_real(recipe, out, minutes, console)
    sample, trials = recipe.sample, list[Trial]()
    if real is not None:
        sample, trials = best_sampling(fast, sample, real.held_out, real.features, 20 * minutes, console)
        set_defaults(pipe, out, sample)
    sheet(fast, out / SAMPLES)
    outcome = Outcome(pipe, out, sample)
    if real is not None:
        images = generated(fast, real.held_out, end, console)
        labels = images.labels if pipe.classes else None
        score = scored(pipe.values.displayed(images.images), labels, real, console)
        protocol = {"run": out.name, "images_seen": pipe.config["images_seen"], "sample": asdict(sample)}
        outcome = replace(outcome, score=score, copies=copied(images, real, out / NEAREST, protocol, console))
        write_score(outcome, trials)
    write_report(out, out.name, outcome.facts(), out / SAMPLES)
    return outcome


def open_real(recipe: Recipe, out: Path, minutes: float, console: Console) -> Real | None:
    """Open the training and held-out images of a run, and train the features; None if nothing is held out."""
    data = recipe.data
    spec = parse_source(data.source, data).held_out()
    if spec is None:
        return None
    training = open_dataset(data.source, replace(data, flip=False))
    held_out = spec.open(replace(data, flip=False, split=""))
    if training.features != "inception":  # a built-in data set has its own
        return Real(training, held_out, open_features(training.features))
    file, rules = out / FEATURES, table()["time"]
    if not file.exists():
        shortest, longest = rules["shortest_features"], rules["longest_features"]
        limit = min(longest, max(shortest, minutes * rules["features"] / rules["score"]))
        own = train_features(training, file, console, minutes=limit, held_out=held_out)
        for line in own.training.lines():
            say(console, line)
    return Real(training, held_out, open_features("own", str(file)))


def generated(pipe: BasePipeline, held_out: Dataset, end: float, console: Console) -> InMemory:
    """Samples with the classes of the held-out images and the seeds 0 to N - 1: as many as the time allows."""
    labels = conditions(pipe, held_out, MOST)
    parts: list[torch.Tensor] = []
    for start in range(0, MOST, BATCH):
        parts.append(draw(pipe, labels[start : start + BATCH], range(start, start + BATCH)))
        if start + BATCH >= FEWEST and time.monotonic() > end:
            break
    images = torch.cat(parts)
    say(console, f"scoring {len(images):,} samples with the seeds 0 to {len(images) - 1:,}")
    count, classes = len(images), pipe.model.classes
    numbers = mixed_labels(pipe, held_out, count) if classes else torch.zeros(count, dtype=torch.long)
    return InMemory(pipe.values.restored(images), numbers, classes, values=pipe.values)


def scored(samples: torch.Tensor, labels: torch.Tensor | None, real: Real, console: Console) -> OwnScore | None:
    """Score samples; None if the images do not allow it, such as samples that are all equal."""
    try:
        return score_own(samples, labels, real.training, real.held_out, real.features)
    except InputError as error:
        say(console, f"there is no score: {error}")
        return None


def copied(images: Dataset, real: Real, file: Path, protocol: dict[str, Any], console: Console) -> Memorization | None:
    """Test whether samples are copies; None if the images do not allow it: held-out images may be copies themselves."""
    try:
        return memorization(images, real.training, real.held_out, real.features, file, console, protocol=protocol)
    except InputError as error:
        say(console, f"memorization is not tested: {error}")
        return None


def sheet(pipe: BasePipeline, file: Path) -> None:
    """Write a contact sheet of samples with the seeds 0 to 9: a row for each of the first classes or prompts."""
    rows = [label for label in pipe.examples if label is not None][:ROWS]
    names = [pipe.conditioner.title(label) for label in rows]
    labels = [label for label in rows for _ in range(COLUMNS)] or [None] * COLUMNS**2
    seeds = [i % COLUMNS if names else i for i in range(len(labels))]
    pictures = pipe.displayed(draw(pipe, labels, seeds))
    save_sheet(
        contact_sheet([pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)], names or None), file
    )


def write_score(outcome: Outcome, trials: list[Trial]) -> None:
    """Write the score, the tuned settings and all trials as JSON."""
    content: dict[str, Any] = {} if outcome.score is None else asdict(outcome.score)
    if outcome.copies is not None:
        content |= {"memorization": {"ratio": outcome.copies.ratio, "closer": outcome.copies.closer}}
    content |= {"sample": asdict(outcome.sample), "tuning": [asdict(trial) for trial in trials]}
    replace_text(outcome.folder / SCORE, json.dumps(content, indent=2) + "\n")
