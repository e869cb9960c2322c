"""A score with everything that decided it: the protocol, what it was compared with, the versions and the machine."""

import json
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ditlab.checkpoints import load
from ditlab.config.reader import parse_size
from ditlab.config.sections import Evaluation, Preparation
from ditlab.core.device import describe, pick_device
from ditlab.core.errors import InputError, lookup
from ditlab.core.io import held, replace_text
from ditlab.core.progress import progress_bar
from ditlab.core.version import __version__
from ditlab.core.weights import CONFIG
from ditlab.data import Dataset, find_spec, parse_source
from ditlab.data.parse import SampleNpz
from ditlab.diffusion.samplers.grids import grid_identity
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
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.samples import Samples
from ditlab.report.sheets import contact_sheet, to_pil

PROTOCOL_COUNT = 50_000  # what the field's published distances are of
SHOWN = 40  # pictures of the grid


@dataclass(frozen=True)
class Result:
    """A score, as it stands in result.json."""

    metrics: dict[str, float]
    protocol: dict[str, Any]
    notes: list[str]
    seconds: float
    version: str
    hardware: dict[str, Any]
    folder: Path
    expected: dict[str, Any] | None = None
    """`metric`, `value`, `within` and `met`, where a value was expected."""

    def as_json(self) -> dict[str, Any]:
        """Metrics at the top, then everything else."""
        rest = {key: value for key, value in vars(self).items() if key != "metrics"}
        return {**self.metrics, **rest, "folder": str(self.folder)}

    def table(self) -> Table:
        """The metrics, for the screen."""
        table = Table("metric", "value")
        table.columns[1].justify = "right"
        for name, value in self.metrics.items():
            table.add_row(name, f"{value:,.4f}")
        return table


def evaluate(
    source: str,
    settings: Evaluation,
    console: Console,
    *,
    out: Path | None = None,
    name: str = "evaluation",
    rank: int = 0,
    world: int = 1,
    measured: dict[str, Reference] | None = None,
) -> Result | None:
    """Score a model, or pictures that are already there; the same call again goes on, or gives the same result.

    Args:
        source: what `ditlab.load` takes, a sample file, or a source of pictures.
        settings: the protocol.
        console: where progress is shown.
        out: folder of the result; inside the model's folder if None.
        name: begins the folder's name, the rest is a hash of the protocol.
        rank, world: number of this process, and of all.
        measured: references that were made by earlier calls, which are not made anew; changed in place.

    Returns:
        None if other processes still work.

    Raises:
        InputError: a protocol that does not go together, or one that another process is at.
    """
    check(settings)
    device = pick_device(settings.device)
    features = open_features(
        settings.features or default_features(settings.reference), settings.feature_weights, device
    )
    wanted = {name: lookup(METRICS, name, "metric") for name in settings.metrics or METRICS}
    pictures, protocol, preparation = open_source(source, settings, device, console)
    check_fit(pictures, features)
    compared = any("kept" in metric.of_reference for metric in wanted.values())
    measured = {} if measured is None else measured
    which = repr((settings.reference, preparation, features.name, features.weights, compared))
    if which not in measured:
        measured[which] = open_reference(settings.reference, preparation, features, console, device, compared)
    reference = measured[which]
    fits(reference.about, pictures)
    metrics, notes = choose(wanted, pictures, features, reference, strict=bool(settings.metrics))
    keep = any("kept" in metric.needs for metric in metrics.values())
    protocol |= {
        "features": features.name,
        "feature_weights": features.weights,
        "metrics": list(metrics),
        "reference": reference.about,
        "reference_identity": identity(settings.reference),
        "source": source,
        "device": str(device),
    }
    home = (out or home_of(source)) / f"{name}-{protocol_hash(protocol)}"
    with held(home, rank):
        if (home / "result.json").exists():
            return with_expectation(read_result(home), settings)
        started = time.monotonic()
        gathered = gather(
            pictures, len(pictures), features, console, keep=len(pictures) if keep else 0,
            batch_size=settings.batch_size, folder=home, rank=rank, world=world,
        )  # fmt: skip
        if gathered is None:
            return None
        found = computed(metrics, gathered.statistics, reference.statistics, console)
        notes += remarks(gathered.count, len(pictures), features, reference)
        seconds = round(time.monotonic() - started, 1)
        result = Result(found, protocol, notes, seconds, __version__, describe(str(device)), home)
        if isinstance(pictures, Samples):
            show(pictures, home / "grid.png")
        write_result(result := with_expectation(result, settings))
        forget(home)
        return result


