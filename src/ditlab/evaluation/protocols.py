"""Evaluate a model or images: compute metrics, and record everything that determines them.

A protocol is everything that determines the metrics: sampling settings, model, features and reference.
"""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ditlab.config.evaluation import Evaluation, SampleSource
from ditlab.config.fields import check_settings
from ditlab.config.sampling import canonical
from ditlab.config.sections import Preparation
from ditlab.core.device import describe, pick_device
from ditlab.core.errors import InputError
from ditlab.core.io import held
from ditlab.core.progress import progress_bar
from ditlab.core.spelling import expand
from ditlab.core.terminal import say
from ditlab.core.units import counted
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.core.version import __version__
from ditlab.core.weights import CONFIG
from ditlab.data import Dataset, find_spec, parse_source
from ditlab.data.parse import DIVISION, SampleNpz, content_identity
from ditlab.evaluation.features import Features, open_features
from ditlab.evaluation.features.inception import PUBLISHED
from ditlab.evaluation.frames import CLIPS, clip_protocol, clips_of, seen_by
from ditlab.evaluation.gather import forget, gather
from ditlab.evaluation.generated import load_for, samples_of
from ditlab.evaluation.metric_choice import choose
from ditlab.evaluation.metrics import METRICS, Metric, Statistics
from ditlab.evaluation.references import (
    Reference,
    make_reference,
    open_images,
    read_reference,
    reading_of,
    short_hash,
)
from ditlab.evaluation.results import Result, read_result, show_samples, with_expectation, write_result
from ditlab.evaluation.seen import converted, remarks_on_seen
from ditlab.inference.base import BasePipeline
from ditlab.inference.samples import Samples

PUBLISHED_COUNTS = {"inception": 50_000, "dinov2": 50_000, "i3d": 2_048}  # images or clips in published distances
PREPROCESSING = ("fit", "background", "gray", "range", "show", *CLIPS)
"""Preprocessing of training images, applied to real images too."""


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
    """Evaluate a model, or existing images; the same call resumes an interrupted evaluation or returns its result.

    Args:
        source: a `Pipeline`, a model that `ditlab.load` accepts, a sample file, or a data source.
        settings: the settings of the evaluation (default: `Evaluation()`).
        console: where progress is shown; None shows nothing.
        out: folder for results (default: "evaluations" in the model's folder).
        name: prefix of the result's folder name, which ends with a hash of the protocol.
        rank, world: index of this process, and number of processes.
        measured: references of earlier calls, which are not measured again; changed in place.
        keywords: fields of `Evaluation`, which replace those of `settings`: `evaluate(pipe, reference="digits")`.

    Returns:
        None if other processes are still at work.

    Raises:
        InputError: the settings contradict each other, or another process works on the same evaluation.
    """
    settings, console = with_keywords(settings or Evaluation(), keywords), console or Console(quiet=True)
    if not isinstance(source, str | Path | BasePipeline):
        raise InputError(f"the source is a {type(source).__name__}; give a pipeline, the path of a model, or images")
    source = source if isinstance(source, BasePipeline) else expand(str(source))
    job = plan_evaluation(source, settings, console, {} if measured is None else measured)
    folder = Path(expand(str(out or home_of(source)))) / f"{name}-{protocol_hash(job.protocol)}"
    with held(folder, rank):
        if (folder / "result.json").exists():
            return with_expectation(read_result(folder), settings)
        return score(job, settings, console, folder, rank, world)


@dataclass(frozen=True)
class Job:
    """A checked evaluation: images, features, metrics and reference."""

    images: Dataset
    features: Features
    metrics: dict[str, Metric]
    reference: Reference
    protocol: dict[str, Any]
    notes: list[str]
    device: torch.device

    @property
    def kept(self) -> int:
        """Number of feature vectors that the metrics need."""
        return len(self.images) if any("kept" in metric.needs for metric in self.metrics.values()) else 0


def with_keywords(settings: Evaluation, keywords: dict[str, Any]) -> Evaluation:
    """Replace some settings of an evaluation; sampling settings may have any accepted name.

    Raises:
        InputError: a name is unknown.
    """
    names = [option.name for option in fields(Evaluation)]
    return replace(settings, **canonical(keywords, names)) if keywords else settings


