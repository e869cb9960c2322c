"""Running a study: each part is trained once per seed, and each trained model is scored.

    study/study.json                 name of the study; in the end all results
    study/results.jsonl              one line per score or failure, in the order in which they were computed
    study/runs/PART-seed0-1a2b3c4d   training runs; the name ends with a hash of all settings that determine the weights
    study/report.html, summary.md    the reports; plots/ contains the figures

Finished work is not repeated. Several processes share the runs of a study: each takes runs that no other process has.
"""

import json
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from ditlab.core.device import describe, pick_device, process_place
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, read_json_lines, read_object
from ditlab.core.io import claimed, replace_text
from ditlab.core.terminal import say
from ditlab.core.units import GIB
from ditlab.core.weights import checkpoints
from ditlab.evaluation.metrics import canonical_name
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import Reference
from ditlab.evaluation.results import Result
from ditlab.report.plotting import plotting
from ditlab.report.run import read_metrics, trained_seconds
from ditlab.study.claims import Entry, Verdict, decide
from ditlab.study.grid import EvaluationPlan, Part, lay_out
from ditlab.study.measures import measure_of
from ditlab.study.recipe import Study, recipe_value, used_axes
from ditlab.training import train

NAME = "study.json"
RENAMED = {"draw": "sample_set", "way": "evaluation_hash", "picture_seed": "sample_seed"}
"""Keys of results.jsonl of version 0.1, which are still read."""
Line = dict[str, Any]
Scores = dict[tuple[str, int], Line]
"""(evaluation, number of the sample set) -> its line of results.jsonl."""


@dataclass(frozen=True)
class Job:
    """A training run and its scores: a part with a seed."""

    part: Part
    seed: int
    sample_sets: int  # scores per evaluation

    def sample_seed(self, evaluation: EvaluationPlan, sample_set: int) -> int:
        """Seed of a set of samples.

        It is the same for all parts, so that scores are paired, and different for each training seed, so that the
        standard error includes the variation between sets of samples.
        """
        return evaluation.settings.seed + self.seed * self.sample_sets + sample_set

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.part.folder(self.seed)

    def __str__(self) -> str:
        return f"{self.part.name}, seed {self.seed}"


@dataclass(frozen=True)
class Findings:
    """All results of a study."""

    study: Study
    parts: list[Part]
    entries: list[Entry]
    verdicts: list[Verdict]
    failures: dict[str, str]  # run ("PART, seed 0") -> error message
    curves: dict[str, list[tuple[float, float]]]  # part -> (images, loss), averaged over the seeds
    grids: dict[str, Path]  # entry -> contact sheet of its first samples
    notes: list[str]  # remarks of the evaluations, such as a small sample count
    hardware: dict[str, Any]


