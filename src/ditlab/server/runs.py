"""The progress of training runs."""

import math
from pathlib import Path
from typing import Any

from ditlab.config.reader import parse_recipe, read_toml
from ditlab.core.io import in_use
from ditlab.report.html import CURVES
from ditlab.report.run import previews, read_metrics

POINTS = 400  # most points of a curve


def run_progress(run: Path) -> dict[str, Any]:
    """State, curves and remaining time of a training run.

    Raises:
        InputError: a folder that is not a run.
        OSError: a folder that cannot be read.
    """
    entries = read_metrics(run)
    total = parse_recipe(read_toml(run / "recipe.toml"), source=run.name).train.images
    stride = -(-len(entries) // POINTS) or 1
    shown = entries[::-1][::stride][::-1]  # with the last one
    last: dict[str, Any] = entries[-1] if entries else {"images": 0}
    state = run_state(run, last["images"] >= total)
    rate, losses, files = last.get("images_per_second"), last.get("loss_by_time") or [], previews(run)
    known = state == "running" and rate and is_finite(rate)
    return {
        "id": run.name,
        "state": state,
        "images": last["images"],
        "total": total,
        "seconds_left": max(0, total - last["images"]) / rate if known else None,
        "curves": {
            key: [(entry["images"], entry[key]) for entry in shown if is_finite(entry.get(key))] for key in CURVES
        },
        "loss_by_time": [((i + 0.5) / len(losses), loss) for i, loss in enumerate(losses) if is_finite(loss)],
        "preview": int(files[-1].stem) if files else None,
    }


def run_state(run: Path, complete: bool) -> str:
    """ "running", "stopped" or "finished".

    Args:
        run: the folder, which the training process locks.
        complete: whether all images were seen.
    """
    working = in_use(run)
    if working or (working is None and not complete):  # without locks, a stopped run cannot be recognized
        return "running"
    return "finished" if complete else "stopped"


def is_finite(value: float | None) -> bool:
    """Whether it is a number that JSON can hold; a diverged run has others too."""
    return value is not None and math.isfinite(value)
