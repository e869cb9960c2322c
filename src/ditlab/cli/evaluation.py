"""Commands that evaluate."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, fail, print_json, say, screen
from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.reader import find_recipe
from ditlab.config.sections import Preparation
from ditlab.config.values import Whole
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.evaluation.memorization import Memorization
    from ditlab.evaluation.results import Result

UNFINISHED = "this process is done with its share; others are still at work"


@dataclass(frozen=True)
class Measuring:
    """How real images are measured."""

    features: str | None = None
    """inception, dinov2, digits or glyphs (default: what suits the source)."""
    feature_weights: str = ""
    """File, folder or hub id of the weights of the features."""
    count: Whole | None = None
    """Use the first N images only."""
    keep: Whole = 10_000
    """Number of features that are kept for precision, recall and the kernel distance."""
    with_images: Annotated[bool, Parameter(negative="")] = False
    """Keep the images of these features too, so that ADM's evaluator reads the file."""
    batch_size: Whole = 64
    """Images measured at a time."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@app.command(group="Evaluate")
def reference(
    source: str,
    /,
    *,
    out: Path,
    settings: Annotated[Measuring | None, Parameter(name="*")] = None,
    preprocessing: Annotated[Preparation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Measure real images once, as a reference for `evaluate`; writes an .npz file.

    The same command again continues where it was stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A folder of images, tar shards, hf:NAME[:SPLIT], a latent cache, a built-in data set, or an .npz file.
    out
        The file to write.
    json
        Print one JSON object.
    """
    settings = settings or Measuring()
    if out.suffix != ".npz":
        raise InputError(f"{out}; give a file that ends in .npz")
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.protocols import default_features
    from ditlab.evaluation.references import open_images, write_reference

    device = pick_device(settings.device)
    network = open_features(settings.features or default_features(source), settings.feature_weights, device)
    real = open_images(source, preprocessing, device, out.with_suffix(".skipped.csv"))
    rank, world = process_place()
    done = write_reference(
        source, real, network, out, screen, count=settings.count, keep=settings.keep, batch_size=settings.batch_size,
        with_images=settings.with_images, rank=rank, world=world,
    )  # fmt: skip
    shown = "" if done is None else f"{done.about['count']:,} images in the features {network.name}: {out}"
    report(None if done is None else done.about, shown, json)


