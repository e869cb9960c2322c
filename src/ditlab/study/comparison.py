"""Two models, or two sets of images, under one protocol: differences in pairs, and which of the two is better."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from ditlab.config.evaluation import Evaluation
from ditlab.config.sampling import DIFFUSERS, SETTINGS
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.spelling import expand
from ditlab.core.types import Batch
from ditlab.core.units import counted
from ditlab.data import Dataset
from ditlab.evaluation.gather import gather
from ditlab.evaluation.metrics import RESULTS, canonical_name
from ditlab.evaluation.protocols import Job, computed, evaluate, is_model, plan_evaluation
from ditlab.evaluation.references import Reference
from ditlab.study.claims import FAILS, HOLDS, MINUS, NOT_SIGNIFICANT, Comparison, compare

Kind = Literal["folder of runs", "model", "images"]
OWN = ("model", "source", "pictures")  # keys of a protocol in which the two sides may differ
WORDS = DIFFUSERS | SETTINGS | {"labels": "label_sampling"}
"""Key of a protocol -> the name of the setting."""
A, B = "A", "B"
Scores = dict[str, dict[str, float]]
"""Pair, such as "samples with seed 3" -> result -> value."""


@dataclass(frozen=True)
class Difference:
    """A result of both sides in each pair, and whether they differ."""

    result: str  # as the evaluation names it, such as "fd_digits"
    a: Mapping[str, float]  # pair -> value
    b: Mapping[str, float]
    comparison: Comparison  # of a - b, which is claimed to favor A

    @property
    def verdict(self) -> str:
        """Which side is better, at the level of 5 %."""
        return {HOLDS: f"{A} is better", FAILS: f"{B} is better", NOT_SIGNIFICANT: "no significant difference"}[
            self.comparison.verdict
        ]


@dataclass(frozen=True)
class Contest:
    """Two sides that were scored in pairs."""

    a: str  # what was compared
    b: str
    kind: Kind
    protocol: dict[str, Any]  # what both sides share
    differences: list[Difference]  # the result of the first metric first
    notes: list[str]
    images: tuple[Dataset, Dataset]  # of the first pair

    def as_json(self) -> dict[str, Any]:
        """All results as plain values."""
        rows = {
            row.result: {
                "a": fmean(row.a.values()), "b": fmean(row.b.values()), "difference": row.comparison.mean,
                "error": row.comparison.error, "low": row.comparison.low, "high": row.comparison.high,
                "verdict": row.verdict, "pairs": {pair: [row.a[pair], row.b[pair]] for pair in row.a},
            }
            for row in self.differences
        }  # fmt: skip
        return {"a": self.a, "b": self.b, "kind": self.kind, "results": rows, "notes": self.notes} | {
            "protocol": self.protocol
        }


class Part(Dataset):
    """Every N-th image of a data set."""

    def __init__(self, images: Dataset, first: int, step: int) -> None:
        self.images, self.numbers = images, torch.arange(first, len(images), step)
        self.labels, self.classes = images.labels[self.numbers], images.classes
        self.channels, self.size, self.values = images.channels, images.size, images.values
        self.preprocessing = images.preprocessing

    def fetch(self, indices: Tensor) -> Batch:
        return self.images.fetch(self.numbers[indices])

    def fetch_readable(self, indices: Tensor) -> Batch:
        return self.images.fetch_readable(self.numbers[indices])


def compare_sides(a: str, b: str, settings: Evaluation, console: Console | None = None, *, repeats: int = 5) -> Contest:
    """Score two sides under one protocol, in pairs. Finished evaluations of models are not repeated.

    Two models are compared with `repeats` sets of samples, which have the same seeds on both sides. Two folders of runs
    are compared run by run, in pairs of equal training seed. Two sets of images are divided into `repeats` parts, in
    the order of their names. The error of two models or two sets of images is that of sampling: another training would
    give another model.

    Args:
        a: a model; or a folder with one run per training seed; or images.
        b: the same kind of thing as `a`.
        settings: the protocol.
        console: where progress is shown.
        repeats: number of pairs.

    Raises:
        InputError: the two are not the same kind of thing, or their protocols differ.
    """
    console = console or Console(quiet=True)
    a, b = expand(a), expand(b)
    kind, measured = common_kind(a, b), dict[str, Reference]()
    if repeats < 2:
        raise InputError(f"repeats is {repeats}; give 2 or more, because the error is computed from them")
    pairs, notes = paired_sources(a, b, kind, settings, repeats)
    (first, second, changed), *_ = pairs.values()
    jobs = tuple(plan_evaluation(source, changed, console, measured) for source in (first, second))
    protocol = shared_protocol(jobs[0].protocol, jobs[1].protocol)
    scores: tuple[Scores, Scores] = ({}, {})
    for number, (pair, (*sources, one)) in enumerate(pairs.items()):
        for side, source in enumerate(sources):
            if kind == "images":
                scores[side][pair] = score_part(jobs[side], number, repeats, one, console)
                continue
            result = evaluate(source, one, console, measured=measured)
            assert result is not None
            scores[side][pair] = result.metrics
            notes += [note for note in result.notes if note not in notes]
    if kind == "images":
        notes += [note for note in dict.fromkeys(jobs[0].notes + jobs[1].notes) if note not in notes]
    return Contest(a, b, kind, protocol, differences(*scores), notes, (jobs[0].images, jobs[1].images))


def kind_of(source: str) -> Kind:
    """What a source is."""
    if runs_in(source):
        return "folder of runs"
    return "model" if is_model(source) else "images"


def common_kind(a: str, b: str) -> Kind:
    """What both sources are.

    Raises:
        InputError: they differ.
    """
    kinds = kind_of(a), kind_of(b)
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{a} is read as {kinds[0]} and {b} as {kinds[1]}; "
            "compare two models, two folders of runs, or images with images"
        )
    return kinds[0]


def runs_in(source: str) -> dict[int, Path]:
    """Training seed -> run, for a folder that is no run and has some in it.

    Raises:
        InputError: two runs have one seed.
    """
    folder, runs = Path(source), dict[int, Path]()
    if not folder.is_dir() or is_model(source):
        return {}
    for run in sorted(path for path in folder.iterdir() if (path / "recipe.toml").is_file()):
        seed = Recipe.load(run / "recipe.toml").train.seed
        if seed in runs:
            raise InputError(f"{runs[seed].name} and {run.name} in {folder} have the training seed {seed}; keep one")
        runs[seed] = run
    return runs


def paired_sources(
    a: str, b: str, kind: Kind, settings: Evaluation, repeats: int
) -> tuple[dict[str, tuple[str, str, Evaluation]], list[str]]:
    """Name of a pair -> both sources and the settings with the seed of their samples; and remarks.

    Raises:
        InputError: there are fewer than two pairs.
    """
    if kind == "images":
        return {f"part {k + 1} of {repeats}": (a, b, settings) for k in range(repeats)}, []
    if kind == "model":
        seeds = [settings.seed + k for k in range(repeats)]
        return {f"samples with seed {seed}": (a, b, replace(settings, seed=seed)) for seed in seeds}, []
    first, second = runs_in(a), runs_in(b)
    common = [seed for seed in first if seed in second]
    if len(common) < 2:
        raise InputError(
            f"{a} has runs with the training seeds {listed(first)} and {b} {listed(second)}; "
            "give folders that share two seeds or more"
        )
    alone = sorted(set(first) ^ set(second))
    notes = [f"only one side has runs with the training seeds {listed(alone)}"] if alone else []
    return {
        f"training seed {seed}": (
            str(first[seed]),
            str(second[seed]),
            replace(settings, seed=settings.seed + seed),
        )
        for seed in common
    }, notes


def listed(numbers: Any) -> str:
    """Numbers in a sentence."""
    return ", ".join(map(str, numbers))


def shared_protocol(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The part of a protocol that both sides share.

    Raises:
        InputError: a setting differs, because the sides have different defaults.
    """
    for key in [*a, *b]:
        if key not in OWN and a.get(key) != b.get(key):
            word = WORDS.get(key, key)
            raise InputError(
                f"{word} is {a.get(key)} for {A} and {b.get(key)} for {B}; "
                + ("the numbers of images must be equal" if key == "count" else f"set {word} for both")
            )
    return {WORDS.get(key, key): value for key, value in a.items() if key not in OWN}


def score_part(job: Job, number: int, repeats: int, settings: Evaluation, console: Console) -> dict[str, float]:
    """The metrics of one part of some images."""
    if len(job.images) < 2 * repeats:
        raise InputError(f"{counted(len(job.images), 'image')} for {repeats} parts; give {2 * repeats} or more")
    images = Part(job.images, number, repeats)
    keep = len(images) if job.kept else 0
    gathered = gather(images, len(images), job.features, console, keep=keep, batch_size=settings.batch_size)
    assert gathered is not None
    return computed(job.metrics, gathered.statistics, job.reference.statistics, console)


def differences(a: Scores, b: Scores) -> list[Difference]:
    """The difference of each result that both sides have and of which lower or higher is better."""
    names = [name for name in next(iter(a.values())) if canonical_name(name) in RESULTS]
    rows = []
    for name in names:
        of_a, of_b = ({pair: scores[name] for pair, scores in side.items()} for side in (a, b))
        side = -1 if RESULTS.lower_is_better(canonical_name(name)) else 1
        comparison = compare(f"{name} of {A} {MINUS} {B}", [of_a[pair] - of_b[pair] for pair in of_a], side)
        rows.append(Difference(name, of_a, of_b, comparison))
    return rows
