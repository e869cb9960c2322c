"""The grid of a study before anything is trained: what each part costs, how long it runs, and its name on disk."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import log10
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone
from ditlab.checkpoints import load
from ditlab.config.fields import resume_rules
from ditlab.config.reader import to_tables
from ditlab.config.sections import Data, Evaluation, Preparation, Recipe
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace
from ditlab.core.units import GIB, duration
from ditlab.core.version import __version__
from ditlab.data import Dataset, open_dataset, parse_source
from ditlab.data.parse import SampleNpz
from ditlab.diffusion.objective import Objective, completed, make_objective
from ditlab.evaluation import protocols as protocol
from ditlab.evaluation.features import Features, open_features
from ditlab.evaluation.gather import check_fit
from ditlab.evaluation.metrics import METRICS
from ditlab.evaluation.references import identity, open_pictures, told_of
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.samples import Samples
from ditlab.profiling.plan import Plan, plan
from ditlab.study.recipe import Budget, Study
from ditlab.training.checks import check_recipe
from ditlab.training.setup import pick_autoencoder

LINES = 40  # of a run's metrics, at least: the points of its curve
SAVED = 4  # checkpoints on the way, at least
TRAINING = 3  # times the work of a forward pass, for each picture


@dataclass(frozen=True)
class Way:
    """How pictures are drawn from a part, and scored."""

    settings: Evaluation  # where they were left open, as the part's recipe says
    calls: int  # times that each picture passes through the network
    grid: str | list[float]  # by name, or the times themselves

    @property
    def mark(self) -> str:
        """Identity of all that decides the score of given weights, the seed aside."""
        told = {
            key: value for key, value in asdict(self.settings).items() if key not in ("seed", "batch_size", "device")
        }
        told["grid"] = self.grid
        if self.settings.feature_weights:
            told["feature_weights"] = pictures_of(self.settings.feature_weights)
        return digest({"settings": told, "reference": pictures_of(self.settings.reference), "version": __version__})


@dataclass(frozen=True)
class Part:
    """What is trained with each seed."""

    name: str
    recipe: Recipe  # its budget as images; the seed aside
    plan: Plan
    mark: str
    ways: dict[str, Way]  # by evaluation

    @property
    def training_gmacs(self) -> float:
        """Of one run."""
        return TRAINING * self.plan.gmacs * self.recipe.train.images

    @property
    def seconds(self) -> float | None:
        """Of training once, foretold; None where nothing was timed."""
        rate = self.plan.steps_per_second
        return None if rate is None else self.recipe.train.images / self.recipe.train.batch / rate

    def scoring_seconds(self, draws: int) -> float | None:
        """Of drawing for all scores of one run, foretold from the speed of training."""
        if self.plan.steps_per_second is None:
            return None
        forward = 1 / (self.plan.steps_per_second * self.recipe.train.batch * TRAINING)
        return draws * forward * sum(way.calls * way.settings.count for way in self.ways.values())

    def folder(self, seed: int) -> str:
        """Name of the run with this seed."""
        clean = "".join(c if c.isalnum() else "-" for c in self.name).strip("-")
        return f"{clean}-seed{seed}-{self.mark}"


def lay_out(study: Study, known: dict[str, int], console: Console, *, timed: bool = False) -> list[Part]:
    """The parts, with everything about them that can be known beforehand.

    Args:
        study: the recipe.
        known: mark of a part -> images that its seconds came to earlier.
        console: where progress is shown.
        timed: take a few training steps of each.

    Raises:
        InputError: a part or an evaluation that cannot be; it is named.
    """
    parts = []
    for name in track(study.parts, "looking at the parts", console=console, disable=not console.is_terminal):
        try:
            parts.append(lay_out_part(study, name, known, timed))
        except InputError as error:
            raise InputError(f'part "{name}": {error}') from error
    return parts


def lay_out_part(study: Study, name: str, known: dict[str, int], timed: bool) -> Part:
    """One of them."""
    recipe, budget = study.parts[name], study.budget
    check_recipe(recipe)
    by_time = budget.seconds is not None
    mark = mark_of(recipe, f"{budget}") if by_time else ""
    found = plan(recipe, timed=timed or (by_time and mark not in known))
    images = known.get(mark) or images_of(budget, found, recipe.train.batch)
    recipe = replace(recipe, train=replace(recipe.train, images=images))
    recipe = replace(recipe, train=replace(recipe.train, **rhythm(study, name, recipe)))
    ways = {each: rehearse(recipe, settings) for each, settings in study.evaluations.items()}
    return Part(name, recipe, found, mark or mark_of(recipe, images), ways)


def images_of(budget: Budget, found: Plan, batch: int) -> int:
    """Pictures that the budget pays for, in whole batches: the nearest number of them, at least one."""
    kind, value = budget.chosen
    if kind == "gmacs":
        value /= TRAINING * found.gmacs
    elif kind == "seconds":
        value *= (found.steps_per_second or 0.0) * batch
    return max(1, round(value / batch)) * batch


def rhythm(study: Study, name: str, recipe: Recipe) -> dict[str, Any]:
    """How often a run logs and saves, where the study does not say it: in shares of a length that it decides itself."""
    images, batch = recipe.train.images, recipe.train.batch
    own = {
        "log_every": max(batch, images // LINES),
        "save_every": max(batch, min(recipe.train.save_every, images // SAVED)),
        "preview_every": images,
        "keep": 1,
    }
    given = study.given[name].get("train", {})
    return {key: value for key, value in own.items() if key not in given}


def mark_of(recipe: Recipe, length: int | str) -> str:
    """Identity of a run, whatever its seed: the settings that decide its weights, what it learns from, the version."""
    tables = to_tables(recipe)
    rules = resume_rules(Recipe)
    told: dict[str, Any] = {
        section: {key: value for key, value in tables[section].items() if rules[f"{section}.{key}"] != "free"}
        for section in ("model", "diffusion", "data", "optim", "train")
    }
    del told["train"]["seed"]
    told["train"]["images"] = length
    told["pictures"] = pictures_of(recipe.data.source)
    told["begins with"] = pictures_of(recipe.train.init_from) if recipe.train.init_from else None
    files = {
        "autoencoder": recipe.data.autoencoder,
        "labels": recipe.data.labels,
        "class map": recipe.train.class_map,
    }
    told |= {key: pictures_of(file) for key, file in files.items() if file}
    return digest(told | {"version": __version__})


def digest(told: dict[str, Any]) -> str:
    """Eight digits of the hash of plain values."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


