"""Sweeps: evaluate a model under several settings, and report a curve and the best settings."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from ditlab.config.evaluation import Evaluation
from ditlab.config.fields import check_settings
from ditlab.config.sampling import ALIASES
from ditlab.core.errors import InputError
from ditlab.core.io import replace_text, replacing
from ditlab.core.stats import standard_error
from ditlab.core.terminal import say
from ditlab.evaluation.protocols import evaluate, home_of
from ditlab.evaluation.references import Reference
from ditlab.inference.base import BasePipeline
from ditlab.report.plotting import plotting


@dataclass(frozen=True)
class Point:
    """The results of one combination of settings."""

    settings: dict[str, Any]
    values: list[float]  # of the distance, one for each seed
    metrics: dict[str, float]  # means of all metrics

    @property
    def mean(self) -> float:
        """Mean distance over the seeds."""
        return fmean(self.values)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; one seed has none."""
        return standard_error(self.values)


@dataclass(frozen=True)
class Sweep:
    """The results of all combinations of settings."""

    metric: str
    points: list[Point]
    plot: Path

    @property
    def best(self) -> Point:
        """The combination with the smallest distance."""
        return min(self.points, key=lambda point: point.mean)

    def as_json(self) -> dict[str, Any]:
        """The results as plain values, for a JSON file."""
        points = [
            {**point.settings, self.metric: point.mean, "error": point.error, "metrics": point.metrics}
            for point in self.points
        ]
        return {"metric": self.metric, "best": points[self.points.index(self.best)], "points": points}

    def table(self) -> Table:
        """The results as a table for the terminal, with the best combination in bold."""
        table = Table(*self.points[0].settings, self.metric, "standard error")
        for point in self.points:
            error = "" if point.error is None else f"{point.error:.4f}"
            style = "bold" if point is self.best else None
            table.add_row(*(str(value) for value in point.settings.values()), f"{point.mean:.4f}", error, style=style)
        return table

    def verdict(self) -> str:
        """The best combination in a sentence, with the number of others that are not significantly worse."""
        settings = ", ".join(f"{name} {value}" for name, value in self.best.settings.items())
        error = self.best.error
        if error is None:
            return f"best: {settings} with {self.metric} {self.best.mean:.4f}; one seed, so its error is unknown"
        near = [
            point for point in self.points
            if point is not self.best and point.error is not None
            and point.mean - self.best.mean < 2 * sqrt(point.error**2 + error**2)
        ]  # fmt: skip
        others = "1 other is" if len(near) == 1 else f"{len(near)} others are"
        also = f"; {others} not significantly worse (2 standard errors)" if near else ""
        return f"best: {settings} with {self.metric} {self.best.mean:.4f} +- {error:.4f}{also}"


def sweep(
    source: "str | Path | BasePipeline",
    settings: Evaluation,
    axes: dict[str, Sequence[Any]],
    console: Console,
    *,
    repeats: int = 3,
    out: Path | None = None,
    name: str = "sweep",
) -> Sweep:
    """Evaluate all combinations of settings with several seeds; finished evaluations are not repeated.

    Args:
        source: the model.
        settings: settings that all combinations share.
        axes: field of `Evaluation` -> its values.
        console: where progress is shown.
        repeats: number of consecutive seeds for each combination, from `settings.seed` on.
        out: folder for results (default: "evaluations" in the model's folder).
        name: prefix of the names of files and folders.

    Raises:
        InputError: there are no values to combine, or a setting is invalid.
    """
    axes = {ALIASES.get(key, key): list(dict.fromkeys(values)) for key, values in axes.items() if values}
    if not axes or repeats < 1:
        raise InputError(
            "nothing to sweep; give several values of a setting, such as guidance 1 and 1.5, and 1 or more repeats"
        )
    check_settings(settings)
    pyplot = plotting()  # before hours of work
    home = out or home_of(source)
    points: list[Point] = []
    measured: dict[str, Reference] = {}
    combinations = list(itertools.product(*axes.values()))
    for number, values in enumerate(combinations, 1):
        chosen = dict(zip(axes, values, strict=True))
        say(console, f"{number} of {len(combinations)}: {chosen}")
        results = []
        for seed in range(settings.seed, settings.seed + repeats):
            protocol = replace(settings, **chosen, seed=seed, expect=None, within=None)
            result = evaluate(source, protocol, console, out=home, name=name, measured=measured)
            assert result is not None
            results.append(result)
        metric = distance(results[0].metrics)
        means = {key: fmean(result.metrics[key] for result in results) for key in results[0].metrics}
        points.append(Point(chosen, [result.metrics[metric] for result in results], means))
    done = Sweep(metric, points, home / f"{name}.png")
    replace_text(home / f"{name}.json", json.dumps(done.as_json(), indent=2) + "\n")
    plot(done, axes, pyplot)
    return done


def distance(metrics: dict[str, float]) -> str:
    """Name of the first metric that is a distance, which the best combination minimizes.

    Raises:
        InputError: no metric is a distance.
    """
    distances = [name for name in metrics if name.startswith(("fid", "fd_", "sfid", "sfd_", "kid", "kd_"))]
    if not distances:
        raise InputError(f"nothing to minimize among {', '.join(metrics)}; add frechet or kernel to the metrics")
    return distances[0]


def plot(done: Sweep, axes: dict[str, Sequence[Any]], pyplot: Any) -> None:
    """Plot the distance over the first axis with several values, with a line for each combination of the others."""
    along = next((key for key, values in axes.items() if len(values) > 1), next(iter(axes)))
    figure, place = pyplot.subplots(figsize=(6, 4), layout="constrained")
    others = [key for key in axes if key != along]
    for values in itertools.product(*(axes[key] for key in others)):
        line = [
            point for point in done.points if all(point.settings[k] == v for k, v in zip(others, values, strict=True))
        ]
        names = ", ".join(f"{key} {value}" for key, value in zip(others, values, strict=True))
        where = [point.settings[along] for point in line]
        place.errorbar(
            [value if isinstance(value, int | float) else str(value) for value in where],
            [point.mean for point in line],
            yerr=[point.error or 0 for point in line],
            marker="o", capsize=3, label=names or None,
        )  # fmt: skip
    place.set_xlabel(along)
    place.set_ylabel(done.metric)
    if others:
        place.legend()
    with replacing(done.plot) as draft:
        figure.savefig(draft, dpi=120, format="png")
    pyplot.close(figure)