class Results:
    """The lines of results.jsonl, to which several processes may append."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if file.exists() and not file.read_bytes().endswith(b"\n"):  # a crash left an incomplete line
            self.add()
        self.earlier = len(self.lines())  # lines of earlier starts, whose failures are tried again

    def lines(self) -> list[Line]:
        """All complete lines."""
        lines = read_json_lines(self.file) if self.file.exists() else []
        return [{RENAMED.get(key, key): value for key, value in line.items()} for line in lines]

    def add(self, line: Line | None = None) -> None:
        """Append a line; without one, end an incomplete line."""
        with self.file.open("a", encoding="utf-8", newline="\n") as opened:
            opened.write((json.dumps(line) if line else "") + "\n")

    def scores(self, job: Job) -> Scores:
        """The scores of a run that were computed with its present evaluation settings."""
        return {
            (line["evaluation"], line["sample_set"]): line
            for line in self.lines()
            if line["run"] == job.name
            and "metrics" in line
            and (evaluation := job.part.evaluations.get(line["evaluation"])) is not None
            and line["evaluation_hash"] == evaluation.hash
            and line.get("sample_seed") == job.sample_seed(evaluation, line["sample_set"])
        }

    def failure(self, job: Job) -> str | None:
        """Error message if this run has failed since this process started, else None."""
        lines = [line for line in self.lines()[self.earlier :] if line["run"] == job.name]
        return lines[-1].get("failed") if lines else None


def run_study(study: Study, out: Path, console: Console) -> Findings | None:
    """Train and score everything that is missing.

    Args:
        study: the recipe.
        out: folder of the study; a second call with the same folder resumes.
        console: where progress is shown.

    Returns:
        None if other processes are still working on runs of the study.

    Raises:
        InputError: a part is not possible or does not fit into memory, the folder belongs to something else, or
            matplotlib is missing.
    """
    if process_place()[1] > 1:
        raise InputError("a study does not run under torchrun; start several processes instead, which share the runs")
    plotting()  # a missing library is reported before hours of work
    open_folder(study, out)
    parts = plan_parts(study, out, console)
    results, references = Results(out / "results.jsonl"), dict[str, Reference]()
    # All parts with the first seed, then all parts with the next one.
    jobs = [Job(part, seed, study.sample_sets) for seed, part in product(study.seeds, parts)]
    for number, job in enumerate(jobs, 1):
        with claimed(out / "locks" / f"{job.name}.lock") as mine:
            if not mine or is_done(job, results) or results.failure(job):
                continue
            say(console, f"{number} of {len(jobs)}: {job}")
            try:
                run_job(job, out, results, references, console)
            except Exception as error:  # any failure: the other runs continue
                message = " ".join(f"{error}".split()) if isinstance(error, InputError) else f"{error!r}"
                results.add({"run": job.name, "failed": message, "trace": traceback.format_exc()})
                say(console, f"failed: {message}")
    if not all(is_done(job, results) or results.failure(job) for job in jobs):
        return None
    return collect(study, out, parts, jobs, results)


def open_folder(study: Study, out: Path) -> None:
    """Create the folder of a study, or check that it is the folder of this study.

    Raises:
        InputError: the folder belongs to something else.
    """
    file = out / NAME
    # Listed once: another process may be creating the file at this moment, from a hidden draft.
    names = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else [out.name]
    if out.is_dir() and NAME in names:
        try:
            name = read_object(file)["name"]
        except (ValueError, KeyError):
            content = json.dumps({"name": study.name})
            raise InputError(
                f"{file} is damaged; write {content} into it to resume, or choose another folder"
            ) from None
        if name != study.name:
            raise InputError(f'{out} contains the study "{name}", not "{study.name}"; choose another folder')
    elif out.exists() and names:
        raise InputError(f"{out} exists and is not a study; choose another folder")
    else:
        replace_text(file, json.dumps({"name": study.name}) + "\n")


def plan_parts(study: Study, out: Path, console: Console) -> list[Part]:
    """Plan all parts; for a budget in seconds, keep the number of images, so that runs resume with the same length.

    Raises:
        InputError: a part does not fit into memory.
    """
    file = out / "images.json"
    with claimed(out / "locks" / "images.lock", wait=True):
        with interpreting(file, "remove it to plan the parts again"):
            known = {part: int(images) for part, images in read_object(file).items()} if file.exists() else {}
        parts = lay_out(study, known, console)
        for part in parts:
            if not part.plan.fits:
                raise InputError(
                    f'part "{part.name}" needs {part.plan.peak / GIB:,.1f} GiB of memory and '
                    f"{part.plan.capacity / GIB:,.1f} GiB are available; "
                    "give it a smaller train.batch or network, parallel.accumulate, or parallel.checkpointing"
                )
        if study.budget.seconds is not None:
            images = {part.hash: part.recipe.train.images for part in parts}
            replace_text(file, json.dumps(known | images, indent=2) + "\n")
    return parts


def is_done(job: Job, results: Results) -> bool:
    """Whether all scores of a run exist."""
    return len(results.scores(job)) == len(job.part.evaluations) * job.sample_sets


def run_job(job: Job, out: Path, results: Results, references: dict[str, Reference], console: Console) -> None:
    """Train a run, then compute the scores that are missing."""
    folder, part = out / "runs" / job.name, job.part
    inner = console if console.is_terminal else Console(quiet=True)
    recipe = replace(part.recipe, train=replace(part.recipe.train, seed=job.seed))
    train(recipe, folder, console=inner)
    scored = results.scores(job)
    for (name, evaluation), sample_set in product(part.evaluations.items(), range(job.sample_sets)):
        if (name, sample_set) in scored:
            continue
        seed = job.sample_seed(evaluation, sample_set)
        settings = replace(evaluation.settings, seed=seed)
        source = str(scored_model(folder, evaluation))
        if measure := measure_of(settings):
            score: Result | None = measure.evaluate(source, settings, inner)
        else:
            score = evaluate(source, settings, inner, out=folder / "evaluations", measured=references)
        assert score is not None
        metrics = {canonical_name(key): value for key, value in score.metrics.items() if not key.endswith("_error")}
        results.add(
            {"run": job.name, "part": part.name, "seed": job.seed, "evaluation": name, "sample_set": sample_set}
            | {"evaluation_hash": evaluation.hash, "sample_seed": seed, "metrics": metrics, "notes": score.notes}
            | {"seconds": score.seconds, "grid": (score.folder / "grid.png").relative_to(out).as_posix()}
        )
        values = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        say(console, f"  {name}{': ' if name else ''}{values}")


def scored_model(run: Path, evaluation: EvaluationPlan) -> Path:
    """The run, or its checkpoint at the training images of the evaluation.

    Raises:
        InputError: the run kept no such checkpoint.
    """
    if evaluation.images is None:
        return run
    for checkpoint in checkpoints(run):
        if int(checkpoint.name) == evaluation.images:
            return checkpoint
    raise InputError(
        f"{run} kept no checkpoint at {evaluation.images:,} images, because the study scored its end only when it was "
        "trained; remove the folder to train it again"
    )


def collect(study: Study, out: Path, parts: list[Part], jobs: list[Job], results: Results) -> Findings:
    """Combine the results of all runs, and decide the claims."""
    by_run = {job.name: results.scores(job) for job in jobs}
    by_name = {part.name: part for part in parts}
    entries, grids = [], {}
    for name, (part_name, evaluation) in study.entries.items():
        part = by_name[part_name]
        axes = entry_axes(study, part, evaluation)
        entries.append(Entry(name, part_name, evaluation, axes, entry_values(part, evaluation, study, by_run, out)))
        lines = [by_run[part.folder(seed)].get((evaluation, 0)) for seed in study.seeds]
        if first := next((line for line in lines if line), None):
            grids[name] = out / first["grid"]
    failures = {str(job): message for job in jobs if (message := results.failure(job))}
    curves = {part.name: curve for part in parts if (curve := mean_curve(part, study, out))}
    device = pick_device(parts[0].recipe.train.device)
    notes = dict.fromkeys(note for lines in by_run.values() for line in lines.values() for note in line["notes"])
    verdicts = [decide(claim, entries) for claim in study.claims]
    return Findings(study, parts, entries, verdicts, failures, curves, grids, list(notes), describe(str(device)))


def entry_axes(study: Study, part: Part, evaluation: str) -> dict[str, float]:
    """Values of an entry that are known without training."""
    planned = part.evaluations[evaluation]
    images = planned.images or part.recipe.train.images
    axes: dict[str, float] = {
        "gmacs": part.plan.gmacs,
        "parameters": part.plan.parameters,
        "images": images,
        "training_gmacs": part.training_gmacs * images / part.recipe.train.images,
        "sampling_gmacs": part.plan.average_gmacs * planned.nfe,
        "steps": float(planned.settings.steps or 0),
        "guidance": float(planned.settings.guidance or 0),
        "reuse": float(planned.settings.reuse or 1),
    }
    dotted = {axis for axis in used_axes(study.plots, study.claims) if "." in axis}
    return axes | {axis: float(recipe_value(part.recipe, axis)) for axis in sorted(dotted)}


def entry_values(
    part: Part, evaluation: str, study: Study, by_run: dict[str, Scores], out: Path
) -> dict[str, dict[int, float]]:
    """Result -> seed -> mean over the sample sets, for seeds that have all of them; and the seconds of training."""
    values: dict[str, dict[int, float]] = {}
    for seed in study.seeds:
        name = part.folder(seed)
        lines = [by_run[name].get((evaluation, number)) for number in range(study.sample_sets)]
        metrics = [line["metrics"] for line in lines if line]
        if len(metrics) < study.sample_sets:
            continue
        for key in metrics[0]:
            values.setdefault(key, {})[seed] = sum(scores[key] for scores in metrics) / len(metrics)
        trained = scored_model(out / "runs" / name, part.evaluations[evaluation])
        values.setdefault("seconds", {})[seed] = trained_seconds(trained)
    return values


def mean_curve(part: Part, study: Study, out: Path) -> list[tuple[float, float]]:
    """(images, loss) averaged over the seeds; points that some of the seeds lack are omitted."""
    by_images: dict[int, list[float]] = {}
    for seed in study.seeds:
        with suppress(InputError):  # no metrics: the run failed before its first line
            for line in read_metrics(out / "runs" / part.folder(seed)):
                if line.get("loss") is not None:
                    by_images.setdefault(line["images"], []).append(line["loss"])
    most = max(map(len, by_images.values()), default=0)
    return [(images, sum(losses) / most) for images, losses in sorted(by_images.items()) if len(losses) == most]


def as_json(findings: Findings) -> dict[str, Any]:
    """All results as plain values: the content of study.json."""
    study = findings.study
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "budget": str(study.budget),
        "seeds": list(study.seeds),
        "draws": study.sample_sets,
        "parts": [
            {
                "name": part.name,
                "mark": part.hash,
                "parameters": part.plan.parameters,
                "gmacs": part.plan.gmacs,
                "images": part.recipe.train.images,
                "training_gmacs": part.training_gmacs,
            }
            for part in findings.parts
        ],
        "results": [
            {
                "name": entry.name,
                "part": entry.part,
                "evaluation": entry.evaluation,
                **entry.axes,
                "results": {
                    key: {"mean": entry.mean(key), "error": entry.error(key), "by_seed": by_seed}
                    for key, by_seed in entry.values.items()
                },
            }
            for entry in findings.entries
        ],
        "claims": [
            asdict(verdict.claim)
            | {"verdict": verdict.verdict, "note": verdict.note}
            | {"found": [asdict(comparison) for comparison in verdict.comparisons]}
            for verdict in findings.verdicts
        ],
        "failures": findings.failures,
        "notes": findings.notes,
        "hardware": findings.hardware,
    }


def summary(findings: Findings) -> Iterator[str]:
    """The verdicts in a few lines, for the screen."""
    for verdict in findings.verdicts:
        yield f"{verdict.claim.says}: {verdict.verdict}"
        yield from (f"  {comparison}" for comparison in verdict.comparisons)
    yield from (f"failed: {run}: {message}" for run, message in findings.failures.items())