def check(settings: Evaluation) -> None:
    """Refuse what cannot be, before any work."""
    if not settings.reference:
        raise InputError("no reference to compare with; give --reference: an .npz file or a source of pictures")
    if settings.count < 2 or settings.batch_size < 1:
        raise InputError(f"count {settings.count} and batch size {settings.batch_size}; give 2 or more, and 1 or more")
    if settings.within is not None and settings.expect is None:
        raise InputError(f"within {settings.within} of nothing; give --expect too")


def default_features(reference: str) -> str:
    """The features that a reference holds, or in which distances to this data are measured by default."""
    spec = find_spec(reference)
    return "inception" if spec is None else spec.default_features()


def is_model(source: str) -> bool:
    """Whether this is a model rather than pictures."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).exists() for name in (CONFIG, "checkpoints", "model_index.json", "transformer"))
    return find_spec(source) is None


def open_source(
    source: str, settings: Evaluation, device: torch.device, console: Console
) -> tuple[Dataset, dict[str, Any], Preparation | None]:
    """The pictures to be judged, what is known of how they came about, and how others are made like them."""
    if is_model(source):
        pipe = load_for(source, settings, device)
        pictures, protocol = drawn_by(pipe, settings, console)
        trained_on = pipe.config.get("recipe", {}).get("data", {})
        same = {key: trained_on[key] for key in ("fit", "background", "gray") if key in trained_on}
        if "grey" in trained_on:  # the key of earlier versions
            same["gray"] = trained_on["grey"]
        return pictures, protocol, Preparation(size="{}x{}".format(*pictures.size), **same)
    given = open_pictures(source, None, device)
    if len(given) < 2:
        raise InputError(f"{len(given)} pictures in {source}; give 2 or more")
    told = {"pictures": identity(source), "count": len(given), "size": list(given.size)}
    return given, told, None


def load_for(source: str, settings: Evaluation, device: torch.device) -> Pipeline:
    """The model that the protocol is about."""
    told: dict[str, Any] = {"heads": settings.heads} if settings.heads else {}
    if settings.classes is not None:
        told["classes"] = settings.classes
    if settings.latent_size:
        told["size"] = parse_size(settings.latent_size)
    return load(source, weights=settings.weights, device=device, autoencoder=settings.autoencoder or None, **told)


def drawn_by(pipe: Pipeline, settings: Evaluation, console: Console | None = None) -> tuple[Samples, dict[str, Any]]:
    """The pictures of a model, and how they are drawn."""
    default = pipe.defaults
    options: dict[str, Any] = {
        "num_inference_steps": default.steps if settings.steps is None else settings.steps,
        "sampler": settings.sampler or default.sampler,
        "grid": settings.grid or default.grid,
        "guidance_scale": default.guidance if settings.guidance is None else settings.guidance,
        "guidance_interval": settings.interval or default.interval,
        "guidance_channels": settings.guidance_channels,
        "eta": settings.eta,
    }
    if not pipe.net.classes:
        options["guidance_scale"] = 1.0
    pictures = Samples(
        pipe, settings.count, labels=settings.labels, seed=settings.seed, batch_size=settings.batch_size,
        options=options, precision=settings.precision, console=console,
    )  # fmt: skip
    protocol = options | {
        "grid": grid_identity(options["grid"], options["num_inference_steps"]),
        "guidance_interval": list(options["guidance_interval"]),
        "labels": settings.labels,
        "seed": settings.seed,
        "count": settings.count,
        "weights": settings.weights,
        "precision": settings.precision,
        "model": pipe.identity(),
        "size": list(pictures.size),
    }
    return pictures, protocol


def open_reference(
    source: str,
    preparation: Preparation | None,
    features: Features,
    console: Console,
    device: torch.device,
    keep: bool,
) -> Reference:
    """A reference from its file, or made now; one's own pictures are prepared as those that the model learnt from."""
    spec = parse_source(source)
    if isinstance(spec, SampleNpz):
        return read_reference(Path(source), features, console, keep=keep)
    preparation = preparation if spec.resizable else None
    made = make_reference(source, open_pictures(source, preparation, device), features, console)
    assert made is not None
    return made


def fits(about: dict[str, Any], pictures: Dataset) -> None:
    """Refuse pictures of another size than a reference says of itself: resizing changes a distance more than most."""
    size = about.get("size")
    if size is not None and list(size) != list(pictures.size):
        raise InputError(
            f"pictures of {pictures.size[0]}x{pictures.size[1]} against a reference of {size[0]}x{size[1]}; "
            f"make one with: ditlab reference {about.get('source')} --size "
            f"{pictures.size[0]}x{pictures.size[1]}"
        )


