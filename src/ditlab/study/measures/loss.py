"""The training loss on images that a model was not trained on, which scaling laws predict.

Result: `loss`, the mean over the images, with the timesteps and the noise of the evaluation's seed, which are the same
for all models of a study.
"""

from dataclasses import replace

import torch
from rich.console import Console

from ditlab.config.evaluation import Evaluation
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, parse_source
from ditlab.data.base import numbered
from ditlab.data.buckets import sample_batch
from ditlab.inference.pipeline import Pipeline
from ditlab.study.measures.base import Measure, kept
from ditlab.training.losses import batch_losses, make_context


def held_out_source(recipe: Recipe, settings: Evaluation) -> str:
    """The data source of the images: the reference of the evaluation, or the held-out part of the training data.

    Raises:
        InputError: the data have no held-out part.
    """
    if settings.reference:
        return settings.reference
    held_out = parse_source(recipe.data.source, recipe.data).held_out()
    if held_out is None:
        raise InputError(f"{recipe.data.source} has no held-out part; set reference to other images")
    return held_out.text


def check(recipe: Recipe, settings: Evaluation) -> None:
    """Check that there are images that are not used in training."""
    held_out_source(recipe, settings)


@torch.no_grad()
def held_out_loss(pipe: Pipeline, settings: Evaluation, console: Console) -> dict[str, float]:
    """The mean loss over `settings.count` images."""
    recipe = parse_recipe(dict(pipe.config["recipe"]))
    source = held_out_source(recipe, settings)
    recipe = replace(
        recipe,
        data=replace(recipe.data, source=source),
        train=replace(recipe.train, seed=settings.seed, label_dropout=0.0),
    )
    dataset, run = open_dataset(source, recipe.data), make_context(pipe, recipe)
    pipe.net.eval()
    indices, total = sample_batch(dataset, min(settings.count, len(dataset))), 0.0
    for start in range(0, len(indices), settings.batch_size):
        part = indices[start : start + settings.batch_size]
        batch = numbered(dataset.fetch(part), part)
        total += float(batch_losses(run, batch, start, 0, torch.float32, len(part)).total.sum())
    return {"loss": total / len(indices)}


LOSS = Measure(kept("held-out-loss", held_out_loss), {"loss": "lower"}, check)
