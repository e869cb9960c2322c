"""Commands for training: a model, a study, and the demonstration."""

import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ditlab.cli.choosing import Length, Start, given_tables, train_without_recipe, with_settings
from ditlab.cli.prompts import sampling
from ditlab.cli.recipes import is_data
from ditlab.cli.sampling import parse_seeds
from ditlab.cli.terminal import Json, app, command, fail, print_json, say, screen, show
from ditlab.config.fields import Amount, Natural, Positive
from ditlab.config.reader import (
    find_recipe,
    parse_recipe,
    parse_sides,
    read_toml,
    recipe_arguments,
    recipe_of,
    shipped_recipes,
)
from ditlab.config.values import File, Folder, Location
from ditlab.core.device import process_place
from ditlab.core.terminal import make_console
from ditlab.core.units import counted

if TYPE_CHECKING:
    from ditlab.config.sections import Recipe
    from ditlab.config.sections import Recipe as RecipeArguments
    from ditlab.profiling.plan import Plan
    from ditlab.study.demo import Demo
    from ditlab.study.recipe import Study
    from ditlab.study.run import Findings
    from ditlab.study.text_demo import TextDemo
else:
    RecipeArguments = recipe_arguments()  # with a field for each option of the networks

Name = Annotated[Location, Parameter(help=f"A .toml file, or a shipped recipe: {', '.join(shipped_recipes())}.")]
Subject = Annotated[
    Location,
    Parameter(
        help="A folder of images (or any other data source), for which a recipe is chosen; or a recipe: a .toml "
        f"file, or one of {', '.join(shipped_recipes())}."
    ),
]
StudyName = Annotated[
    Location, Parameter(help=f"A .toml file, or a shipped study: {', '.join(shipped_recipes('studies'))}.")
]
Settings = Annotated[RecipeArguments | None, Parameter(name="*", help="Any key of the recipe.")]
Flag = Annotated[bool, Parameter(negative="")]


@app.command(group="Train")
def train(
    recipe: Subject,
    /,
    *,
    out: Folder | None = None,
    length: Annotated[Length | None, Parameter(name="*")] = None,
    start: Annotated[Start | None, Parameter(name="*")] = None,
    allow_changes: Flag = False,
    yes: Flag = False,
    given: Annotated[tuple[str, ...], Parameter(show=False)] = (),
    settings: Settings = None,
) -> None:
    """Train a model with a recipe, or on images for which a recipe is chosen. Run the same command again to resume.

    Parameters
    ----------
    out
        The run folder (default: runs/NAME-OF-THE-RECIPE, or runs/NAME-OF-THE-DATA).
    allow_changes
        Resume with changed images or settings (learning rate, batch, time distribution, EMA).
    yes
        Without a recipe: also start a run that is too short to succeed.
    """
    end, tables = (length or Length()).settings(), (start or Start()).tables()
    if is_data(recipe):
        train_without_recipe(recipe, out, end, given_tables(settings, given, tables), yes=yes)
        return
    from ditlab.training.api import run_folder, train_only
    from ditlab.training.objectives import OBJECTIVES

    out = out or run_folder(recipe)
    chosen = with_settings(recipe_of(settings, recipe), tables, {"train": end})
    train_only(chosen, out, changes=allow_changes, console=screen)
    if process_place()[0] == 0:
        follow_up = OBJECTIVES.find(chosen.train.objective).follow_up
        say(f"model and previews are in {out}; try: {sampling(out, follow_up)}")


@app.command(group="Train")
def config(recipe: Name, /, *, settings: Settings = None, json: Json = False) -> None:
    """Print a recipe with the value of every setting, as TOML; the network has defaults for the others.

    Parameters
    ----------
    json
        Print one JSON object.
    """
    from ditlab.config.reader import to_tables, to_toml

    find_recipe(recipe)
    tables = to_tables(recipe_of(settings, recipe))
    if json:
        print_json(tables)
    else:
        show(to_toml(tables).rstrip())


