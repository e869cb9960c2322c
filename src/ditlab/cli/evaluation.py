"""Commands for evaluation."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.terminal import Json, app, fail, print_json, say, screen, show
from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.fields import Amount, Natural, Positive, Share
from ditlab.config.reader import find_recipe
from ditlab.config.sections import ImageSettings, Preparation
from ditlab.config.values import File, Folder, Location
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError
from ditlab.core.terminal import make_console
from ditlab.core.units import counted

if TYPE_CHECKING:
    from ditlab.evaluation.memorization import Memorization
    from ditlab.evaluation.results import Result

UNFINISHED = "this process has finished its part; other processes are still running"


@dataclass(frozen=True)
class Measuring:
    """How features of real images are computed."""

    features: str | None = None
    """inception, dinov2, digits, glyphs or own, and for clips i3d or moving-digits (default: digits, glyphs or
    moving-digits for these data sets, otherwise inception)."""
    feature_weights: Location = ""
    """File, folder or hub id of the weights of the feature network."""
    count: Positive | None = None
    """Use the first N images only."""
    keep: Natural = 10_000
    """Number of feature vectors to store for precision, recall and the kernel distance."""
    with_images: Annotated[bool, Parameter(negative="")] = False
    """Store the images of these features too, so that ADM's evaluator can read the file."""
    batch_size: Positive = 64
    """Images processed at a time."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def unread(skipped: Mapping[str, str], out: Path) -> str:
    """The images that could not be read for a reference; empty if there are none."""
    return f"; {counted(len(skipped), 'image')} could not be read: {out.with_suffix('.skipped.csv')}" if skipped else ""


@app.command(group="Evaluate")
def reference(
    source: Location,
    /,
    *,
    out: File,
    settings: Annotated[Measuring | None, Parameter(name="*")] = None,
    preprocessing: Annotated[Preparation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Compute the statistics of real images, as a reference for `evaluate`, and write them to an .npz file.

    Run the same command again to resume. Under torchrun the images are distributed over the processes.

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
        source, real, network, out, screen, settings=preprocessing, count=settings.count, keep=settings.keep,
        batch_size=settings.batch_size, with_images=settings.with_images, rank=rank, world=world,
    )  # fmt: skip
    shown = "" if done is None else f"{counted(done.about['count'], 'image')} in the features {network.name}: {out}"
    report(None if done is None else done.about, shown + unread(real.skipped, out), json)


@app.command(group="Evaluate")
def features(
    source: Location,
    /,
    *,
    out: File,
    minutes: Amount = 2.0,
    seed: Natural = 0,
    preprocessing: Annotated[Preparation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Train features on your images for `evaluate` and `memorization`: a small classifier of their classes.

    Use them with --features own --feature-weights FILE. Without classes, the network learns to recognize rotations.

    Parameters
    ----------
    source
        A folder of images, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    out
        The file to write; it ends in .safetensors.
    minutes
        Longest time of training, after the images are read.
    seed
        Decides initial weights, order and shifts.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset, parse_source
    from ditlab.evaluation.features.own import train_features

    images = preprocessing or Preparation()
    held_out = parse_source(source, images).held_out()
    unseen = None if held_out is None else open_dataset(held_out.text, replace(images, split=""))
    known = open_dataset(source, images, out.with_suffix(".skipped.csv"))
    done = train_features(known, out, screen, minutes=minutes, seed=seed, held_out=unseen).training
    report(dataclasses.asdict(done), "\n".join([*done.lines(), f"features: {out}"]), json)


@app.command(group="Evaluate")
def evaluate(
    source: Location,
    /,
    *,
    recipe: Location | None = None,
    out: Folder | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Evaluate a model, or existing images, and print the result as JSON. Run the same command again to resume.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, a hub id; or images: a folder, a sample file (.npz), a data set.
    recipe
        Evaluation protocol: a .toml file, or a protocol of ditlab such as dit-xl2-256. Options take precedence.
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
    """Print the metrics; exit with code 1 if the expected value is not met."""
    if not json:
        screen.print(result.table())
        for note in result.notes:
            say(note)
        say(f"results are in {result.folder}")
    print_json(result.as_json())
    expected = result.expected
    if expected is not None and not expected["met"]:
        value = result.metrics[expected["metric"]]
        fail(f"{expected['metric']} is {value:.4f}, not {expected['value']} within {expected['within']:.4g}", 1)


def report(values: dict[str, Any] | None, line: str, json: bool) -> None:
    """Print a result as JSON or as a line; None means that other processes have not finished."""
    if values is None:
        say(UNFINISHED)
    elif json:
        print_json(values)
    else:
        say(line)


@dataclass(frozen=True)
class Axes:
    """The values of settings that a sweep combines."""

    try_guidance: Annotated[list[Amount] | None, Parameter(negative="")] = None
    """Guidance scales to try."""
    try_steps: Annotated[list[Positive] | None, Parameter(negative="")] = None
    """Numbers of steps to try."""
    try_sampler: Annotated[list[str] | None, Parameter(negative="")] = None
    """Samplers to try."""
    try_guidance_interval: Annotated[list[str] | None, Parameter(negative="")] = None
    """Guidance intervals to try, such as 0.1-0.8."""
    try_weights: Annotated[list[Literal["ema", "model"]] | None, Parameter(negative="")] = None
    """Weights to try: ema, model, or both."""

    def given(self) -> dict[str, Any]:
        """The settings with values to try."""
        values = {key.removeprefix("try_"): value for key, value in vars(self).items() if value}
        if intervals := self.try_guidance_interval:
            values["guidance_interval"] = [parse_interval(text) for text in intervals]
        return values


@app.command(group="Evaluate")
def sweep(
    source: Location,
    /,
    *,
    recipe: Location | None = None,
    axes: Annotated[Axes | None, Parameter(name="*")] = None,
    repeats: Positive = 3,
    out: Folder | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Evaluate a model with every combination of settings; prints a table and the best with its standard error.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, or a hub id.
    recipe
        Evaluation protocol: a .toml file, or a protocol of ditlab. Options take precedence.
    repeats
        Number of seeds for each combination, from which the standard error is computed.
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
    make_console().print(done.table())
    show(done.verdict())
    say(f"curve: {done.plot}")


@app.command(group="Evaluate")
def compare(
    a: Location,
    b: Location,
    /,
    *,
    recipe: Location | None = None,
    repeats: Positive = 5,
    publish: File | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Compare two models or two sets of images under one protocol, in pairs; prints which one is better.

    Parameters
    ----------
    a
        A model or run folder; a folder with one run per training seed; or images: a folder, a sample file (.npz).
    b
        What is compared with it, of the same kind.
    recipe
        Evaluation protocol: a .toml file, or a protocol of ditlab. Options take precedence.
    repeats
        Number of sets of samples, or of parts of the images, from which the error is computed.
    publish
        Write a self-contained HTML page with the verdicts, all pairs and the first images.
    json
        Print one JSON object.
    """
    if process_place()[1] > 1:
        raise InputError("a comparison runs as one process; start it without torchrun")
    from ditlab.study import comparison, comparison_page

    contest = comparison.compare_sides(a, b, settings or Evaluation(), screen, repeats=repeats)
    if publish is not None:
        comparison_page.publish(contest, publish)
        say(f"page: {publish}")
    if json:
        print_json(contest.as_json())
    else:
        show("\n".join(comparison_page.lines(contest)))


