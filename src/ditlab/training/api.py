"""`ditlab.train`: a run from a recipe, resumed by the same call."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.data import Dataset as TorchDataset

from ditlab.backbones.lora import merged
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.device import process_place
from ditlab.core.io import held
from ditlab.data import Dataset
from ditlab.inference.pipeline import Pipeline
from ditlab.report.run import REPORT
from ditlab.training.callbacks import Callback, Listeners
from ditlab.training.checks import check_recipe
from ditlab.training.loop import train_to_end, write_run_report
from ditlab.training.parallel import joined
from ditlab.training.run_folder import RunFolder
from ditlab.training.setup import Job, prepare_steps, set_up
from ditlab.training.signals import exit_before_first_step
from ditlab.training.torch_data import TorchImages


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    data: str | Dataset | TorchDataset[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    changes: bool = False,
    console: Console | None = None,
) -> Pipeline:
    """Train a model; the same call again resumes.

    Under a launcher such as torchrun all processes call it, and share each batch.

    Args:
        recipe: the settings: a recipe, its file or name ("digits"), or its tables, such as {"train": {"images": 64}}.
        out: the run folder; made if it does not exist.
        data: instead of the recipe's data.source: a data source, or a torch data set of (image, label) with uint8
            tensors (C, H, W) or PIL images of one size and whole numbers as labels.
        callbacks: objects with any of the methods on_log(seen, values), on_preview(seen, image) and on_end(pipe), see
            `ditlab.training.callbacks`. If on_log returns True, the run is saved and ends.
        changes: whether a run may resume with other settings than it had so far.
        console: where progress is shown (standard error by default).

    Returns:
        The trained model (EMA weights).

    Raises:
        InputError: settings that do not fit together, or a folder that holds something else or is in use.
        KeyboardInterrupt: after Ctrl-C, once the state is saved.
        SystemExit: with 0, after SIGTERM, once the state is saved.
    """
    console = console or Console(stderr=True)
    recipe = as_recipe(recipe)
    own_data: Dataset | None = None
    if isinstance(data, str):
        recipe = replace(recipe, data=replace(recipe.data, source=data))
    elif data is not None:
        own_data = data if isinstance(data, Dataset) else TorchImages(data)
        recipe = replace(recipe, data=replace(recipe.data, source=f"python:{type(data).__qualname__}"))
    check_recipe(recipe)
    folder, rank = Path(out), process_place()[0]
    with exit_before_first_step(), held(folder, rank), joined(recipe.train.device, recipe.parallel.timeout) as place:
        shown = console if place.first else Console(quiet=True)
        return train_here(Job(recipe, RunFolder(folder), place, shown, changes, callbacks, own_data))


def as_recipe(recipe: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
    """A recipe from any form in which it can be given.

    Raises:
        InputError: no such recipe, or an unknown key or value.
    """
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.load(recipe) if isinstance(recipe, str | Path) else parse_recipe(dict(recipe))


def train_here(job: Job) -> Pipeline:
    """`train`, as one of its processes."""
    set_up(job)
    if job.finished:
        job.say(f"{job.folder.folder} is already trained on {job.state.seen:,} images; raise train.images to continue")
        if not (job.folder.folder / REPORT).exists():  # the process was killed before it was written
            write_run_report(job)
    else:
        prepare_steps(job)
        train_to_end(job)
        if job.dataset.skipped:
            job.say(f"{len(job.dataset.skipped)} images could not be read: {job.skipped_images}")
    job.pipe.net = merged(job.state.average())
    if job.place.first:
        Listeners(callbacks=job.callbacks).end(job.pipe)
    return job.pipe