def plan_evaluation(
    source: "str | Path | BasePipeline", settings: Evaluation, console: Console, measured: dict[str, Reference]
) -> Job:
    """Check an evaluation and open everything that it needs; no image is generated yet.

    Raises:
        InputError: the settings contradict each other.
    """
    check(settings)
    device = pick_device(settings.device)
    name = settings.features or default_features(settings.reference)
    features = open_features(name, settings.feature_weights, device)
    requested = {name: METRICS.find(name) for name in settings.metrics or METRICS}
    images, protocol, preparation = open_source(source, settings, device, console, settings.size)
    if settings.show:
        images.values = images.values.showing(settings.show, images.channels)
    images = seen_by(features, images)
    compared = any("kept" in metric.of_reference for metric in requested.values())
    preparation = None if preparation is None else reading_of(settings.reference, preparation)
    key = repr((settings.reference, preparation, features.name, features.weights, compared, images.values))
    if key not in measured:
        measured[key] = open_reference(
            settings.reference, preparation, features, console, device, compared, images.values
        )
    reference = measured[key]
    fits(reference.about, images)
    metrics, notes = choose(requested, images, features, reference, strict=bool(settings.metrics))
    protocol |= clip_protocol(features, images, preparation)
    if images.values != EIGHT_BITS:  # also if other channels are shown
        protocol["values"] = images.values.describe()
    protocol |= {
        "features": features.name,
        "feature_weights": features.weights,
        "metrics": list(metrics),
        "reference": reference.about,
        "reference_identity": content_identity(settings.reference, preparation),
        "source": str(source),
        "device": str(device),
    }
    return Job(images, features, metrics, reference, protocol, remarks_on_seen(images) + notes, device)


def score(job: Job, settings: Evaluation, console: Console, folder: Path, rank: int, world: int) -> Result | None:
    """Measure the images and write the result into a folder; None if other processes are still at work."""
    started = time.monotonic()
    gathered = gather(
        job.images, len(job.images), job.features, console, keep=job.kept, batch_size=settings.batch_size,
        folder=folder, rank=rank, world=world,
    )  # fmt: skip
    if gathered is None:
        return None
    values = computed(job.metrics, gathered.statistics, job.reference.statistics, console)
    notes = job.notes + remarks(gathered.count, len(job.images), job.features, job.reference)
    seconds = round(time.monotonic() - started, 1)
    result = Result(values, job.protocol, notes, seconds, __version__, describe(str(job.device)), folder)
    if isinstance(samples := clips_of(job.images), Samples):
        show_samples(samples, folder)
    write_result(result := with_expectation(result, settings))
    forget(folder)
    return result


def check(settings: Evaluation) -> None:
    """Check the settings of an evaluation before any work.

    Raises:
        InputError: a setting is missing or out of range.
    """
    if not settings.reference:
        raise InputError("no reference to compare with; give a reference: an .npz file or a data source")
    if settings.count < 2 or settings.batch_size < 1:
        raise InputError(f"count {settings.count} and batch size {settings.batch_size}; give 2 or more, and 1 or more")
    check_settings(settings)


def default_features(reference: str) -> str:
    """Name of the feature network for a reference: that of its file, or the default of its data source."""
    spec = find_spec(reference)
    return "inception" if spec is None else spec.default_features()


