"""What all measures of a trained model share."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from ditlab.autoencoders import Autoencoder
from ditlab.checkpoints import load
from ditlab.config.evaluation import Evaluation
from ditlab.config.sections import Data, Recipe
from ditlab.core.device import describe, pick_device
from ditlab.core.version import __version__
from ditlab.data import Dataset, open_dataset
from ditlab.diffusion.objective import Objective
from ditlab.evaluation.generated import load_for
from ditlab.evaluation.references import short_hash
from ditlab.evaluation.results import Result, read_result, write_result
from ditlab.evaluation.statistics import Direction
from ditlab.inference.pipeline import Pipeline
from ditlab.training.model import pick_autoencoder

Compute = Callable[[Pipeline, Evaluation, Console], dict[str, float]]
"""(model, settings, console) -> the results by name."""


@dataclass(frozen=True)
class Measure:
    """A measure of a trained model."""

    evaluate: Callable[[str, Evaluation, Console], Result]
    """(run folder or checkpoint, settings, console) -> the result; a second call returns the first one's."""
    results: Mapping[str, Direction]
    """Result -> whether lower or higher is better."""
    check: Callable[[Recipe, Evaluation], None] = lambda recipe, settings: None
    """(recipe of a part, settings) -> None; raises an `InputError` before training if the measure is not possible."""


def kept(name: str, compute: Compute) -> Callable[[str, Evaluation, Console], Result]:
    """A function that computes a measure, and keeps the result in the model's folder for the next call.

    Args:
        name: prefix of the folder of a result.
        compute: computes the results.
    """

    def evaluate(source: str, settings: Evaluation, console: Console) -> Result:
        protocol: dict[str, Any] = {
            "count": settings.count, "seed": settings.seed, "sampling": settings.sampling().given(),
            "reference": settings.reference, "metrics": [name], "weights": settings.weights,
        }  # fmt: skip
        folder = Path(source) / "evaluations" / f"{name}-{short_hash(protocol)}"
        if (folder / "result.json").exists():
            return read_result(folder)
        started = time.monotonic()
        metrics = compute(load_for(source, settings, pick_device(settings.device)), settings, console)
        seconds = round(time.monotonic() - started, 1)
        result = Result(metrics, protocol, [], seconds, __version__, describe(settings.device), folder)
        write_result(result)
        return result

    return evaluate


@cache
def opened(data: Data, init_from: str) -> tuple[Dataset, Autoencoder, Objective | None]:
    """The data set of a recipe, its autoencoder, and the objective of the model that training starts from."""
    dataset = open_dataset(data.source, data)
    source = load(init_from, device="cpu") if init_from else None
    objective = None if source is None else source.objective
    return dataset, pick_autoencoder(data.autoencoder, dataset, source), objective