@app.command(group="Train")
def plan(
    recipe: Name,
    /,
    *,
    device: str = "",
    devices: Positive = 1,
    size: str | None = None,
    channels: Positive = 4,
    classes: Natural = 1000,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Predict the memory, speed, total time and largest batch of a training run.

    Parameters
    ----------
    device
        b200, h200, h100, a100, a100-40, l40s, a10, rtx5090, rtx4090 or rtx3090 (default: this machine).
    devices
        Number of devices.
    size
        Without the data: side, HEIGHTxWIDTH, or FRAMESxHEIGHTxWIDTH of the network's input, such as 32.
    channels
        With --size: channels of the input.
    classes
        With --size: number of classes.
    json
        Print one JSON object.
    """
    from ditlab.profiling import plan as planning

    find_recipe(recipe)
    shape = None if size is None else (channels, parse_sides(size), classes)
    prediction = planning.plan(recipe_of(settings, recipe), device, devices, shape=shape)
    if json:
        print_json(asdict(prediction))
    else:
        print_plan(prediction)


def print_plan(prediction: "Plan") -> None:
    """Print a plan as a table and lines."""
    from ditlab.profiling import plan as planning

    out = make_console()
    out.print(planning.table(prediction))
    for line in planning.lines(prediction):
        out.print(line, highlight=False)


@app.command(group="Train")
def watch(run: File, /, *, once: Flag = False, seconds: Amount = 2.0) -> None:
    """Show the curves and the newest preview of a run in the terminal, until Ctrl-C or the end of the run.

    Parameters
    ----------
    run
        The run folder.
    once
        Show the current state and exit.
    seconds
        Seconds between two updates.
    """
    from rich.live import Live

    from ditlab.report.run import plain, progress, require_run, view

    require_run(run)
    recipe = parse_recipe(read_toml(run / "recipe.toml"), source=str(run))
    length, out = recipe.train, make_console()
    if not out.is_terminal:
        show("\n".join(plain(run, length)))
    elif once:
        out.print(view(run, length))
    else:
        with suppress(KeyboardInterrupt), Live(view(run, length), console=out, auto_refresh=False) as live:
            while progress(run, length).state in ("running", "unknown"):
                time.sleep(seconds)
                live.update(view(run, length), refresh=True)
    if progress(run, length).state == "stopped":
        show(f"to resume: {resuming(run, recipe)}")


def resuming(run: Path, recipe: "Recipe") -> str:
    """How a stopped run is resumed."""
    from ditlab.data.parse import IN_PYTHON

    if recipe.data.source.startswith(IN_PYTHON):
        return "call ditlab.train again with the same data"
    return f"{command()} train {quote(str(run / 'recipe.toml'))} --out {quote(str(run))}"


@app.command(group="Train")
def study(
    recipe: StudyName,
    /,
    *,
    out: Folder | None = None,
    seeds: Annotated[tuple[str, ...] | None, Parameter(negative="")] = None,
    dry_run: Flag = False,
    json: Json = False,
) -> None:
    """Train a grid of models with one budget, evaluate them, and report which claims hold.

    Run the same command again to resume. If you start it several times in parallel, the runs are distributed.

    Parameters
    ----------
    out
        Folder of the study (default: runs/studies/NAME-OF-THE-RECIPE, with --seeds followed by the seeds).
    seeds
        Training seeds in place of those of the recipe, such as 3-5, to see whether its verdicts hold again.
    dry_run
        Print the grid with predicted time and memory, and exit.
    json
        Print one JSON object.
    """
    from ditlab.study.recipe import read_study
    from ditlab.study.run import run_study

    plan = read_study(recipe, None if seeds is None else tuple(parse_seeds(list(seeds))))
    if dry_run:
        show_grid(plan, json)
        return
    out = out or Path("runs") / "studies" / "-".join([plan.name, *(seeds or ())])
    done = run_study(plan, out, screen)
    if done is None:
        say("other processes are still running; the last one writes the report")
    else:
        show_findings(done, out, json)


def show_findings(done: "Findings", out: Path, json: bool) -> None:
    """Write the reports of a finished study, and print its verdicts."""
    from ditlab.study.report import write_reports
    from ditlab.study.run import as_json, summary

    report = write_reports(done, out)
    if json:
        print_json(as_json(done) | {"report": report})
    else:
        show("\n".join(summary(done)))
        say(f"report: {report}")
    if done.failures:
        fail(f"{counted(len(done.failures), 'run')} failed; run the same command again", 1)


def show_grid(study: "Study", json: bool) -> None:
    """Print the grid of a study, without training."""
    from ditlab.study import grid

    parts = grid.lay_out(study, {}, screen, timed=True)
    if json:
        print_json(grid.as_json(study, parts))
        return
    for piece in grid.dry_run(study, parts):
        make_console().print(piece, highlight=False)


@app.command(group="Train")
def demo(
    *, text: Annotated[bool, Parameter(negative="")] = False, out: Folder | None = None, json: Json = False
) -> None:
    """Train on the bundled handwritten digits, generate 1,000 images and evaluate them (minutes on two cores).

    Parameters
    ----------
    text
        Train a text-to-image model on captioned emoji instead (about 12 minutes on two cores; needs the extra emoji).
    out
        The run folder (default: runs/demo, with --text runs/demo-text).
    json
        Print one JSON object.
    """
    result: Demo | TextDemo
    if text:
        from ditlab.study.text_demo import run_text_demo

        result = run_text_demo(out or Path("runs/demo-text"), screen)
    else:
        from ditlab.study.demo import run_demo

        result = run_demo(out or Path("runs/demo"), screen)
    if json:
        print_json(result.as_json())
        return
    for line in result.report(command()):
        show(line)