def is_model(source: str) -> bool:
    """Whether a string names a model and not images."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).exists() for name in (CONFIG, "checkpoints", "model_index.json", "transformer"))
    return find_spec(source) is None


def open_source(
    source: "str | Path | BasePipeline",
    settings: SampleSource,
    device: torch.device,
    console: Console,
    size: str = "",
) -> tuple[Dataset, dict[str, Any], Preparation | None]:
    """Open the images to evaluate.

    Args:
        source: a model, or images.
        settings: which images the model generates.
        device: device of the model.
        console: console for notes.
        size: side, or HEIGHTxWIDTH, of the generated images; empty is the size of the model.

    Returns:
        The images, the protocol (everything that determines them), and the preprocessing and division of real images
        that match the model's training; None for existing images.
    """
    check_settings(settings)
    if isinstance(source, BasePipeline) or is_model(str(source)):
        pipe = source if isinstance(source, BasePipeline) else load_for(str(source), settings, device)
        if note := pipe.config.get("note"):
            say(console, note)
        samples, protocol = samples_of(pipe, settings, console, size)
        trained_on = pipe.config.get("recipe", {}).get("data", {})
        trained_on = trained_on | {"held_out": pipe.config.get("held_out", 0.0)}
        preprocessing = {key: trained_on[key] for key in (*PREPROCESSING, *DIVISION) if key in trained_on}
        preprocessing = {key: tuple(v) if isinstance(v, list) else v for key, v in preprocessing.items()}
        if "grey" in trained_on:  # the key of version 0.1
            preprocessing["gray"] = trained_on["grey"]
        if not preprocessing.get("gray"):
            preprocessing["channels"] = samples.channels
        return samples, protocol, Preparation(size="{}x{}".format(*samples.size[-2:]), **preprocessing)
    images = open_images(str(source), None, device)
    if len(images) < 2:
        raise InputError(f"{counted(len(images), 'image')} in {source}; give 2 or more")
    if unused := settings.for_models():
        say(console, f"all {len(images):,} images of {source} are read; without effect on them: {', '.join(unused)}")
    return images, {"pictures": content_identity(str(source)), "count": len(images), "size": list(images.size)}, None


def open_reference(
    source: str,
    preparation: Preparation | None,
    features: Features,
    console: Console,
    device: torch.device,
    keep: bool,
    values: PixelValues = EIGHT_BITS,
) -> Reference:
    """Read a reference from its file, or measure real images, which are preprocessed as in the model's training.

    The features see real images with `values`, those of the images to evaluate.

    Raises:
        InputError: the source does not exist, or does not suit the features.
    """
    spec = parse_source(source)
    if isinstance(spec, SampleNpz):
        return read_reference(Path(source), features, console, keep=keep)
    preparation = preparation if spec.resizable else None
    made = make_reference(source, converted(open_images(source, preparation, device), values), features, console)
    assert made is not None
    return made


def fits(about: dict[str, Any], images: Dataset) -> None:
    """Check that images have the size and the values of the reference, which change a distance more than most settings.

    Raises:
        InputError: they have another size or other values.
    """
    values = PixelValues.read(about.get("values"))
    if "version" in about and values != images.values:  # other programs describe no values
        raise InputError(
            f"images of {described(images.values)} against a reference of {described(values)}; make a reference of "
            f"{about.get('source')} with the same values and shown channels"
        )
    size = about.get("size")
    if size is not None and list(size) != list(images.size):
        own, other = ("x".join(map(str, sides)) for sides in (images.size, size))
        source = f"{about.get('source')} with the size {own}"
        raise InputError(f"images of {own} against a reference of {other}; make a reference of {source}")


def described(values: PixelValues) -> str:
    """Values in words, with the shown channels if they were chosen."""
    return values.summary() + (f", shown: {', '.join(map(str, values.shown))}" if values.shown else "")


def computed(
    metrics: dict[str, Metric], generated: Statistics, reference: Statistics, console: Console
) -> dict[str, float]:
    """Compute all metrics, with a progress bar because some take minutes; returns the results by name."""
    values: dict[str, float] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("computing", total=len(metrics))
        for name, metric in metrics.items():
            progress.update(task, description=f"computing {name}")
            values |= metric.compute(generated, reference)
            progress.advance(task)
    return values


def remarks(count: int, requested: int, features: Features, reference: Reference) -> list[str]:
    """Notes on the limits of a result, such as too few images.

    Args:
        count: number of images that could be read.
        requested: number of images to evaluate.
        features: the feature network.
        reference: the reference.
    """
    notes = [f"{requested - count:,} of {requested:,} images could not be read"] if count < requested else []
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
    if count < (published := PUBLISHED_COUNTS.get(features.name, 0)):
        counts = counted(count, "clip" if features.clips else "image")
        notes.append(f"{counts}; published distances use {published:,} and are smaller")
    return notes


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Hash of a protocol, which depends neither on the path of its files nor on the device."""
    hashed = {key: value for key, value in protocol.items() if key not in ("source", "device")}
    hashed["reference"] = {key: protocol["reference"].get(key) for key in ("size", "preprocessing")}
    return short_hash(hashed)


def home_of(source: "str | Path | BasePipeline") -> Path:
    """Default folder for the results of a source: "evaluations", in the model's folder if there is one."""
    folder = None if isinstance(source, BasePipeline) else Path(source)
    if folder is not None and folder.is_dir() and is_model(str(folder)):
        return folder / "evaluations"
    return Path("evaluations")
