"""How long the runs of a study are, how their time is measured, and when they log and save."""

from dataclasses import replace
from typing import Any

from ditlab.config.reader import Tables
from ditlab.config.sections import Recipe
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError
from ditlab.profiling.plan import Plan
from ditlab.study.recipe import Budget, Study

LINES = 40  # lines in a run's metrics.jsonl, at least: the points of its curve
SAVED = 4  # checkpoints before the last one, at least
TRAINING = 3  # work of a training step, as a multiple of a forward pass


def on_clock(recipe: Recipe, changes: Tables) -> Recipe:
    """The recipe with its time measured as processor time on a CPU, unless the study sets the clock."""
    if "clock" in changes.get("train", {}) or pick_device(recipe.train.device).type != "cpu":
        return recipe
    return replace(recipe, train=replace(recipe.train, clock="cpu"))


def images_for(budget: Budget, cost: Plan, batch: int) -> int:
    """Training images that the budget allows: the nearest number of whole batches, at least one."""
    unit, value = budget.chosen
    if unit == "gmacs":
        value /= TRAINING * cost.gmacs
    elif unit == "seconds":
        value *= (cost.steps_per_second or 0.0) * batch
    return max(1, round(value / batch)) * batch


def images_at(share: float, study: Study, recipe: Recipe) -> int:
    """Training images of the checkpoint that is scored at a share of the training.

    Raises:
        InputError: the run is so short that this is not before its end.
    """
    if share == 1:
        return recipe.train.images
    images = round(share / study.smallest_share) * saved_every(study, recipe)
    if images >= recipe.train.images:
        raise InputError(
            f"a run of {recipe.train.images:,} images has no checkpoint at {share:g} of its length; "
            "give a larger budget, or a smaller train.batch"
        )
    return images


def saved_every(study: Study, recipe: Recipe) -> int:
    """Images between the checkpoints that the study scores."""
    batch = recipe.train.batch
    return max(1, round(study.smallest_share * recipe.train.images / batch)) * batch


def logging_intervals(study: Study, name: str, recipe: Recipe) -> dict[str, Any]:
    """How often a run logs and saves, unless the study sets it: shares of its length, which the budget determines."""
    images, batch = recipe.train.images, recipe.train.batch
    intervals = {
        "log_every": max(batch, images // LINES),
        "save_every": max(batch, min(recipe.train.save_every, images // SAVED)),
        "preview_every": images,
        "keep": 1,
    }
    if study.smallest_share < 1:
        intervals |= dict.fromkeys(("save_every", "keep_every"), saved_every(study, recipe))
    set_by_study = study.changes[name].get("train", {})
    return {key: value for key, value in intervals.items() if key not in set_by_study}
