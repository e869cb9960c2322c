"""Commands that train: one model, a grid of them, the demonstration."""

import dataclasses
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, command, fail, print_json, say, screen
from ditlab.config.reader import find_recipe, parse_recipe, parse_size, read_toml, recipe_arguments, recipe_of
from ditlab.config.sections import Whole
from ditlab.core.device import process_place

if TYPE_CHECKING:
    from ditlab.config.sections import Recipe as RecipeArguments
else:
    RecipeArguments = recipe_arguments()  # which lists the options of the networks


@app.command(group="Train")
def train(
    recipe: str,
    /,
    *,
    out: Path | None = None,
    init_from: str | None = None,
    classes: Whole | None = None,
    class_map: str | None = None,
    allow_changes: Annotated[bool, Parameter(negative="")] = False,
    settings: Annotated[RecipeArguments | None, Parameter(name="*")] = None,
) -> None:
    """Train a model; the same command again resumes.

    Parameters
    ----------
    recipe
        A .toml file, or the name of a recipe that comes with ditlab: digits.
    out
        The run folder; runs/NAME-OF-THE-RECIPE if left out.
    init_from
        A model to start from: anything that ditlab loads. What fits is kept, and a table says what does not.
    classes
        Class count of the model, if it shall have room for more than the data has.
    class_map
        A TOML or JSON file of pairs: class of the data, class of the source whose label row it continues.
    allow_changes
        Resume with another course of training than before (rates, batch, times, averages).
    settings
        Any key of the recipe.
    """
    from ditlab.training import train

    out = out or Path("runs") / find_recipe(recipe).stem
    settings = recipe_of(settings)
    start = dataclasses.replace(
        settings.train,
        init_from=settings.train.init_from if init_from is None else init_from,
        class_map=settings.train.class_map if class_map is None else class_map,
    )
    room = dataclasses.replace(settings.data, classes=settings.data.classes if classes is None else classes)
    settings = dataclasses.replace(settings, train=start, data=room)
    train(settings, out, changes=allow_changes, console=screen)
    if process_place()[0] == 0:
        say(f"model and previews are in {out}; try: {command()} sample {out} --out samples")


@app.command(group="Train")
def plan(
    recipe: str,
    /,
    *,
    device: str = "",
    devices: Whole = 1,
    size: str | None = None,
    channels: Whole = 4,
    classes: Whole = 1000,
    settings: Annotated[RecipeArguments | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Tell what a training run will need: memory by part, steps per second, time to the end, the largest batch.

    Parameters
    ----------
    recipe
        A .toml file, or the name of a recipe that comes with ditlab.
    device
        b200, h200, h100, a100, a100-40, l40s, a10, rtx5090, rtx4090 or rtx3090; this machine if left out.
    devices
        How many of them.
    size
        Where the data is not at hand: side, or HEIGHTxWIDTH, of the network's input, such as 32.
    channels
        With --size: its channels.
    classes
        With --size: its classes.
    settings
        Any key of the recipe.
    json
        Print one JSON object.
    """
    from ditlab.profiling import plan as planning

    find_recipe(recipe)
    shape = None if size is None else (channels, parse_size(size), classes)
    found = planning.plan(recipe_of(settings), device, devices, shape=shape)
    if json:
        print_json(dataclasses.asdict(found))
        return
    out = Console()
    out.print(planning.table(found))
    for line in planning.lines(found):
        out.print(line, highlight=False, markup=False)


@app.command(group="Train")
def watch(run: Path, /, *, once: Annotated[bool, Parameter(negative="")] = False, seconds: float = 2.0) -> None:
    """Show a run's curves and its newest preview in the terminal, until Ctrl-C or its end.

    Parameters
    ----------
    run
        The run folder.
    once
        Show it as it is now, and return.
    seconds
        Between two looks.
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
def study(
    recipe: str,
    /,
    *,
    out: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Train a grid of models under one budget, score them, and say which claims hold; the same command again goes on.

    Commands that are started side by side share the runs.

    Parameters
    ----------
    recipe
        A .toml file, or a study that comes with ditlab: scaling, conditioning, u-shape, sampling-compute,
        guidance, options, families, families-letters.
    out
        Its folder; runs/studies/NAME-OF-THE-RECIPE if left out.
    dry_run
        Only print the grid, with the time and memory that each part will need.
    json
        Print one JSON object.
    """
    from ditlab.study import grid
    from ditlab.study.recipe import read_study
    from ditlab.study.report import write_reports
    from ditlab.study.run import as_json, run_study, summary

    found = read_study(recipe)
    if dry_run:
        parts = grid.lay_out(found, {}, screen, timed=True)
        if json:
            print_json(grid.as_json(found, parts))
            return
        for piece in grid.dry_run(found, parts):
            Console().print(piece, highlight=False, markup=False)
        return
    out = out or Path("runs") / "studies" / found.name
    done = run_study(found, out, screen)
    if done is None:
        say("other processes still work; the last of them writes the report")
        return
    report = write_reports(done, out)
    if json:
        print_json(as_json(done) | {"report": report})
    else:
        for line in summary(done):
            print(line)
        say(f"look at {report}")
    if done.failures:
        fail(f"{len(done.failures)} runs failed; the same command tries them again", 1)


@app.command(group="Train")
def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """Train on the bundled handwritten digits, draw 1,000 new ones and score them; minutes on two cores.

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
        print_json(dataclasses.asdict(result))
        return
    for line in result.report(command()):
        print(line)
