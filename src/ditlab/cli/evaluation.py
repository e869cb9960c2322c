"""Commands that score."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, fail, print_json, say, screen
from ditlab.config.reader import find_recipe
from ditlab.config.sections import Evaluation, Preparation, Whole
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError


@app.command(group="Score")
def reference(
    source: str,
    /,
    *,
    out: Path,
    features: str | None = None,
    feature_weights: str = "",
    count: Whole | None = None,
    keep: Whole = 10_000,
    with_pictures: Annotated[bool, Parameter(negative="")] = False,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    batch_size: Whole = 64,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Measure real pictures once, for `evaluate` to compare with; written as an .npz file.

    The same command again goes on where it stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], a latent cache, a built-in data set, or an .npz file.
    out
        The file.
    features
        inception, dinov2, digits or glyphs; left out, those that suit the source.
    feature_weights
        File, folder or hub id of their weights.
    count
        Use the first so many pictures only.
    keep
        Features kept for precision, recall and the kernel distance.
    with_pictures
        Keep the pictures that they are of too, so that ADM's evaluator reads the file.
    pictures
        How they are read and made equally large.
    batch_size
        Pictures measured at a time.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.protocols import default_features
    from ditlab.evaluation.references import open_pictures, write_reference

    if out.suffix != ".npz":
        raise InputError(f"{out}; give a file that ends in .npz")
    where = pick_device(device)
    network = open_features(features or default_features(source), feature_weights, where)
    real = open_pictures(source, pictures, where, out.with_suffix(".skipped.csv"))
    rank, world = process_place()
    done = write_reference(
        source, real, network, out, screen, count=count, keep=keep, batch_size=batch_size,
        with_pictures=with_pictures, rank=rank, world=world,
    )  # fmt: skip
    if done is None:
        say("done with this process's share; others still work")
        return
    if json:
        print_json(done.about)
        return
    say(f"{done.about['count']:,} pictures in the features {network.name}: {out}")


@app.command(group="Score")
def evaluate(
    source: str,
    /,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score a model, or pictures that are there; prints the result as JSON. The same command again goes on.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, a hub id; or pictures: a folder, a sample file (.npz), a data set.
    recipe
        A protocol that comes with ditlab, such as dit-xl2-256, or a .toml file.
    out
        Folder of the results; inside the model's folder if left out.
    settings
        The protocol.
    json
        No table on the screen.
    """
    from ditlab.evaluation.protocols import evaluate

    rank, world = process_place()
    settings = settings or Evaluation()
    name = find_recipe(recipe, "evaluation").stem if recipe else "evaluation"
    result = evaluate(source, settings, screen, out=out, name=name, rank=rank, world=world)
    if result is None:
        say("done with this process's share; others still work")
        return
    if not json:
        screen.print(result.table())
        for note in result.notes:
            say(note)
        say(f"all of it is in {result.folder}")
    print_json(result.as_json())
    if result.expected is not None and not result.expected["met"]:
        wanted = result.expected
        fail(
            f"{wanted['metric']} is {result.metrics[wanted['metric']]:.4f}, "
            f"not {wanted['value']} within {wanted['within']:.4g}",
            1,
        )


@app.command(group="Score")
def sweep(
    source: str,
    /,
    *,
    recipe: str | None = None,
    try_guidance: Annotated[list[float] | None, Parameter(negative="")] = None,
    try_steps: Annotated[list[Whole] | None, Parameter(negative="")] = None,
    try_sampler: Annotated[list[str] | None, Parameter(negative="")] = None,
    try_interval: Annotated[list[str] | None, Parameter(negative="")] = None,
    try_weights: Annotated[list[Literal["ema", "model"]] | None, Parameter(negative="")] = None,
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
        A protocol that comes with ditlab, or a .toml file.
    try_guidance
        Scales of guidance.
    try_steps
        Numbers of steps.
    try_sampler
        Samplers.
    try_interval
        Intervals of guidance, such as 0.1-0.8.
    try_weights
        ema, model, or both.
    repeats
        Seeds of each combination; the error comes from them.
    out
        Folder of the results; inside the model's folder if left out.
    settings
        What all have in common.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.sweeps import sweep

    if process_place()[1] > 1:
        raise InputError("a sweep runs as one process; start it without torchrun")
    axes: dict[str, Any] = {
        "guidance": try_guidance,
        "interval": [parse_interval(text) for text in try_interval or []],
        "steps": try_steps,
        "sampler": try_sampler,
        "weights": try_weights,
    }
    name = f"sweep-{find_recipe(recipe, 'evaluation').stem}" if recipe else "sweep"
    given = {key: values for key, values in axes.items() if values}
    done = sweep(source, settings or Evaluation(), given, screen, repeats=repeats, out=out, name=name)
    if json:
        print_json(done.as_json())
        return
    Console().print(done.table())
    print(done.verdict())
    say(f"curve: {done.plot}")


@app.command(group="Score")
def memorisation(
    source: str,
    /,
    *,
    training: str,
    held_out: str,
    recipe: str | None = None,
    out: Path = Path("memorisation.png"),
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Does a model copy its training pictures? Its nearest ones as a picture, and a number against unseen ones.

    The same command again goes on where it stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A model, or pictures drawn before (.npz or folder).
    training
        What the model was trained on.
    held_out
        Real pictures that it never saw.
    recipe
        A protocol that comes with ditlab, or a .toml file.
    out
        The picture: closest samples, each beside its nearest training pictures, distances at the left.
    pictures
        How training and held-out pictures are made equally large.
    settings
        How samples are drawn; the features.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.memorization import memorisation
    from ditlab.evaluation.protocols import default_features, open_source
    from ditlab.evaluation.references import identity, open_pictures

    settings = settings or Evaluation()
    device = pick_device(settings.device)
    features = open_features(settings.features or default_features(training), settings.feature_weights, device)
    samples, protocol, _ = open_source(source, settings, device, screen)
    known, unseen = (open_pictures(each, pictures, device) for each in (training, held_out))
    protocol |= {"training": identity(training), "held_out": identity(held_out)}
    rank, world = process_place()
    done = memorisation(
        samples, known, unseen, features, out, screen, protocol=protocol, batch_size=settings.batch_size,
        rank=rank, world=world,
    )  # fmt: skip
    if done is None:
        say("done with this process's share; others still work")
        return
    if json:
        print_json(dataclasses.asdict(done))
        return
    print(done.verdict())
    say(f"look at {done.picture}")


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.1-0.8" -> (0.1, 0.8)."""
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f'interval "{text}"; give two times such as 0.1-0.8') from None
