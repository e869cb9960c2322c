"""Feature caching of a digits model: the fixed interval against the bound on the error, at equal sampling settings.

    python benchmarks/feature_caching.py MODEL OUT [--sampler ab4] [--steps 24] [--seeds 3]

All settings generate the same digits for each set of seeds. FD is the Frechet distance to held-out digits that `ditlab
demo` prints. The distance is that to the images without caching, relative to their norm. Whole evaluations are those
in which the inner part of the network was computed, for an image, of all. Times are CPU times of one thread. The table
is written to OUT.md, the plot to OUT.png; OUT.jsonl keeps what is finished.
"""

import json
import time
from pathlib import Path
from statistics import mean

import torch
from cyclopts import run

import ditlab
from ditlab.evaluation.digits import score_digits
from ditlab.inference.optimize.reuse import FeatureCache, Reuse
from ditlab.inference.optimize.reuse_error import ErrorReuse
from ditlab.report.plotting import plotting

COUNT, BATCH = 500, 250
LABELS = [i % 10 for i in range(COUNT)]
CACHES: dict[str, FeatureCache | None] = {"off": None}
CACHES |= {f"reuse {interval}": Reuse(interval) for interval in (2, 3, 4)}
CACHES |= {f"reuse_error {error:g}": ErrorReuse(error) for error in (0.1, 0.2, 0.4)}


def main(model: Path, out: Path, *, sampler: str = "ab4", steps: int = 24, seeds: int = 3) -> None:
    """Generate and score; lines that exist already are kept."""
    torch.set_num_threads(1)
    pipe = ditlab.load(model).prepared("float32")
    kept = out.with_suffix(".jsonl")
    lines = list(map(json.loads, kept.read_text().splitlines())) if kept.exists() else []
    options = {"sampler": sampler, "steps": steps}
    for seed in range(seeds):
        plain = None
        for name, cache in CACHES.items():
            if plain is not None and any((line["name"], line["seed"]) == (name, seed) for line in lines):
                continue
            line, latents = measured(pipe, cache, options, seed)
            plain = latents if plain is None else plain
            line |= {"name": name, "seed": seed, "distance": float((latents - plain).norm() / plain.norm())}
            if not any((known["name"], known["seed"]) == (name, seed) for known in lines):
                lines.append(line)
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            print(line, flush=True)
    out.with_suffix(".md").write_text(table(lines))
    print(table(lines))
    plot(lines, out.with_suffix(".png"), f"{sampler}, {steps} steps")


def measured(pipe, cache: FeatureCache | None, options: dict, seed: int) -> tuple[dict, torch.Tensor]:
    """Score a set of digits; returns the numbers and the latents (COUNT, 1, 8, 8)."""
    total = pipe.resolve(**options).evaluations
    if cache is not None:
        cache.computed = cache.asked = 0
    seen = [COUNT * seed + i for i in range(COUNT)]
    started = time.process_time()
    latents = torch.cat([*pipe.batches(LABELS, seen, BATCH, reuse=cache, **options)])
    seconds = time.process_time() - started
    score = score_digits(pipe.decode(latents), torch.tensor(LABELS))
    whole = total if cache is None else cache.computed / COUNT
    assert cache is None or cache.asked == COUNT * total
    numbers = {"whole": whole, "of": total, "ms": 1000 * seconds / COUNT, "fd": score.fd, "real": score.fd_floor}
    return numbers | {"accuracy": score.accuracy}, latents


def rows(lines: list[dict]) -> dict[str, dict[str, float]]:
    """The means over the seeds of each setting."""
    keys = ("whole", "of", "ms", "distance", "fd", "accuracy")
    names = dict.fromkeys(line["name"] for line in lines)
    return {name: {key: mean(line[key] for line in lines if line["name"] == name) for key in keys} for name in names}


def table(lines: list[dict]) -> str:
    """The means over the seeds as a Markdown table."""
    text = ["| setting | whole evaluations | CPU ms | distance | FD | classified correctly |", "|" + "---|" * 6]
    for name, row in rows(lines).items():
        text.append(
            f"| `{name}` | {row['whole']:.1f} of {row['of']:.0f} | {row['ms']:.2f} | {row['distance']:.4f} | "
            f"{row['fd']:.3f} | {100 * row['accuracy']:.1f} % |"
        )
    return "\n".join([*text, "", f"real-vs-real FD: {lines[0]['real']:.3f}", ""])


def plot(lines: list[dict], file: Path, title: str) -> None:
    """Plot the distance and the FD over the whole evaluations."""
    pyplot = plotting()
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    means = rows(lines)
    for axes, key, label in zip(panels, ("distance", "fd"), ("distance to no caching", "FD"), strict=True):
        for color, mark, start in (("#2a78d6", "o", "reuse "), ("#d9722e", "s", "reuse_error ")):
            chosen = {name: row for name, row in means.items() if name.startswith(start)}
            points = [(row["whole"], row[key]) for row in chosen.values()]
            axes.plot(*zip(*points, strict=True), color=color, marker=mark, label=start)
            for name, point in zip(chosen, points, strict=True):
                axes.annotate(name.removeprefix(start), point, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.set(xlabel=f"whole evaluations of {means['off']['of']:.0f}", ylabel=label, yscale="log", title=title)
        axes.grid(alpha=0.3)
    panels[1].axhline(means["off"]["fd"], color="gray", linestyle="--", linewidth=1, label="off")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    run(main)
