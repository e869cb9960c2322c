"""The grid of a study before anything is trained: cost and length of each part, and the folder names of its runs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from math import log10
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ditlab.config.evaluation import Evaluation
from ditlab.config.fields import places, resume_rules
from ditlab.config.reader import to_tables
from ditlab.config.sections import Preparation, Recipe
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError, lookup
from ditlab.core.units import GIB, counted, duration
from ditlab.core.version import __version__
from ditlab.data import Dataset, parse_source
from ditlab.data.content import files_identity
from ditlab.data.npz import read_about
from ditlab.data.parse import DIVISION, SampleNpz, content_identity
from ditlab.evaluation import protocols as protocol
from ditlab.evaluation.features import Features, open_features
from ditlab.evaluation.gather import check_fit
from ditlab.evaluation.metric_choice import available_statistics
from ditlab.evaluation.metrics import METRICS
from ditlab.evaluation.references import open_images, reading_of, short_hash
from ditlab.inference.plan import Plan as SamplingPlan
from ditlab.inference.plan import resolve
from ditlab.inference.samples import check_count
from ditlab.profiling.plan import Plan, plan
from ditlab.study.length import TRAINING, images_at, images_for, logging_intervals, on_clock
from ditlab.study.measures import measure_of
from ditlab.study.measures.base import Measure, opened
from ditlab.study.recipe import Study
from ditlab.training.checks import check_recipe, check_sampling
from ditlab.training.init_from import completed_recipe
from ditlab.training.objectives import OBJECTIVES

# Hashes use the names that settings had at first, so that a renamed setting does not change them.
FIRST_NAMES = {
    "gray": "grey",
    "layer_sync": "align",
    "layer_sync_weight": "align_weight",
    "max_bad_steps": "patience",
    "power_ema": "widths",
}
FIRST_EVALUATION_NAMES = {"guidance_interval": "interval", "label_sampling": "labels", "schedule": "grid"}
# The settings of version 0.1. Later ones are hashed only if they differ from their default, which is what every run
# did before.
FIRST_SETTINGS = {
    "diffusion.time", "diffusion.time_mean", "diffusion.time_scale", "diffusion.stratified", "diffusion.weight",
    "diffusion.direction", "data.size", "data.fit", "data.flip", "data.gray", "data.background", "data.labels",
    "data.max_skipped", "data.source", "data.autoencoder", "optim.name", "optim.lr", "optim.betas",
    "optim.weight_decay", "optim.warmup", "optim.schedule", "optim.decay", "optim.clip", "train.images",
    "train.minutes", "train.batch", "train.label_dropout", "train.route", "train.layer_sync",
    "train.layer_sync_weight", "train.ema", "train.power_ema", "train.init_from", "train.class_map",
    "train.lora", "train.lora_apart", "train.seed", "train.precision", "train.compile", "train.device",
    "train.report", "train.log_every", "train.preview_every", "train.save_every", "train.keep",
    "train.keep_every", "train.max_bad_steps",
}  # fmt: skip
# Settings that are now None by default are hashed with their first defaults, unless the source of a run sets them.
FIRST_DEFAULTS = {"process": "linear", "target": "velocity", "learn_variance": False}


@dataclass(frozen=True)
class EvaluationPlan:
    """How images are generated with a trained part, and how they are scored."""

    settings: Evaluation  # settings that the evaluation left open are those of the part's recipe
    nfe: int  # network evaluations per image
    schedule: str | list[float]  # name of the timestep schedule, or its timesteps
    reading: Preparation | None = None  # how a reference is read that is divided as the images of the part's recipe
    images: int | None = None  # training images of the checkpoint that is scored; None is the end of the run

    @property
    def hash(self) -> str:
        """Hash of all settings that determine the score of given weights, apart from the seed."""
        settings = {
            FIRST_EVALUATION_NAMES.get(key, key): value
            for key, value in self.settings.keys().items()
            if key not in ("seed", "batch_size", "device")
        }
        settings["grid"] = self.schedule
        if self.settings.feature_weights:
            settings["feature_weights"] = model_identity(self.settings.feature_weights)
        reference = source_identity(self.settings.reference, self.reading)
        at = {} if self.images is None else {"images": self.images}
        return short_hash({"settings": settings, "reference": reference, "version": __version__} | at)


@dataclass(frozen=True)
class Part:
    """A model of the study, which is trained once per seed."""

    name: str
    recipe: Recipe  # with its budget in images; its seed is not used
    plan: Plan
    hash: str  # of all settings that determine the weights, apart from the seed
    evaluations: dict[str, EvaluationPlan]  # by name

    @property
    def training_gmacs(self) -> float:
        """GMACs of one training run."""
        return TRAINING * self.plan.gmacs * self.recipe.train.images

    @property
    def seconds(self) -> float | None:
        """Predicted seconds of one training run; None if no training steps were timed."""
        rate = self.plan.steps_per_second
        return None if rate is None else self.recipe.train.images / self.recipe.train.batch / rate

    def scoring_seconds(self, sample_sets: int) -> float | None:
        """Predicted seconds to generate the images for all scores of one run, from the speed of training."""
        if self.plan.steps_per_second is None:
            return None
        forward = 1 / (self.plan.steps_per_second * self.recipe.train.batch * TRAINING)
        evaluations = self.evaluations.values()
        return sample_sets * forward * sum(evaluation.nfe * evaluation.settings.count for evaluation in evaluations)

    def folder(self, seed: int) -> str:
        """Folder name of the run with this seed."""
        clean = "".join(c if c.isalnum() else "-" for c in self.name).strip("-")
        return f"{clean}-seed{seed}-{self.hash}"


def lay_out(study: Study, known: dict[str, int], console: Console, *, timed: bool = False) -> list[Part]:
    """Plan all parts: images, time, memory, and what each evaluation does.

    Args:
        study: the recipe.
        known: hash of a part -> training images for a budget in seconds, from an earlier start.
        console: where progress is shown.
        timed: time a few training steps of each part.

    Raises:
        InputError: a part or an evaluation is not possible; the message names the part.
    """
    parts = []
    for name in track(study.parts, "checking the parts", console=console, disable=not console.is_terminal):
        try:
            parts.append(lay_out_part(study, name, known, timed))
        except InputError as error:
            raise InputError(f'part "{name}": {error}') from error
    return parts


def lay_out_part(study: Study, name: str, known: dict[str, int], timed: bool) -> Part:
    """Plan one part; see `lay_out`."""
    recipe, budget = on_clock(study.parts[name], study.changes[name]), study.budget
    check_recipe(recipe)
    by_time = budget.seconds is not None
    part_hash = run_hash(recipe, f"{budget}") if by_time else ""
    cost = plan(recipe, timed=timed or (by_time and part_hash not in known))
    images = known.get(part_hash) or images_for(budget, cost, recipe.train.batch)
    recipe = replace(recipe, train=replace(recipe.train, images=images))
    recipe = replace(recipe, train=replace(recipe.train, **logging_intervals(study, name, recipe)))
    evaluations = {key: rehearse(recipe, settings) for key, settings in study.evaluations_of(name).items()}
    for key, share in study.shares.items():
        if share < 1 and key in evaluations:
            evaluations[key] = replace(evaluations[key], images=images_at(share, study, recipe))
    return Part(name, recipe, cost, part_hash or run_hash(recipe, images), evaluations)


def run_hash(recipe: Recipe, length: int | str) -> str:
    """Hash of a run, apart from its seed: the settings that determine its weights, its data, and the version."""
    tables = to_tables(recipe)
    rules, paths, defaults = resume_rules(Recipe), places(Recipe), to_tables(Recipe())

    def is_hashed(key: str, value: Any) -> bool:
        if key in paths and value and Path(value).exists():  # its content is hashed below, and not its place
            return False
        section, name = key.split(".")
        later = section != "model" and key not in FIRST_SETTINGS and value == defaults[section].get(name)
        return rules.get(key) != "free" and key != "train.seed" and not later

    content: dict[str, Any] = {
        section: {
            FIRST_NAMES.get(key, key): value
            for key, value in tables[section].items()
            if is_hashed(f"{section}.{key}", value)
        }
        for section in ("model", "diffusion", "data", "optim", "train")
    }
    if not recipe.train.init_from:
        content["diffusion"] = FIRST_DEFAULTS | content["diffusion"]
    content["train"]["images"] = length
    # These keys keep their names: they are part of the hash.
    content["pictures"] = source_identity(recipe.data.source, recipe.data)
    content["begins with"] = model_identity(recipe.train.init_from) if recipe.train.init_from else None
    files = {
        "autoencoder": recipe.data.autoencoder,
        "labels": recipe.data.labels,
        "class map": recipe.train.class_map,
    }
    content |= {key: model_identity(file) for key, file in files.items() if file}
    return short_hash(content | {"version": __version__})


@cache
def source_identity(source: str, settings: Preparation | None = None) -> str:
    """Identity of the content of a data source, computed once: folders may be large."""
    return content_identity(source, settings)


@cache
def model_identity(place: str) -> str:
    """Identity of the content of a model or another file, computed once."""
    return files_identity(place)


@cache
def feature_network(name: str, weights: str, device: str) -> Features:
    """The feature network of an evaluation."""
    return open_features(name, weights, pick_device(device))


def rehearse(recipe: Recipe, settings: Evaluation) -> EvaluationPlan:
    """An evaluation with the open settings filled in, checked before training.

    Raises:
        InputError: an unknown sampler or metric, or a count that the classes do not divide.
    """
    source, default = recipe.data.source, recipe.sample
    if measure := measure_of(settings):
        return rehearse_measure(recipe, settings, measure)
    if not settings.reference:
        held_out = parse_source(source, recipe.data).held_out()
        settings = replace(settings, reference=source if held_out is None else held_out.text)
    protocol.check(settings)
    for metric in settings.metrics:
        lookup(METRICS, metric, "metric")
    dataset, _, started = opened(recipe.data, recipe.train.init_from)
    recipe = completed_recipe(recipe, started)
    classes = recipe.data.classes or len(dataset.classes)
    sampling = checked_sampling(recipe, settings, classes > 0)
    check_count(settings.count, settings.seed, settings.label_sampling, classes)
    features = settings.features or protocol.default_features(settings.reference)
    network = feature_network(features, settings.feature_weights, settings.device)
    check_fit(dataset, network, settings.show)
    trained = {key: getattr(recipe.data, key) for key in DIVISION}
    trained |= {"held_out": dataset.preprocessing.get("held_out", 0.0)}  # also that of a latent cache
    reading = reading_of(settings.reference, Preparation(**trained))
    check_reference(settings, dataset, network, reading)
    settings = replace(settings, **sampling.options.given() | {"schedule": settings.schedule or default.schedule})
    return EvaluationPlan(settings, sampling.evaluations, sampling.schedule, reading if reading.held_out else None)


def checked_sampling(recipe: Recipe, settings: Evaluation, conditional: bool) -> SamplingPlan:
    """The sampling plan of an evaluation, where [sample] of the recipe is also possible: previews of training use it.

    Raises:
        InputError: the settings of one of them are not possible.
    """
    reading = OBJECTIVES.find(recipe.train.objective).reading(recipe)
    filled_in = partial(resolve, objective=reading, defaults=recipe.sample, conditional=conditional)
    check_sampling(recipe, reading, conditional, partial(filled_in, {}))
    return filled_in(settings.sampling().given())


def rehearse_measure(recipe: Recipe, settings: Evaluation, measure: Measure) -> EvaluationPlan:
    """An evaluation with a measure of the model itself, with the open settings filled in, checked before training.

    Raises:
        InputError: the measure or the sampling settings are not possible.
    """
    measure.check(recipe, settings)
    _, _, started = opened(recipe.data, recipe.train.init_from)
    sampling = checked_sampling(completed_recipe(recipe, started), settings, conditional=True)
    settings = replace(settings, **sampling.options.given() | {"schedule": settings.schedule or recipe.sample.schedule})
    return EvaluationPlan(settings, sampling.evaluations, sampling.schedule, None)


def check_reference(settings: Evaluation, images: Dataset, features: Features, reading: Preparation) -> None:
    """Reject a missing reference, one of another image size, and metrics that need more than these features provide."""
    source = settings.reference
    spec = parse_source(source)
    if isinstance(spec, SampleNpz):
        about = read_about(Path(source))
    else:
        size = reference_size(source, replace(reading, size="{}x{}".format(*images.size) if spec.resizable else ""))
        about = {"size": size, "source": source}
    protocol.fits(about, images)
    available = available_statistics(features, images)
    for name in settings.metrics:
        if lacking := [need for need in METRICS[name].needs if not available[need]]:
            raise InputError(
                f"the features {features.name} do not provide what {name} needs ({', '.join(lacking)}); omit {name}"
            )


@cache
def reference_size(source: str, reading: Preparation) -> tuple[int, ...]:
    """(height, width) of the images of a source, which is read once."""
    return open_images(source, reading, torch.device("cpu")).size


def magnitude(gmacs: float) -> str:
    """GMACs in the unit that suits them: "3.41 MMACs"."""
    power = min(3, max(-1, int(log10(gmacs) // 3))) if gmacs > 0 else 0
    return f"{gmacs / 1000**power:,.3g} {('GMACs', 'TMACs', 'PMACs', 'EMACs', 'MMACs')[power]}"


def dry_run(study: Study, parts: list[Part]) -> Iterator[Table | str]:
    """The grid for the screen: what the study will train, and the time and memory that it needs."""
    table = Table(
        "part", "parameters", "forward pass", "training images", "batch", "training time", "scoring time", "memory"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        train = part.recipe.train
        seconds, scoring = part.seconds, part.scoring_seconds(study.sample_sets)
        available = "" if part.plan.fits else f" of {part.plan.capacity / GIB:,.1f} GiB"
        table.add_row(
            part.name, f"{part.plan.parameters / 1e6:,.2f} M", magnitude(part.plan.gmacs), f"{train.images:,}",
            f"{train.batch:,}", "" if seconds is None else duration(seconds),
            "" if scoring is None else duration(scoring),
            f"{part.plan.peak / GIB:,.2f} GiB{available}",
        )  # fmt: skip
    yield table
    runs = len(parts) * len(study.seeds)
    yield (
        f"{counted(len(parts), 'part')} x {counted(len(study.seeds), 'seed')} = {counted(runs, 'run')}, "
        f"{counted(len(study.evaluations), 'evaluation')} per run"
    )
    times = [(part.seconds, part.scoring_seconds(study.sample_sets)) for part in parts]
    total = sum((training or 0.0) + (scoring or 0.0) for training, scoring in times) * len(study.seeds)
    on_cpu = any(part.recipe.train.clock == "cpu" for part in parts)
    load = " of one thread" if on_cpu else ", one run after the other, at the present load of this machine"
    yield f"predicted total {'processor ' * on_cpu}time: {duration(total)}{load}"
    yield from (f'part "{part.name}" does not fit in memory' for part in parts if not part.plan.fits)


def as_json(study: Study, parts: list[Part]) -> dict[str, Any]:
    """The grid as plain values."""
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
                "scoring_seconds": part.scoring_seconds(study.sample_sets),
                "memory": part.plan.peak,
                "fits": part.plan.fits,
            }
            for part in parts
        ],
    }
