"""Working a study off: every part with every seed is a training run of its own, scored when it is trained.

    study/study.json                 the name of the study; at the end all that was found
    study/results.jsonl              a line for each score, or failure, as they come
    study/runs/PART-seed0-1a2b3c4d   training runs, named after the hash of all that decides them
    study/report.html, summary.md    what people read; plots/ has the figures

What is done is not repeated. Processes that are started side by side share the runs: each takes what no other has.
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
from ditlab.core.io import claimed, replace_text
from ditlab.core.units import GIB
from ditlab.core.weights import checkpoints
from ditlab.evaluation.metrics import canonical_name
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import Reference
from ditlab.report.plotting import plotting
from ditlab.report.run import read_metrics
from ditlab.study.claims import Entry, Verdict, judge
from ditlab.study.grid import Part, Way, lay_out
from ditlab.study.recipe import Study, recipe_value, used_axes
from ditlab.training import train

NAME = "study.json"
Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A run: a part with a seed."""

    part: Part
    seed: int
    draws: int  # scores of each evaluation

    def picture_seed(self, way: Way, draw: int) -> int:
        """Equal ones in all parts, others for each seed of training: so scores pair, and the draw is in the error."""
        return way.settings.seed + self.seed * self.draws + draw

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.part.folder(self.seed)

    def __str__(self) -> str:
        return f"{self.part.name}, seed {self.seed}"


@dataclass(frozen=True)
class Findings:
    """All that came out of a study."""

    study: Study
    parts: list[Part]
    entries: list[Entry]
    verdicts: list[Verdict]
    failures: dict[str, str]  # run in words -> its last line
    curves: dict[str, list[tuple[float, float]]]  # part -> images and loss, mean over the seeds
    grids: dict[str, Path]  # entry -> picture of its first samples
    notes: list[str]  # what a reader of the scores must know
    hardware: dict[str, Any]


class Results:
    """The lines of results.jsonl, to which several processes may add."""

    def __init__(self, file: Path) -> None:
        self.file = file
        if file.exists() and not file.read_bytes().endswith(b"\n"):  # torn by a crash
            self.add()
        self.before = len(self.lines())  # of earlier starts, whose failures are tried again

    def lines(self) -> list[Line]:
        """Those that are whole."""
        found = []
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def add(self, line: Line | None = None) -> None:
        """Write one more, or end one that was torn."""
        with self.file.open("a", encoding="utf-8") as opened:
            opened.write((json.dumps(line) if line else "") + "\n")

    def scores(self, job: Job) -> dict[tuple[str, int], Line]:
        """Evaluation and draw -> the line of this run, as it is to be scored now."""
        return {
            (line["evaluation"], line["draw"]): line
            for line in self.lines()
            if line["run"] == job.name
            and "metrics" in line
            and (way := job.part.ways.get(line["evaluation"])) is not None
            and line["way"] == way.mark
            and line.get("picture_seed") == job.picture_seed(way, line["draw"])
        }

    def failure(self, job: Job) -> str | None:
        """Why this run failed since this process began; None if it did not."""
        lines = [line for line in self.lines()[self.before :] if line["run"] == job.name]
        return lines[-1].get("failed") if lines else None


def run_study(study: Study, out: Path, console: Console) -> Findings | None:
    """Train and score what is not there yet.

    Args:
        study: the recipe.
        out: the folder; the same call again goes on.
        console: where progress is shown.

    Returns:
        None if other processes still work on it.

    Raises:
        InputError: a part that cannot be or does not fit into memory, a folder of something else, or no matplotlib.
    """
    if process_place()[1] > 1:
        raise InputError("a study shares its runs among processes by itself; start it without torchrun, several times")
    plotting()  # before hours of work
    begin(study, out)
    parts = plan_parts(study, out, console)
    results, measured = Results(out / "results.jsonl"), dict[str, Reference]()
    # A seed of all parts, then the next.
    jobs = [Job(part, seed, study.draws) for seed, part in product(study.seeds, parts)]
    for number, job in enumerate(jobs, 1):
        with claimed(out / "locks" / f"{job.name}.lock") as mine:
            if not mine or is_done(job, results) or results.failure(job):
                continue
            console.print(f"{number} of {len(jobs)}: {job}", highlight=False, markup=False, soft_wrap=True)
            try:
                work(job, out, results, measured, console)
            except Exception as error:  # whatever it is, the others can go on
                told = " ".join(f"{error}".split()) if isinstance(error, InputError) else f"{error!r}"
                results.add({"run": job.name, "failed": told, "trace": traceback.format_exc()})
                console.print(f"failed: {told}", highlight=False, markup=False, soft_wrap=True)
    if not all(is_done(job, results) or results.failure(job) for job in jobs):
        return None
    return gather(study, out, parts, jobs, results)


