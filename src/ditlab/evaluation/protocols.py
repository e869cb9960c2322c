"""Evaluation: a score with everything that decided it (protocol, reference, versions and machine)."""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ditlab.checkpoints import load
from ditlab.config.evaluation import CheckpointOptions, Evaluation, SampleSource
from ditlab.config.reader import parse_size
from ditlab.config.sampling import canonical
from ditlab.config.sections import Preparation
from ditlab.core.device import describe, pick_device
from ditlab.core.errors import InputError
from ditlab.core.io import held
from ditlab.core.progress import progress_bar
from ditlab.core.version import __version__
from ditlab.core.weights import CONFIG
from ditlab.data import Dataset, find_spec, parse_source
from ditlab.data.parse import SampleNpz
from ditlab.evaluation.features import Extracted, Features, open_features
from ditlab.evaluation.features.inception import PUBLISHED
from ditlab.evaluation.gather import check_fit, forget, gather
from ditlab.evaluation.metrics import METRICS, Metric, Statistics
from ditlab.evaluation.references import (
    Reference,
    identity,
    make_reference,
    open_pictures,
    read_reference,
    short_hash,
)
from ditlab.evaluation.results import Result, read_result, with_expectation, write_result
from ditlab.inference.base import BasePipeline
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.plan import Plan
from ditlab.inference.samples import Samples
from ditlab.report.sheets import contact_sheet, to_pil

PROTOCOL_COUNT = 50_000  # images of published distances
SHOWN = 40  # images of the contact sheet
PREPROCESSING = ("fit", "background", "gray")  # of training images, which real images share


def evaluate(
    source: "str | Path | BasePipeline",
    settings: Evaluation | None = None,
    console: Console | None = None,
    *,
    out: str | Path | None = None,
    name: str = "evaluation",
    rank: int = 0,
    world: int = 1,
    measured: dict[str, Reference] | None = None,
    **keywords: Any,
) -> Result | None:
    """Score a model, or images that exist already; the same call again continues, or returns the same result.

    Args:
        source: a `Pipeline`, what `ditlab.load` takes, a sample file, or a data source.
        settings: the protocol (default: `Evaluation()`).
        console: where progress is shown; nowhere if None.
        out: folder of the result (default: the model's folder).
        name: start of the folder's name, which ends in a hash of the protocol.
        rank, world: number of this process, and of all.
        measured: references of earlier calls, which are not measured again; changed in place.
        keywords: fields of `Evaluation`, which replace those of `settings`: `evaluate(pipe, reference="digits")`.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: a protocol that does not go together, or one that another process works on.
    """
    settings, console = with_keywords(settings or Evaluation(), keywords), console or Console(quiet=True)
    job = plan_evaluation(source, settings, console, {} if measured is None else measured)
    home = Path(out or home_of(source)) / f"{name}-{protocol_hash(job.protocol)}"
    with held(home, rank):
        if (home / "result.json").exists():
            return with_expectation(read_result(home), settings)
        return score(job, settings, console, home, rank, world)


@dataclass(frozen=True)
class Job:
    """An evaluation that was checked: what is measured, in which features, and against what."""

    images: Dataset
    features: Features
    metrics: dict[str, Metric]
    reference: Reference
    protocol: dict[str, Any]
    notes: list[str]
    device: torch.device

    @property
    def kept(self) -> int:
        """Number of images whose features the metrics need."""
        return len(self.images) if any("kept" in metric.needs for metric in self.metrics.values()) else 0


def with_keywords(settings: Evaluation, keywords: dict[str, Any]) -> Evaluation:
    """The protocol with some fields replaced; sampling settings may have any accepted name.

    Raises:
        InputError: an unknown name.
    """
    names = [option.name for option in fields(Evaluation)]
    return replace(settings, **canonical(keywords, names)) if keywords else settings


def plan_evaluation(
    source: "str | Path | BasePipeline", settings: Evaluation, console: Console, measured: dict[str, Reference]
) -> Job:
    """Check a protocol and open everything that it needs; no image is generated yet.

    Raises:
        InputError: a protocol that does not go together.
    """
    check(settings)
    device = pick_device(settings.device)
    features = open_features(
        settings.features or default_features(settings.reference), settings.feature_weights, device
    )
    wanted = {name: METRICS.find(name) for name in settings.metrics or METRICS}
    images, protocol, preparation = open_source(source, settings, device, console)
    check_fit(images, features)
    compared = any("kept" in metric.of_reference for metric in wanted.values())
    key = repr((settings.reference, preparation, features.name, features.weights, compared))
    if key not in measured:
        measured[key] = open_reference(settings.reference, preparation, features, console, device, compared)
    reference = measured[key]
    fits(reference.about, images)
    metrics, notes = choose(wanted, images, features, reference, strict=bool(settings.metrics))
    protocol |= {
        "features": features.name,
        "feature_weights": features.weights,
        "metrics": list(metrics),
        "reference": reference.about,
        "reference_identity": identity(settings.reference),
        "source": str(source),
        "device": str(device),
    }
    return Job(images, features, metrics, reference, protocol, notes, device)


