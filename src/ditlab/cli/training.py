"""Commands that train: one model, a grid of them, the demonstration."""

import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, command, fail, print_json, say, screen
from ditlab.config.reader import (
    find_recipe,
    parse_recipe,
    parse_size,
    read_toml,
    recipe_arguments,
    recipe_of,
    shipped_recipes,
)
from ditlab.config.values import Whole
from ditlab.core.device import process_place

if TYPE_CHECKING:
    from ditlab.config.sections import Recipe as RecipeArguments
    from ditlab.profiling.plan import Plan
    from ditlab.study.recipe import Study
else:
    RecipeArguments = recipe_arguments()  # which lists the options of the networks

Name = Annotated[str, Parameter(help=f"A .toml file, or a shipped recipe: {', '.join(shipped_recipes())}.")]
StudyName = Annotated[
    str, Parameter(help=f"A .toml file, or a shipped study: {', '.join(shipped_recipes('studies'))}.")
]
Settings = Annotated[RecipeArguments | None, Parameter(name="*", help="Any key of the recipe.")]
Flag = Annotated[bool, Parameter(negative="")]


@app.command(group="Train")
def train(
    recipe: Name,
    /,
    *,
    out: Path | None = None,
    init_from: str | None = None,
    classes: Whole | None = None,
    class_map: str | None = None,
    allow_changes: Flag = False,
    settings: Settings = None,
) -> None:
    """Train a model; the same command again resumes.

    Parameters
    ----------
    out
        The run folder; runs/NAME-OF-THE-RECIPE by default.
    init_from
        A model to start from: anything that ditlab loads. What fits is kept, and a table reports what does not.
    classes
        Class count of the model, if it must have room for more than the data has.
    class_map
        A TOML or JSON file of pairs: class of the data, class of the source whose embedding it continues.
    allow_changes
        Resume with other settings than before (learning rate, batch, times, averages).
    """
    from ditlab.training import train

    out = out or Path("runs") / find_recipe(recipe).stem
    given: dict[str, Any] = {"init_from": init_from, "class_map": class_map}
    settings = recipe_of(settings, recipe)
    start = replace(settings.train, **{key: value for key, value in given.items() if value is not None})
    data = settings.data if classes is None else replace(settings.data, classes=classes)
    train(replace(settings, train=start, data=data), out, changes=allow_changes, console=screen)
    if process_place()[0] == 0:
        say(f"model and previews are in {out}; try: {command()} sample {out} --out samples")


@app.command(group="Train")
def plan(
    recipe: Name,
    /,
    *,
    device: str = "",
    devices: Whole = 1,
    size: str | None = None,
    channels: Whole = 4,
    classes: Whole = 1000,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Predict what a training run needs: memory by part, steps per second, total time, the largest batch.

    Parameters
    ----------
    device
        b200, h200, h100, a100, a100-40, l40s, a10, rtx5090, rtx4090 or rtx3090; this machine by default.
    devices
        Number of devices.
    size
        If the data is not at hand: side, or HEIGHTxWIDTH, of the network's input, such as 32.
    channels
        With --size: its channels.
    classes
        With --size: its classes.
    json
        Print one JSON object.
    """
    from ditlab.profiling import plan as planning

    find_recipe(recipe)
    shape = None if size is None else (channels, parse_size(size), classes)
    found = planning.plan(recipe_of(settings, recipe), device, devices, shape=shape)
    if json:
        print_json(asdict(found))
    else:
        print_plan(found)


def print_plan(found: "Plan") -> None:
    """A plan as a table and lines."""
    from ditlab.profiling import plan as planning

    out = Console()
    out.print(planning.table(found))
    for line in planning.lines(found):
        out.print(line, highlight=False, markup=False)


@app.command(group="Train")
def watch(run: Path, /, *, once: Flag = False, seconds: float = 2.0) -> None:
    """Show a run's curves and its newest preview in the terminal, until Ctrl-C or its end.

    Parameters
    ----------
    run
        The run folder.
    once
        Show the present state and return.
    seconds
        Time between two updates, in seconds.
    """
    from rich.live import Live

    from ditlab.report.run import read_metrics, view

    images = parse_recipe(read_toml(run / "recipe.toml"), source=str(run)).train.images
    out = Console()
    if once or not out.is_terminal:
        out.print(view(run, images))
        return
    with suppress(KeyboardInterrupt), Live(view(run, images), console=out, auto_refresh=False) as live:
        while not (lines := read_metrics(run)) or lines[-1]["images"] < images:
            time.sleep(seconds)
            live.update(view(run, images), refresh=True)


@app.command(group="Train")
def study(recipe: StudyName, /, *, out: Path | None = None, dry_run: Flag = False, json: Json = False) -> None:
    """Train a grid of models under one budget, evaluate them, and report which claims hold.

    The same command again resumes. Commands that are started side by side share the runs.

    Parameters
    ----------
    out
        The study's folder; runs/studies/NAME-OF-THE-RECIPE by default.
    dry_run
        Only print the grid, with the time and memory that each part will need.
    json
        Print one JSON object.
    """
    from ditlab.study.recipe import read_study
    from ditlab.study.report import write_reports
    from ditlab.study.run import as_json, run_study, summary

    found = read_study(recipe)
    if dry_run:
        show_grid(found, json)
        return
    out = out or Path("runs") / "studies" / found.name
    done = run_study(found, out, screen)
    if done is None:
        say("other processes are still working; the last of them writes the report")
        return
    report = write_reports(done, out)
    if json:
        print_json(as_json(done) | {"report": report})
    else:
        print("\n".join(summary(done)))
        say(f"report: {report}")
    if done.failures:
        fail(f"{len(done.failures)} runs failed; the same command tries them again", 1)


def show_grid(study: "Study", json: bool) -> None:
    """The grid of a study, without training."""
    from ditlab.study import grid

    parts = grid.lay_out(study, {}, screen, timed=True)
    if json:
        print_json(grid.as_json(study, parts))
        return
    for piece in grid.dry_run(study, parts):
        Console().print(piece, highlight=False, markup=False)


@app.command(group="Train")
def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """Train on the bundled handwritten digits, generate 1,000 images and evaluate them; minutes on two cores.

    Parameters
    ----------
    out
        The run folder.
    json
        Print one JSON object.
    """
    from ditlab.study.demo import run_demo

    result = run_demo(out, screen)
    if json:
        print_json(asdict(result))
        return
    for line in result.report(command()):
        print(line)
