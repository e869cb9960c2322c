"""`ditlab.train`: train a model from a recipe; the same call resumes an interrupted run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.data import Dataset as TorchDataset

from ditlab.backbones.lora import merged
from ditlab.config.reader import is_recipe, to_tables
from ditlab.config.sections import Recipe
from ditlab.core.device import process_place
from ditlab.core.errors import InputError
from ditlab.core.io import held
from ditlab.core.model_files import read_model
from ditlab.core.spelling import expand
from ditlab.core.terminal import make_console
from ditlab.core.units import counted
from ditlab.core.weights import checkpoints
from ditlab.data import Dataset, from_torch
from ditlab.data.parse import IN_PYTHON, find_spec
from ditlab.data.summary import skipped_counts
from ditlab.inference.pipeline import Pipeline
from ditlab.report.run import REPORT
from ditlab.training.callbacks import Callback, Listeners, check_callbacks
from ditlab.training.checks import check_recipe
from ditlab.training.job import Job
from ditlab.training.loop import train_to_end, write_run_report
from ditlab.training.parallel import joined
from ditlab.training.run_copy import copied
from ditlab.training.run_folder import STACKS, RunFolder
from ditlab.training.setup import prepare_steps, set_up
from ditlab.training.signals import exit_before_first_step
from ditlab.training.state import holding


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    data: str | Path | Dataset | TorchDataset[Any] | tuple[Any, Any] | Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    changes: bool = False,
    console: Console | None = None,
) -> Pipeline:
    """Train a model; the same call resumes an interrupted run.

    Under a launcher such as torchrun, all processes call this function and share each batch.

    Args:
        recipe: the settings: a recipe, its file or name ("digits"), or its tables, such as {"train": {"images": 64}}.
        out: the run folder; created if it does not exist (default: runs/NAME-OF-THE-RECIPE).
        data: replaces data.source of the recipe: a data source, a torch data set of (image, label) pairs, or arrays
            (images, labels), as in `ditlab.data.from_torch`.
        callbacks: objects with any of the methods on_step(seen, net), on_log(seen, values), on_preview(seen, image),
            on_checkpoint(seen, folder) and on_end(pipe); see `ditlab.training.callbacks`. If on_step or on_log
            returns True, the run is saved and ends.
        changes: whether a run may resume with settings that differ from those it started with.
        console: where progress is shown (default: standard error).

    Returns:
        The trained model with EMA weights.

    Raises:
        InputError: the settings contradict each other, the folder holds something else or is in use, or the recipe
            has no name and `out` is missing.
        KeyboardInterrupt: after Ctrl-C, when the state has been saved.
        SystemExit: with status 0 after SIGTERM, when the state has been saved.
    """
    folder = run_folder(recipe) if out is None else out
    with joined_run(recipe, folder, data=data, callbacks=callbacks, changes=changes, console=console) as job:
        train_here(job)
        return trained_model(job)


def run_folder(recipe: Recipe | str | Path | Mapping[str, Any]) -> Path:
    """The folder of a run for which none is given, as on the command line.

    Raises:
        InputError: the recipe has no name.
    """
    if not isinstance(recipe, str | Path):
        raise InputError("a recipe without a name needs a run folder; give out")
    return Path("runs") / Path(expand(str(recipe))).stem


def train_only(
    recipe: Recipe | str | Path | Mapping[str, Any], out: str | Path, *, changes: bool = False, console: Console
) -> None:
    """Train as `train` does, but return nothing: the model, of which each process needs a copy, may be large."""
    with joined_run(recipe, out, changes=changes, console=console) as job:
        train_here(job)


@contextmanager
def joined_run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data: str | Path | Dataset | TorchDataset[Any] | tuple[Any, Any] | Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    changes: bool = False,
    console: Console | None = None,
) -> Iterator[Job]:
    """A run in which this process has joined the others, with arguments as for `train`; its folder is locked."""
    console = console or make_console(stderr=True)
    recipe = as_recipe(recipe)
    dataset: Dataset | None = None
    if isinstance(data, str | Path):
        recipe = replace(recipe, data=replace(recipe.data, source=str(data)))
    elif data is not None:
        settings = recipe.data
        dataset = data if isinstance(data, Dataset) else from_torch(data, range=settings.range, show=settings.show)
        recipe = replace(recipe, data=replace(recipe.data, source=f"{IN_PYTHON}{type(data).__qualname__}"))
    check_recipe(recipe)
    check_callbacks(callbacks)
    folder, rank = Path(expand(str(out))), process_place()[0]
    with (
        exit_before_first_step(),
        held(folder, rank),
        joined(recipe.train.device, recipe.parallel.timeout, folder / STACKS) as place,
        copied(folder, recipe.train.upload, place.first) as copy,
    ):
        output = console if place.first else Console(quiet=True)
        job = Job(recipe, RunFolder(folder), place, output, changes, callbacks, dataset)
        job.folder.copy = copy
        for line in place.first_does(lambda: copy.begin() if copy is not None else []):
            job.say(line)
        yield job


def as_recipe(recipe: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe from a name, a file or tables; values of a `Recipe` such as "64" or a path get their type.

    Raises:
        InputError: there is no such recipe, or it has an unknown key or an invalid value.
    """
    tables: Any = to_tables(recipe) if isinstance(recipe, Recipe) else recipe
    if isinstance(tables, str | Path) and not is_recipe(str(tables)) and find_spec(str(tables)) is not None:
        raise InputError(
            f'"{tables}" is a data source; call train_folder, which chooses a recipe, or give it as data= with a recipe'
        )
    if isinstance(tables, Mapping) and isinstance(data := tables.get("data"), Mapping):
        source = data.get("source", "")
        if not isinstance(source, str | Path):
            raise InputError(
                f"data.source is a {type(source).__name__}; give a string there, or this data set as data= of train()"
            )
    return Recipe.load(tables)


def train_here(job: Job) -> None:
    """Run all stages of a run in one process, which has joined the others."""
    set_up(job)
    if job.finished:
        limit, took = "train.images", ""
        if job.elapsed >= 1:
            limit, took = "train.minutes", f" in {job.state.seconds / 60:,.2f} minutes"
        seen = counted(job.state.seen, "image")
        job.say(f"{job.folder.folder} is already trained on {seen}{took}; raise {limit} to continue")
        if not (job.folder.folder / REPORT).exists():  # the process was killed before it wrote the report
            write_run_report(job)
    else:
        prepare_steps(job)
        train_to_end(job)
        if job.dataset.skipped:
            job.say(f"{skipped_counts(job.dataset)}: {job.skipped_images}")


def trained_model(job: Job) -> Pipeline:
    """The trained model with EMA weights, in all processes.

    If all processes have written their parts of the last checkpoint, each reads the model from it.
    """
    if job.folder.together is None or not job.state.sharded:
        job.pipe.net = merged(job.state.average())
    else:
        job.place.wait()  # until the first process has completed the checkpoint
        folder = checkpoints(job.folder.folder)[-1]
        job.pipe.net = holding(job.state.ema.net, read_model(folder)).to(job.place.device)
    if job.place.first:
        Listeners(callbacks=job.callbacks).end(job.pipe)
    return job.pipe