def score(job: Job, settings: Evaluation, console: Console, home: Path, rank: int, world: int) -> Result | None:
    """Measure the images and write the result; None if other processes are still at work."""
    started = time.monotonic()
    gathered = gather(
        job.images, len(job.images), job.features, console, keep=job.kept, batch_size=settings.batch_size, folder=home,
        rank=rank, world=world,
    )  # fmt: skip
    if gathered is None:
        return None
    values = computed(job.metrics, gathered.statistics, job.reference.statistics, console)
    notes = job.notes + remarks(gathered.count, len(job.images), job.features, job.reference)
    seconds = round(time.monotonic() - started, 1)
    result = Result(values, job.protocol, notes, seconds, __version__, describe(str(job.device)), home)
    if isinstance(job.images, Samples):
        show(job.images, home / "grid.png")
    write_result(result := with_expectation(result, settings))
    forget(home)
    return result


def check(settings: Evaluation) -> None:
    """Refuse a protocol that cannot be run, before any work."""
    if not settings.reference:
        raise InputError("no reference to compare with; give a reference: an .npz file or a data source")
    if settings.count < 2 or settings.batch_size < 1:
        raise InputError(f"count {settings.count} and batch size {settings.batch_size}; give 2 or more, and 1 or more")
    if settings.within is not None and settings.expect is None:
        raise InputError(f"within {settings.within} without an expected value; give expect too")


def default_features(reference: str) -> str:
    """The features that a reference holds, or in which distances to this data are measured by default."""
    spec = find_spec(reference)
    return "inception" if spec is None else spec.default_features()


def is_model(source: str) -> bool:
    """Whether this names a model rather than images."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).exists() for name in (CONFIG, "checkpoints", "model_index.json", "transformer"))
    return find_spec(source) is None


def open_source(
    source: "str | Path | BasePipeline", settings: SampleSource, device: torch.device, console: Console
) -> tuple[Dataset, dict[str, Any], Preparation | None]:
    """The images to evaluate, everything that decides them, and how real images are preprocessed to match."""
    if isinstance(source, BasePipeline) or is_model(str(source)):
        pipe = source if isinstance(source, BasePipeline) else load_for(str(source), settings, device)
        samples, protocol = samples_of(pipe, settings, console)
        trained_on = pipe.config.get("recipe", {}).get("data", {})
        same = {key: trained_on[key] for key in PREPROCESSING if key in trained_on}
        if "grey" in trained_on:  # the key of version 0.1
            same["gray"] = trained_on["grey"]
        return samples, protocol, Preparation(size="{}x{}".format(*samples.size), **same)
    images = open_pictures(str(source), None, device)
    if len(images) < 2:
        raise InputError(f"{len(images)} images in {source}; give 2 or more")
    return images, {"pictures": identity(str(source)), "count": len(images), "size": list(images.size)}, None


def load_for(source: str, settings: CheckpointOptions, device: torch.device) -> Pipeline:
    """The model of the protocol."""
    facts: dict[str, Any] = {"heads": settings.heads} if settings.heads else {}
    if settings.classes is not None:
        facts["classes"] = settings.classes
    if settings.latent_size:
        facts["size"] = parse_size(settings.latent_size)
    return load(source, weights=settings.weights, device=device, autoencoder=settings.autoencoder or None, **facts)


def sampling_of(settings: SampleSource, conditional: bool) -> dict[str, Any]:
    """The sampling settings of a protocol; guidance does not apply to an unconditional model."""
    options = settings.sampling().given()
    return options if conditional else options | {"guidance": 1.0}


def samples_of(
    pipe: BasePipeline, settings: SampleSource, console: Console | None = None
) -> tuple[Samples, dict[str, Any]]:
    """The images of a model, and everything that decides them."""
    samples = Samples(
        pipe, settings.count, labels=settings.label_sampling, seed=settings.seed, batch_size=settings.batch_size,
        options=sampling_of(settings, pipe.conditional), precision=settings.precision, console=console,
    )  # fmt: skip
    # The names of version 0.1: the folders of results have a hash of them in their names.
    protocol = protocol_settings(samples.plan) | {
        "labels": settings.label_sampling,
        "seed": settings.seed,
        "count": settings.count,
        "weights": settings.weights,
        "precision": settings.precision,
        "model": pipe.model.identity(),
        "size": list(samples.size),
    }
    return samples, protocol


def protocol_settings(plan: Plan) -> dict[str, Any]:
    """The sampling settings of a protocol, under the names of version 0.1."""
    options = plan.options
    settings: dict[str, Any] = {
        "num_inference_steps": options.steps,
        "sampler": options.sampler,
        "grid": plan.schedule,
        "guidance_scale": plan.guidance,
        "guidance_interval": list(plan.interval),
        "guidance_channels": options.guidance_channels,
        "eta": options.eta,
    }
    return settings if options.reuse is None else settings | {"reuse": options.reuse}


def open_reference(
    source: str,
    preparation: Preparation | None,
    features: Features,
    console: Console,
    device: torch.device,
    keep: bool,
) -> Reference:
    """A reference from its file, or measured now; real images are preprocessed as for the model's training."""
    spec = parse_source(source)
    if isinstance(spec, SampleNpz):
        return read_reference(Path(source), features, console, keep=keep)
    preparation = preparation if spec.resizable else None
    made = make_reference(source, open_pictures(source, preparation, device), features, console)
    assert made is not None
    return made