def begin(study: Study, out: Path) -> None:
    """Take a folder that is new, or this study's.

    Raises:
        InputError: it is something else's.
    """
    file = out / NAME
    # Looked at once: another process may be taking it at this moment, by way of a hidden draft.
    there = [each.name for each in out.iterdir() if not each.name.startswith(".")] if out.is_dir() else [out.name]
    if out.is_dir() and NAME in there:
        try:
            name = json.loads(file.read_text(encoding="utf-8"))["name"]
        except (ValueError, KeyError, TypeError):
            told = json.dumps({"name": study.name})
            raise InputError(f"{file} is damaged; put {told} into it to go on, or give another --out") from None
        if name != study.name:
            raise InputError(f'{out} holds the study "{name}", not "{study.name}"; give another --out')
    elif out.exists() and there:
        raise InputError(f"{out} exists and is not a study; give another --out")
    else:
        replace_text(file, json.dumps({"name": study.name}) + "\n")


def plan_parts(study: Study, out: Path, console: Console) -> list[Part]:
    """The parts, once all of them fit; what their seconds come to in images is kept, so that they resume.

    Raises:
        InputError: a part that does not fit into memory.
    """
    file = out / "images.json"
    with claimed(out / "locks" / "images.lock", wait=True):
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        parts = lay_out(study, known, console)
        for part in parts:
            if not part.plan.fits:
                raise InputError(
                    f'part "{part.name}" needs {part.plan.peak / GIB:,.1f} GiB of memory and there are '
                    f"{part.plan.capacity / GIB:,.1f}; give it a smaller train.batch or network, parallel.accumulate, "
                    "or parallel.checkpointing"
                )
        if study.budget.seconds is not None:
            found = {part.mark: part.recipe.train.images for part in parts}
            replace_text(file, json.dumps(known | found, indent=2) + "\n")
    return parts


def is_done(job: Job, results: Results) -> bool:
    """Whether all its scores are there."""
    return len(results.scores(job)) == len(job.part.ways) * job.draws


def work(job: Job, out: Path, results: Results, measured: dict[str, Reference], console: Console) -> None:
    """Train, then score whatever has no score yet."""
    folder, part = out / "runs" / job.name, job.part
    inner = console if console.is_terminal else Console(quiet=True)
    recipe = replace(part.recipe, train=replace(part.recipe.train, seed=job.seed))
    train(recipe, folder, console=inner)
    there = results.scores(job)
    for (name, way), draw in product(part.ways.items(), range(job.draws)):
        if (name, draw) in there:
            continue
        seed = job.picture_seed(way, draw)
        found = evaluate(str(folder), replace(way.settings, seed=seed), inner, measured=measured)
        assert found is not None
        metrics = {canonical_name(key): value for key, value in found.metrics.items() if not key.endswith("_error")}
        results.add(
            {"run": job.name, "part": part.name, "seed": job.seed, "evaluation": name, "draw": draw, "way": way.mark}
            | {"picture_seed": seed, "metrics": metrics, "notes": found.notes, "seconds": found.seconds}
            | {"grid": str((found.folder / "grid.png").relative_to(out))}
        )
        told = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        console.print(f"  {name}{': ' if name else ''}{told}", highlight=False, markup=False, soft_wrap=True)