def blank(features: Features, pictures: Dataset) -> Extracted:
    """The features of one black picture."""
    return features(torch.zeros(1, pictures.channels, *pictures.size, dtype=torch.uint8))


def given_by(features: Features, pictures: Dataset, one: Extracted | None = None) -> dict[str, bool]:
    """What metrics can have of such pictures in these features; `one` is what the features are of one of them."""
    one = one or blank(features, pictures)
    return {
        "kept": True,
        "spatial": one.spatial is not None,
        "scores": one.probabilities is not None,
        "accuracy": features.classes is not None and features.classes == pictures.classes,
    }


def choose(
    wanted: dict[str, Metric], pictures: Dataset, features: Features, reference: Reference, *, strict: bool
) -> tuple[dict[str, Metric], list[str]]:
    """The metrics that can be had, and what of the reference others lack; found out before any picture is drawn.

    Raises:
        InputError: a metric that was asked for by name cannot be had.
    """
    one = blank(features, pictures)
    for mine, theirs in ((one.features, reference.statistics.features), (one.spatial, reference.statistics.spatial)):
        if mine is not None and theirs is not None and mine.shape[1] != len(theirs.mean):
            raise InputError(
                f"the reference has {len(theirs.mean)} features where {features.name} has {mine.shape[1]}; "
                "make one with these features"
            )
    there = given_by(features, pictures, one)
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
    found: dict[str, float] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("computing", total=len(metrics))
        for name, metric in metrics.items():
            progress.update(task, description=f"computing {name}")
            found |= metric.compute(generated, reference)
            progress.advance(task)
    return found


def remarks(count: int, asked: int, features: Features, reference: Reference) -> list[str]:
    """What a reader of the number must know."""
    notes = [f"{asked - count:,} of {asked:,} pictures could not be read"] if count < asked else []
    real = reference.statistics.features.count or reference.about.get("count")
    if real is not None and real <= features.dimension:
        notes.append(
            f"the reference's {real:,} pictures do not determine a covariance of {features.dimension:,} features"
        )
    if count <= features.dimension:
        notes.append(
            f"{count:,} pictures do not determine a covariance of {features.dimension:,} features; "
            "the distance is too large"
        )
    if features.name == "inception" and not features.weights.startswith(PUBLISHED):
        notes.append(
            f"the Inception weights ({features.weights}) are not the published file ({PUBLISHED}...); unless they are "
            "a copy of it in another format, the distances are comparable with nothing else"
        )
    if features.name in ("inception", "dinov2") and count < PROTOCOL_COUNT:
        notes.append(f"{count:,} pictures; published distances are of {PROTOCOL_COUNT:,} and are smaller")
    return notes


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Identity of a protocol, wherever its files lie and whatever it runs on."""
    own = {key: value for key, value in protocol.items() if key not in ("source", "device")}
    own["reference"] = {key: protocol["reference"].get(key) for key in ("size", "preprocessing")}
    return short_hash(own)


def home_of(source: str) -> Path:
    """Where results of a source are kept."""
    return Path(source) / "evaluations" if Path(source).is_dir() and is_model(source) else Path("evaluations")


def show(pictures: Samples, file: Path) -> None:
    """The first pictures, ten in a row."""
    images = to_pil(pictures.fetch(torch.arange(min(SHOWN, len(pictures)))).x)
    contact_sheet([images[i : i + 10] for i in range(0, len(images), 10)]).save(file)


def write_result(result: Result) -> None:
    """Write result.json."""
    result.folder.mkdir(parents=True, exist_ok=True)
    replace_text(result.folder / "result.json", json.dumps(result.as_json(), indent=2) + "\n")


def read_result(folder: Path) -> Result:
    """The result that is already there."""
    file = folder / "result.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        own = {each.name: found.pop(each.name) for each in fields(Result) if each.name != "metrics"}
    except (ValueError, KeyError) as error:
        raise InputError(f"{file} is damaged ({error!r}); remove it and give the command again") from None
    return Result(found, **own | {"folder": folder, "expected": None})


def with_expectation(result: Result, settings: Evaluation) -> Result:
    """The result, held against what was expected of its first metric."""
    if settings.expect is None:
        return result
    name, value = next(iter(result.metrics.items()))
    within = 0.02 * abs(settings.expect) if settings.within is None else settings.within
    met = abs(value - settings.expect) <= within
    expected = {"metric": name, "value": settings.expect, "within": within, "met": met}
    return replace(result, expected=expected)