def fits(about: dict[str, Any], images: Dataset) -> None:
    """Refuse images of another size than the reference's: resizing changes a distance more than most settings."""
    size = about.get("size")
    if size is not None and list(size) != list(images.size):
        raise InputError(
            f"images of {images.size[0]}x{images.size[1]} against a reference of {size[0]}x{size[1]}; "
            f"make one with: ditlab reference {about.get('source')} --size "
            f"{images.size[0]}x{images.size[1]}"
        )


def blank(features: Features, images: Dataset) -> Extracted:
    """The features of one black image."""
    return features(torch.zeros(1, images.channels, *images.size, dtype=torch.uint8))


def given_by(features: Features, images: Dataset, one: Extracted | None = None) -> dict[str, bool]:
    """What metrics can compute from such images in these features; `one` holds the features of one image."""
    one = one or blank(features, images)
    return {
        "kept": True,
        "spatial": one.spatial is not None,
        "scores": one.probabilities is not None,
        "accuracy": features.classes is not None and features.classes == images.classes,
    }


def choose(
    wanted: dict[str, Metric], images: Dataset, features: Features, reference: Reference, *, strict: bool
) -> tuple[dict[str, Metric], list[str]]:
    """The metrics that can be computed, and notes on those that the reference does not allow.

    Raises:
        InputError: a metric that was asked for by name cannot be computed.
    """
    one = blank(features, images)
    for mine, theirs in ((one.features, reference.statistics.features), (one.spatial, reference.statistics.spatial)):
        if mine is not None and theirs is not None and mine.shape[1] != len(theirs.mean):
            raise InputError(
                f"the reference has {len(theirs.mean)} features where {features.name} has {mine.shape[1]}; "
                "make one with these features"
            )
    there = given_by(features, images, one)
    chosen, notes = {}, []
    for name, metric in wanted.items():
        of_features = [need for need in metric.needs if not there[need]]
        of_reference = [need for need in metric.of_reference if getattr(reference.statistics, need) is None]
        if not of_features and not of_reference:
            chosen[name] = metric
        elif strict:
            lacking = f"the features {features.name} do not give" if of_features else "the reference does not hold"
            raise InputError(f"{name} needs what {lacking} ({', '.join(of_features or of_reference)}); leave it out")
        elif not of_features:
            notes.append(f"{name} left out: the reference does not hold {', '.join(of_reference)}")
    return chosen, notes


def computed(
    metrics: dict[str, Metric], generated: Statistics, reference: Statistics, console: Console
) -> dict[str, float]:
    """The results of all metrics; some take minutes."""
    values: dict[str, float] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("computing", total=len(metrics))
        for name, metric in metrics.items():
            progress.update(task, description=f"computing {name}")
            values |= metric.compute(generated, reference)
            progress.advance(task)
    return values


def remarks(count: int, asked: int, features: Features, reference: Reference) -> list[str]:
    """What limits the meaning of the score."""
    notes = [f"{asked - count:,} of {asked:,} images could not be read"] if count < asked else []
    real = reference.statistics.features.count or reference.about.get("count")
    if real is not None and real <= features.dimension:
        notes.append(
            f"the reference's {real:,} images do not determine a covariance of {features.dimension:,} features"
        )
    if count <= features.dimension:
        notes.append(
            f"{count:,} images do not determine a covariance of {features.dimension:,} features; "
            "the distance is too large"
        )
    if features.name == "inception" and not features.weights.startswith(PUBLISHED):
        notes.append(
            f"the Inception weights ({features.weights}) are not the published file ({PUBLISHED}...); unless they are "
            "a copy of it in another format, the distances cannot be compared with published ones"
        )
    if features.name in ("inception", "dinov2") and count < PROTOCOL_COUNT:
        notes.append(f"{count:,} images; published distances use {PROTOCOL_COUNT:,} and are smaller")
    return notes


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Identity of a protocol; neither the place of its files nor the device matters."""
    own = {key: value for key, value in protocol.items() if key not in ("source", "device")}
    own["reference"] = {key: protocol["reference"].get(key) for key in ("size", "preprocessing")}
    return short_hash(own)


def home_of(source: "str | Path | BasePipeline") -> Path:
    """Where results of a source are kept: in the model's folder, where there is one."""
    folder = None if isinstance(source, BasePipeline) else Path(source)
    inside = folder is not None and folder.is_dir() and is_model(str(folder))
    return folder / "evaluations" if folder is not None and inside else Path("evaluations")


def show(samples: Samples, file: Path) -> None:
    """Write a contact sheet of the first images."""
    images = to_pil(samples.fetch(torch.arange(min(SHOWN, len(samples)))).x)
    contact_sheet([images[i : i + 10] for i in range(0, len(images), 10)]).save(file)