@app.command(group="Evaluate")
def evaluate(
    source: str,
    /,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score a model, or existing images; prints the result as JSON. The same command again continues.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, a hub id; or images: a folder, a sample file (.npz), a data set.
    recipe
        A protocol that comes with ditlab, such as dit-xl2-256, or a .toml file. Options take precedence.
    out
        Folder of the results (default: the model's folder).
    json
        Print only the JSON object.
    """
    from ditlab.evaluation.protocols import evaluate

    rank, world = process_place()
    name = find_recipe(recipe, "evaluation").stem if recipe else "evaluation"
    result = evaluate(source, settings, screen, out=out, name=name, rank=rank, world=world)
    if result is None:
        say(UNFINISHED)
    else:
        report_result(result, json)


def report_result(result: "Result", json: bool) -> None:
    """Print the metrics; exit code 1 if the expected value was not met."""
    if not json:
        screen.print(result.table())
        for note in result.notes:
            say(note)
        say(f"results are in {result.folder}")
    print_json(result.as_json())
    wanted = result.expected
    if wanted is not None and not wanted["met"]:
        value = result.metrics[wanted["metric"]]
        fail(f"{wanted['metric']} is {value:.4f}, not {wanted['value']} within {wanted['within']:.4g}", 1)


def report(values: dict[str, Any] | None, line: str, json: bool) -> None:
    """Print a result as JSON or as a line; None is the result of a process that is done with its share alone."""
    if values is None:
        say(UNFINISHED)
    elif json:
        print_json(values)
    else:
        say(line)


@dataclass(frozen=True)
class Axes:
    """The values of each setting that are combined."""

    try_guidance: Annotated[list[float] | None, Parameter(negative="")] = None
    """Guidance scales."""
    try_steps: Annotated[list[Whole] | None, Parameter(negative="")] = None
    """Numbers of steps."""
    try_sampler: Annotated[list[str] | None, Parameter(negative="")] = None
    """Samplers."""
    try_guidance_interval: Annotated[list[str] | None, Parameter(negative="")] = None
    """Guidance intervals, such as 0.1-0.8."""
    try_weights: Annotated[list[Literal["ema", "model"]] | None, Parameter(negative="")] = None
    """ema, model, or both."""

    def given(self) -> dict[str, Any]:
        """The settings that have values."""
        values = {key.removeprefix("try_"): value for key, value in vars(self).items() if value}
        if intervals := self.try_guidance_interval:
            values["guidance_interval"] = [parse_interval(text) for text in intervals]
        return values


@app.command(group="Evaluate")
def sweep(
    source: str,
    /,
    *,
    recipe: str | None = None,
    axes: Annotated[Axes | None, Parameter(name="*")] = None,
    repeats: Whole = 3,
    out: Path | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score a model under every combination of settings: a table, a curve, and the best with its error.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, or a hub id.
    recipe
        A protocol that comes with ditlab, or a .toml file. Options take precedence.
    repeats
        Number of seeds of each combination; the error comes from them.
    out
        Folder of the results (default: the model's folder).
    json
        Print one JSON object.
    """
    if process_place()[1] > 1:
        raise InputError("a sweep runs as one process; start it without torchrun")
    from ditlab.evaluation.sweeps import sweep

    name = f"sweep-{find_recipe(recipe, 'evaluation').stem}" if recipe else "sweep"
    values = (axes or Axes()).given()
    done = sweep(source, settings or Evaluation(), values, screen, repeats=repeats, out=out, name=name)
    if json:
        print_json(done.as_json())
        return
    Console().print(done.table())
    print(done.verdict())
    say(f"curve: {done.plot}")


@app.command(group="Evaluate")
def memorization(
    source: str,
    /,
    *,
    training: str,
    held_out: str,
    recipe: str | None = None,
    out: Path = Path("memorization.png"),
    preprocessing: Annotated[Preparation | None, Parameter(name="*")] = None,
    settings: Annotated[Copying | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Test whether a model copies its training images, compared with held-out images.

    The same command again continues where it was stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A model, or generated images (.npz or folder).
    training
        Data source that the model was trained on.
    held_out
        Data source of real images that the model never saw.
    recipe
        A protocol that comes with ditlab, or a .toml file. Options take precedence.
    out
        The image to write: the closest samples, each beside its nearest training images, with distances.
    json
        Print one JSON object.
    """
    done = run_memorization(source, training, held_out, out, preprocessing, settings or Copying())
    values = None if done is None else dataclasses.asdict(done)
    report(values, "" if done is None else f"{done.verdict()}\nclosest samples: {out}", json)


def run_memorization(
    source: str, training: str, held_out: str, out: Path, preprocessing: Preparation | None, settings: Copying
) -> "Memorization | None":
    """Open the three sets of images and compare them."""
    from ditlab.data.parse import content_identity
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.memorization import memorization
    from ditlab.evaluation.protocols import default_features, open_source
    from ditlab.evaluation.references import open_images

    device = pick_device(settings.device)
    features = open_features(settings.features or default_features(training), settings.feature_weights, device)
    samples, protocol, _ = open_source(source, settings, device, screen)
    known, unseen = (open_images(each, preprocessing, device) for each in (training, held_out))
    protocol |= {"training": content_identity(training), "held_out": content_identity(held_out)}
    rank, world = process_place()
    return memorization(
        samples, known, unseen, features, out, screen, protocol=protocol, batch_size=settings.batch_size,
        rank=rank, world=world,
    )  # fmt: skip


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.1-0.8" -> (0.1, 0.8)."""
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f'interval "{text}"; give two times such as 0.1-0.8') from None
