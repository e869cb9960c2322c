"""The progress of training runs."""

import math
from pathlib import Path
from typing import Any

from ditlab.config.reader import parse_recipe, read_toml
from ditlab.report.html import CURVES
from ditlab.report.run import previews, progress, read_metrics

POINTS = 400  # most points of a curve


def run_progress(run: Path) -> dict[str, Any]:
    """State, curves and remaining time of a training run.

    Raises:
        InputError: a folder that is not a run.
        OSError: a folder that cannot be read.
    """
    entries = read_metrics(run)
    length = parse_recipe(read_toml(run / "recipe.toml"), source=run.name).train
    stride = -(-len(entries) // POINTS) or 1
    shown = entries[::-1][::stride][::-1]  # with the last one
    last: dict[str, Any] = entries[-1] if entries else {}
    now, losses, files = progress(run, length, entries), last.get("loss_by_time") or [], previews(run)
    return {
        "id": run.name,
        "state": now.state,
        "images": now.images,
        "total": now.total,
        "seconds_left": now.seconds_left,
        "seconds_since_entry": now.age,
        "curves": {
            key: [(entry["images"], entry[key]) for entry in shown if is_finite(entry.get(key))] for key in CURVES
        },
        "loss_by_time": [((i + 0.5) / len(losses), loss) for i, loss in enumerate(losses) if is_finite(loss)],
        "preview": int(files[-1].stem) if files else None,
    }


def is_finite(value: float | None) -> bool:
    """Whether it is a number that JSON can hold; a diverged run has others too."""
    return value is not None and math.isfinite(value)