def gather(study: Study, out: Path, parts: list[Part], jobs: list[Job], results: Results) -> Findings:
    """What all runs say."""
    by_run = {job.name: results.scores(job) for job in jobs}
    entries, grids = [], {}
    for name, (part_name, evaluation) in study.entries.items():
        part = next(each for each in parts if each.name == part_name)
        entries.append(
            Entry(
                name, part_name, evaluation, axes(study, part, evaluation), values(part, evaluation, study, by_run, out)
            )
        )
        drawn = [by_run[part.folder(seed)].get((evaluation, 0)) for seed in study.seeds]
        if first := next((line for line in drawn if line), None):
            grids[name] = out / first["grid"]
    failures = {str(job): told for job in jobs if (told := results.failure(job))}
    curves = {part.name: curve for part in parts if (curve := mean_curve(part, study, out))}
    device = pick_device(parts[0].recipe.train.device)
    notes = dict.fromkeys(note for lines in by_run.values() for line in lines.values() for note in line["notes"])
    verdicts = [judge(claim, entries) for claim in study.claims]
    return Findings(study, parts, entries, verdicts, failures, curves, grids, list(notes), describe(str(device)))


def axes(study: Study, part: Part, evaluation: str) -> dict[str, float]:
    """Places of an entry that are known without training."""
    way = part.ways[evaluation]
    found: dict[str, float] = {
        "gmacs": part.plan.gmacs,
        "parameters": part.plan.parameters,
        "images": part.recipe.train.images,
        "training_gmacs": part.training_gmacs,
        "sampling_gmacs": part.plan.gmacs * way.calls,
        "steps": float(way.settings.steps or 0),
        "guidance": float(way.settings.guidance or 0),
    }
    dotted = {axis for axis in used_axes(study.plots, study.claims) if "." in axis}
    return found | {axis: float(recipe_value(part.recipe, axis)) for axis in sorted(dotted)}


def values(
    part: Part, evaluation: str, study: Study, by_run: dict[str, dict[tuple[str, int], Line]], out: Path
) -> dict[str, dict[int, float]]:
    """Result -> seed -> mean over the draws, of the seeds that are there whole; and the seconds of training."""
    found: dict[str, dict[int, float]] = {}
    for seed in study.seeds:
        name = part.folder(seed)
        lines = [by_run[name].get((evaluation, draw)) for draw in range(study.draws)]
        drawn = [line["metrics"] for line in lines if line]
        if len(drawn) < study.draws:
            continue
        for key in drawn[0]:
            found.setdefault(key, {})[seed] = sum(each[key] for each in drawn) / len(drawn)
        found.setdefault("seconds", {})[seed] = train_seconds(out / "runs" / name)
    return found


def train_seconds(run: Path) -> float:
    """What training took."""
    config = json.loads((checkpoints(run)[-1] / "config.json").read_text(encoding="utf-8"))
    return float(config["train_seconds"])


def mean_curve(part: Part, study: Study, out: Path) -> list[tuple[float, float]]:
    """Images and loss, mean over the seeds that came so far."""
    by_images: dict[int, list[float]] = {}
    for seed in study.seeds:
        with suppress(InputError):  # no run there: it failed before its first line
            for line in read_metrics(out / "runs" / part.folder(seed)):
                if line.get("loss") is not None:
                    by_images.setdefault(line["images"], []).append(line["loss"])
    most = max(map(len, by_images.values()), default=0)
    return [(images, sum(each) / most) for images, each in sorted(by_images.items()) if len(each) == most]


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything as plain values."""
    study = findings.study
    return {
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "budget": str(study.budget),
        "seeds": list(study.seeds),
        "draws": study.draws,
        "parts": [
            {
                "name": part.name,
                "mark": part.mark,
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
            asdict(each.claim) | {"verdict": each.verdict, "note": each.note, "found": [asdict(c) for c in each.found]}
            for each in findings.verdicts
        ],
        "failures": findings.failures,
        "notes": findings.notes,
        "hardware": findings.hardware,
    }


def summary(findings: Findings) -> Iterator[str]:
    """The claims in a few lines, for the screen."""
    for each in findings.verdicts:
        yield f"{each.claim.says}: {each.verdict}"
        yield from (f"  {found}" for found in each.found)
    yield from (f"failed: {run}: {told}" for run, told in findings.failures.items())