@cache
def pictures_of(source: str) -> str:
    """Identity of what lies there, looked at once: folders may be large."""
    return identity(source)


@cache
def opened(data: Data, init_from: str) -> tuple[Dataset, Autoencoder, Objective | None]:
    """The images of a recipe, its autoencoder, and how the model was trained that it starts from."""
    dataset, source = open_dataset(data.source, data), load(init_from) if init_from else None
    objective = None if source is None else source.objective
    return dataset, pick_autoencoder(data.autoencoder, dataset, source), objective


@cache
def feature_network(name: str, weights: str, device: str) -> Features:
    """The features of an evaluation."""
    return open_features(name, weights, pick_device(device))


class Counting(Backbone):
    """Answers zero and counts the pictures that it is asked about."""

    def __init__(self, size: tuple[int, ...], channels: int, classes: int, learn_variance: bool) -> None:
        super().__init__(size, channels, classes, learn_variance)
        self.asked, self.config = 0, {}
        self.nothing = nn.Parameter(torch.zeros(1))  # which tells device and precision

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {}

    @property
    def tokens(self) -> int:
        return 0

    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None) -> Tensor:
        self.asked += len(x)
        return x.new_zeros(len(x), self.out_channels, *self.size)


def rehearse(recipe: Recipe, settings: Evaluation) -> Way:
    """An evaluation made out for a part: gone through with a network of no size, so that mistakes are found now.

    Raises:
        InputError: a sampler, metric or count that cannot be.
    """
    source, drawn = recipe.data.source, recipe.sample
    if not settings.reference:
        held_out = parse_source(source, recipe.data.labels).held_out()
        settings = replace(settings, reference=source if held_out is None else held_out.text)
    settings = replace(
        settings,
        sampler=settings.sampler or drawn.sampler,
        steps=drawn.steps if settings.steps is None else settings.steps,
        grid=settings.grid or drawn.grid,
        guidance=drawn.guidance if settings.guidance is None else settings.guidance,
        interval=settings.interval or drawn.interval,
    )
    protocol.check(settings)
    for metric in settings.metrics:
        lookup(METRICS, metric, "metric")
    dataset, autoencoder, started = opened(recipe.data, recipe.train.init_from)
    recipe = replace(recipe, diffusion=completed(recipe.diffusion, started))
    channels, size = autoencoder.latent_shape(dataset.channels, dataset.size)
    net = Counting(size, channels, recipe.data.classes or len(dataset.classes), bool(recipe.diffusion.learn_variance))
    config = {"sample": to_tables(recipe)["sample"]}
    pipe = Pipeline(net, make_objective(recipe.diffusion), autoencoder, dataset.classes, config)
    pictures, told = protocol.drawn_by(pipe, settings)
    features = settings.features or protocol.default_features(settings.reference)
    network = feature_network(features, settings.feature_weights, settings.device)
    check_fit(pictures, network)
    check_reference(settings, pictures, network)
    net.asked = 0
    for _ in pipe.steps(0 if net.classes else None, **pictures.options):
        pass
    return Way(settings, net.asked, told["grid"])


