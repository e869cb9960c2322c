"""Few-step models of the digits: train the teacher, distill it to one, two and four steps, and compare all.

    python benchmarks/few_steps.py OUT [--steps 1 2 4] [--seeds 3] [--images N] [--correction N] [--interval 0.1 0.7]

Each model generates 1,000 digits per set of seeds. FD is the Frechet distance to held-out digits that `ditlab demo`
prints, beside the real-vs-real FD; recall is that of Kynkaanniemi et al. in the same features. Diversity is the mean
distance between images of one class, relative to the teacher. "closer" is the probability that an image is closer to
the training images than a held-out image is (0.5: no copies). Times are CPU seconds of one thread; those of an image
are medians of runs that take turns. The table is written to OUT/few_steps.md, the plot to OUT/few_steps.png.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median

import torch
from cyclopts import run
from torch import Tensor

import ditlab
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation.digits import score_digits
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.metrics import neighbor_ratio, precision_recall
from ditlab.inference.base import BasePipeline
from ditlab.report.plotting import plotting

COUNT, BATCH, TIMED, ROUNDS = 1000, 250, 100, 5
LABELS = [i % 10 for i in range(COUNT)]
TEACHER = {  # sampling settings of the teacher; "interval" limits guidance to the times of --interval
    "teacher, ab4 12 steps": {},
    "teacher, ab4 12 steps, interval": {},
    "teacher, ab2 4 steps": {"steps": 4, "sampler": "ab2"},
    "teacher, euler 1 step": {"steps": 1, "sampler": "euler"},
}


@dataclass
class Row:
    """The scores of a model with its settings."""

    name: str
    evaluations: int
    fd: list[float]  # of each set of seeds
    real: float  # real-vs-real FD
    recall: float
    accuracy: float
    distance: float  # mean distance between images of one class
    closer: float
    training: float  # CPU seconds
    ms: float = 0.0  # CPU milliseconds for an image


def main(
    out: Path,
    *,
    steps: tuple[int, ...] = (1, 2, 4),
    seeds: int = 3,
    images: int | None = None,
    correction: int = 0,
    interval: tuple[float, float] = (0.1, 0.7),
) -> None:
    """Train, distill, score and time; models and scores that exist already are kept."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    models = {"teacher": trained(out / "teacher", partial(ditlab.train, "digits"))}
    for count in steps:
        options = {"steps": count, "images": images, "correction": correction, "guidance_interval": interval}
        models[f"student of {count}"] = trained(
            out / f"steps-{count}", partial(ditlab.distill, out / "teacher", **options)
        )
    methods = {name: (models["teacher"], options) for name, options in TEACHER.items()}
    for name, (_, settings) in methods.items():
        if name.endswith("interval"):
            settings["guidance_interval"] = interval
    methods |= {name: (model, {}) for name, model in models.items() if name != "teacher"}
    rows, kept = [], out / "scores.jsonl"
    known = {row["name"]: Row(**row) for row in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    for name, ((pipe, seconds), options) in methods.items():
        row = known.get(name) or scored(name, pipe, options, seeds, seconds)
        rows.append(row)
        if name not in known:
            with kept.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        print(f"{name}: FD {mean(row.fd):.3f}, {mean(row.fd) / row.real:.2f}x real-vs-real", flush=True)
    times = timed({name: (pipe, options) for name, ((pipe, _), options) in methods.items()})
    for row in rows:
        row.ms = times[row.name]
    (out / "few_steps.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    (out / "few_steps.md").write_text(table(rows))
    print(table(rows))
    plot(rows, out / "few_steps.png")


def trained(folder: Path, train) -> tuple[BasePipeline, float]:
    """A model, and the CPU seconds of its training, which are kept in a file beside the folder."""
    file = folder.parent / f"{folder.name}.seconds"
    if not file.exists():
        started = time.process_time()
        train(folder)
        file.write_text(str(time.process_time() - started))
    return ditlab.load(folder).prepared("float32"), float(file.read_text())


def generated(pipe: BasePipeline, options: dict, first: int) -> Tensor:
    """Generate COUNT digits (COUNT, 1, 8, 8) uint8 with consecutive seeds."""
    latents = pipe.batches(LABELS, list(range(first, first + COUNT)), BATCH, **options)
    return torch.cat([pipe.decode(part) for part in latents])


def scored(name: str, pipe: BasePipeline, options: dict, seeds: int, seconds: float) -> Row:
    """Score all sets of seeds."""
    sets = [generated(pipe, options, COUNT * number) for number in range(seeds)]
    labels, scores = torch.tensor(LABELS), []
    scores = [score_digits(images, labels) for images in sets]
    classifier, held_out, train = digit_classifier(), held_out_digits().images, digits().images
    with torch.no_grad():
        real = classifier.embed(held_out).numpy()
        recall = mean(precision_recall(real, classifier.embed(images).numpy())[1] for images in sets)
    unseen = nearest(held_out, train)
    return Row(
        name,
        pipe.resolve(**options).evaluations,
        [score.fd for score in scores],
        scores[0].fd_floor,
        recall,
        mean(score.accuracy for score in scores),
        mean(spread(images, labels) for images in sets),
        mean(neighbor_ratio(nearest(images, train), unseen)[1] for images in sets),
        seconds,
    )


def flat(images: Tensor) -> Tensor:
    """Pixels (N, D) in -1..1."""
    return images.flatten(1).double() / 127.5 - 1


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Distance (N,) of each image to the nearest of the others, in pixels of -1..1."""
    return torch.cdist(flat(images), flat(others)).min(1).values


def spread(images: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of one class, in pixels of -1..1."""
    return mean(torch.pdist(flat(images[labels == label])).mean().item() for label in labels.unique())


def timed(methods: dict[str, tuple[BasePipeline, dict]]) -> dict[str, float]:
    """CPU milliseconds for an image with each method, the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS + 1):
        for name, (pipe, options) in methods.items():
            started = time.process_time()
            for _ in pipe.batches(LABELS[:TIMED], list(range(TIMED)), TIMED, **options):
                pass
            seconds[name].append(time.process_time() - started)
    return {name: 1000 * median(values[1:]) / TIMED for name, values in seconds.items()}


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    columns = "model, NFE, ms an image, FD, x real-vs-real, recall, accuracy, diversity, closer, CPU s of training"
    lines = [f"| {columns.replace(', ', ' | ')} |", "|" + "---|" * 10]
    for row in rows:
        fd, diversity = mean(row.fd), row.distance / rows[0].distance
        values = [row.name, row.evaluations, f"{row.ms:.3f}", f"{fd:.3f}", f"{fd / row.real:.2f}", f"{row.recall:.3f}"]
        values += [f"{100 * row.accuracy:.1f} %", f"{diversity:.3f}", f"{row.closer:.3f}", f"{row.training:.0f}"]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join([*lines, "", f"real-vs-real FD: {rows[0].real:.3f}", ""])


def plot(rows: list[Row], file: Path) -> None:
    """Plot FD over the CPU time of an image."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for color, mark, group in (("#2a78d6", "o", "student"), ("#d9722e", "s", "teacher")):
        chosen = [row for row in rows if row.name.startswith(group)]
        axes.scatter([row.ms for row in chosen], [mean(row.fd) for row in chosen], color=color, marker=mark, zorder=3)
    for row in rows:
        axes.annotate(row.name, (row.ms, mean(row.fd)), xytext=(8, -3), textcoords="offset points", fontsize=8)
    axes.axhline(rows[0].real, color="gray", linestyle="--", linewidth=1)
    axes.annotate("real-vs-real", (max(row.ms for row in rows), rows[0].real), ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="CPU time for an image (ms)", ylabel="FD to held-out digits")
    times, scores = (0.2, 0.5, 1, 2, 5, 10, 20), (0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 8)
    axes.set_xticks(times, [f"{value:g}" for value in times], minor=False)
    axes.set_yticks(scores, [f"{value:g}" for value in scores], minor=False)
    axes.minorticks_off()
    axes.set_xlim(min(row.ms for row in rows) / 1.5, max(row.ms for row in rows) * 3)
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    run(main)
