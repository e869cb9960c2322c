"""Train without a recipe on five sets of images, each for a stated time, with several seeds, and print one table.

No set is tuned alone: every run has what `ditlab train FOLDER` chooses. A run that was stopped resumes, and a finished
one is only read. It takes 2 hours and 12 minutes for each seed; give the machine no other work.

    python benchmarks/folders.py mnist package/src/digits FOLDERS/mnist        # see there
    ditlab data glyphs-64 --export FOLDERS/letters --count 5200
    python benchmarks/any_folder.py FOLDERS OUT
    python benchmarks/any_folder.py FOLDERS OUT --sets letters mnist --seeds 0
"""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cyclopts import App

import ditlab

SETS = {  # name -> source ({} is the folder of the sets), and minutes
    "digits 8x8": ("digits", 2),
    "letters 32x32": ("glyphs-32", 20),
    "letters 64x64": ("{}/letters", 30),
    "mnist 28x28": ("{}/mnist", 20),
    "emoji 64x64": ("emoji-64", 60),
}
COLUMNS = ("minutes", "images", "FD", "real-vs-real", "ratio", "correct", "of real", "precision", "recall", "copies")

app = App()


@app.default
def main(folders: Path, out: Path, *, sets: list[str] | None = None, seeds: list[int] | None = None) -> None:
    """Run what is missing, and print the table.

    Args:
        folders: the folder with the folders letters and mnist.
        out: folder of the runs.
        sets: beginnings of names of sets (default: all).
        seeds: seeds of the training.
    """
    chosen = [name for name in SETS if not sets or name.startswith(tuple(sets))]
    for seed in seeds or (0, 1, 2):
        for name in chosen:
            source, minutes = SETS[name]
            run = out / f"{name.replace(' ', '-')}-seed{seed}"
            if not (run / "score.json").exists():
                settings = {"train": {"seed": seed}}
                ditlab.train_folder(source.format(folders), run, minutes=minutes, settings=settings)
            print(table(out, chosen), flush=True)


def table(out: Path, names: list[str]) -> str:
    """The scores until now as a table in Markdown."""
    lines = ["| " + " | ".join(["data", "seeds", *COLUMNS]) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in names:
        runs = sorted(out.glob(f"{name.replace(' ', '-')}-seed*/score.json"))
        rows = [row(file.parent, SETS[name][1]) for file in runs]
        if rows:
            cells = [shown([each[column] for each in rows]) for column in COLUMNS]
            lines.append("| " + " | ".join([name, str(len(rows)), *cells]) + " |")
    return "\n".join(lines)


def row(run: Path, minutes: int) -> dict[str, float]:
    """The numbers of a run."""
    score: dict[str, Any] = json.loads((run / "score.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "minutes": minutes,
        "images": last["images"],
        "FD": score["fd"],
        "real-vs-real": score["real_fd"],
        "ratio": score["fd"] / score["real_fd"],
        "correct": score["accuracy"] or float("nan"),
        "of real": score["classifier_accuracy"] or float("nan"),
        "precision": score["precision"] / score["real_precision"],
        "recall": score["recall"] / score["real_recall"],
        "copies": score.get("memorization", {}).get("closer", float("nan")),
    }


def shown(values: list[float]) -> str:
    """A mean with its standard error over the seeds."""
    mean = fmean(values)
    digits = f"{mean:,.0f}" if mean >= 100 else f"{mean:.3g}"
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return digits if not error else f"{digits} ± {error:.2g}"


if __name__ == "__main__":
    app()