def check_reference(settings: Evaluation, pictures: Samples, features: Features) -> None:
    """Refuse a reference that is not there or of another size, and metrics that these features do not give."""
    source = settings.reference
    spec = parse_source(source)
    if isinstance(spec, SampleNpz):
        about = told_of(Path(source))
    else:
        size = reference_size(source, "{}x{}".format(*pictures.size) if spec.resizable else "")
        about = {"size": size, "source": source}
    protocol.fits(about, pictures)
    given = protocol.given_by(features, pictures)
    for name in settings.metrics:
        if lacking := [need for need in METRICS[name].needs if not given[need]]:
            raise InputError(
                f"{name} needs what the features {features.name} do not give ({', '.join(lacking)}); leave it out"
            )


@cache
def reference_size(source: str, wanted: str) -> tuple[int, ...]:
    """(height, width) of the pictures of a source, brought to the size that is wanted; looked at once."""
    return open_pictures(source, Preparation(size=wanted), torch.device("cpu")).size


def magnitude(gmacs: float) -> str:
    """A count of GMACs in its own unit."""
    power = min(3, max(-1, int(log10(gmacs) // 3))) if gmacs > 0 else 0
    return f"{gmacs / 1000**power:,.3g} {('GMACs', 'TMACs', 'PMACs', 'EMACs', 'MMACs')[power]}"


def dry_run(study: Study, parts: list[Part]) -> Iterator[Table | str]:
    """What the study will train and what it will need, for the screen."""
    table = Table("part", "parameters", "network", "images", "batch", "training", "scoring", "memory")
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        train = part.recipe.train
        seconds, scoring = part.seconds, part.scoring_seconds(study.draws)
        room = "" if part.plan.fits else f", there are {part.plan.capacity / GIB:,.1f}"
        table.add_row(
            part.name, f"{part.plan.parameters / 1e6:,.2f} M", magnitude(part.plan.gmacs), f"{train.images:,}",
            f"{train.batch:,}", "" if seconds is None else duration(seconds),
            "" if scoring is None else duration(scoring),
            f"{part.plan.peak / GIB:,.2f} GiB{room}",
        )  # fmt: skip
    yield table
    runs = len(parts) * len(study.seeds)
    yield f"{len(parts)} parts x {len(study.seeds)} seeds = {runs} runs, {len(study.evaluations)} evaluations of each"
    times = [(part.seconds, part.scoring_seconds(study.draws)) for part in parts]
    whole = sum((a or 0.0) + (b or 0.0) for a, b in times) * len(study.seeds)
    yield f"about {duration(whole)} in all, one run after the other on this machine as it is now"
    yield from (f'part "{part.name}" does not fit in memory' for part in parts if not part.plan.fits)


def as_json(study: Study, parts: list[Part]) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "name": study.name,
        "seeds": list(study.seeds),
        "parts": [
            {
                "name": part.name,
                "parameters": part.plan.parameters,
                "gmacs": part.plan.gmacs,
                "images": part.recipe.train.images,
                "training_gmacs": part.training_gmacs,
                "seconds": part.seconds,
                "scoring_seconds": part.scoring_seconds(study.draws),
                "memory": part.plan.peak,
                "fits": part.plan.fits,
            }
            for part in parts
        ],
    }