@app.command(group="Evaluate")
def memorization(
    source: Location,
    /,
    *,
    training: Location,
    held_out: Location,
    recipe: Location | None = None,
    out: File = Path("memorization.png"),
    held_out_share: Share | None = None,
    preprocessing: Annotated[ImageSettings | None, Parameter(name="*")] = None,
    settings: Annotated[Copying | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Test whether a model copies its training images, compared with held-out images.

    Run the same command again to resume. Under torchrun the images are distributed over the processes.

    Parameters
    ----------
    source
        A model, or generated images (.npz or folder).
    training
        Data source that the model was trained on.
    held_out
        Data source of real images that the model was not trained on.
    recipe
        Evaluation protocol: a .toml file, or a protocol of ditlab. Options take precedence.
    out
        The image to write, with the closest samples, their nearest training images, and the distances.
    held_out_share
        Share with which the training images were divided, for parts such as photos:val (default: that of the model).
    json
        Print one JSON object.
    """
    done = run_memorization(source, training, held_out, out, preprocessing, settings or Copying(), held_out_share)
    values = None if done is None else dataclasses.asdict(done)
    report(values, "" if done is None else f"{done.verdict()}\nclosest samples: {out}", json)


def run_memorization(
    source: str, training: str, held_out: str, out: Path, images: ImageSettings | None, settings: Copying,
    share: float | None,
) -> "Memorization | None":  # fmt: skip
    """Open the three sets of images and compare them."""
    from ditlab.data.parse import as_divided, content_identity, training_part
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.memorization import memorization
    from ditlab.evaluation.protocols import default_features, open_source
    from ditlab.evaluation.references import open_images

    device = pick_device(settings.device)
    features = open_features(settings.features or default_features(training), settings.feature_weights, device)
    samples, protocol, trained = open_source(source, settings, device, screen, images.size if images else "")
    trained = trained or Preparation()
    trained = replace(trained, held_out=trained.held_out if share is None else share)
    read = (images or ImageSettings()).divided(0.0)
    sets = {
        "training": (training, as_divided(training_part(training), read, trained)),
        "held_out": (held_out, as_divided(held_out, read, trained)),
    }
    known, unseen = (open_images(text, preparation, device) for text, preparation in sets.values())
    protocol |= {name: content_identity(text, preparation) for name, (text, preparation) in sets.items()}
    rank, world = process_place()
    return memorization(
        samples, known, unseen, features, out, screen, protocol=protocol, batch_size=settings.batch_size,
        rank=rank, world=world,
    )  # fmt: skip


def parse_interval(text: str) -> tuple[float, float]:
    """Parse "0.1-0.8" as (0.1, 0.8)."""
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f'interval "{text}"; give two times such as 0.1-0.8') from None
