"""Train one model on clips of three aspect ratios and two lengths, and score it at each of them and at others.

    python benchmarks/any_size_clips.py RUN [--images N] [--count 60] [--sheet FILE]

RUN is a run folder; the model is trained first, or its training resumed, up to N clips. A handwritten digit of
scikit-learn moves evenly on a canvas, and bounces off its edges. For each size the program generates `count` clips, and
measures them as it measures clips of held-out digits on the same canvas: the accuracy of the digit classifier, the
share of clips of which all frames have the same class, speed and acceleration in pixels per frame (see
`ditlab.evaluation.features.motion`), and the brightness outside the digit. Clips of sizes and lengths that the training
did not see are generated in the same way.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

import ditlab
from ditlab.core.types import Batch
from ditlab.core.units import sides_of
from ditlab.data.base import Dataset
from ditlab.data.buckets import Buckets
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.features.motion import centers, cut_out, measured
from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import contact_sheet, evenly, frames, save_sheet

CANVASES, LENGTHS = ((24, 16), (20, 20), (16, 24)), (8, 16)
TRAINED = tuple((length, *canvas) for length in LENGTHS for canvas in CANVASES)
UNSEEN = ((16, 24, 24), (12, 20, 20), (16, 28, 20), (24, 20, 20))
DIGIT = 8  # side of a digit in pixels
SPEEDS = (0.8, 1.8)  # pixels from one frame to the next
COUNT = 12_000
RECIPE: dict[str, Any] = {
    "model": {"name": "VideoDiT-XS/2x4x4", "width": 128, "heads": 4, "qk_norm": True},
    "diffusion": {"process": "linear", "target": "x0", "weight": "velocity", "time_mean": 0.5},
    "data": {"source": "any-size-clips"},
    "optim": {
        "name": "muon", "lr": 2e-3, "betas": [0.9, 0.99], "weight_decay": 0.05, "warmup": 800, "schedule": "cosine"
    },
    "train": {
        "batch": 16, "ema": 0.995, "log_every": 800, "preview_every": 100_000, "save_every": 2_000, "device": "cpu",
        "precision": "float32", "compile": "never",
    },
    "sample": {"sampler": "ab4", "steps": 12, "guidance": 1.5},
}  # fmt: skip


class MovingOnCanvas(Dataset):
    """Gray clips of one moving digit each, of several sizes; the label is the digit."""

    def __init__(self, sizes: tuple[tuple[int, ...], ...], *, held_out: bool = False, count: int = COUNT) -> None:
        """Choose digit, place and motion of each clip.

        Args:
            sizes: (frames, height, width) of the clips, in equal numbers.
            held_out: whether the digits are those that training does not see.
            count: number of clips.
        """
        self.digits = held_out_digits() if held_out else digits()
        rng = np.random.default_rng([11, int(held_out)])
        self.chosen = torch.from_numpy(rng.integers(len(self.digits), size=count))
        values = torch.from_numpy(rng.random((count, 4)))
        angle, speed = 2 * np.pi * values[:, 0], SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * values[:, 1]
        self.velocity, self.first = speed[:, None] * torch.stack([angle.cos(), angle.sin()], 1), values[:, 2:]
        self.labels, self.classes = self.digits.labels[self.chosen], self.digits.classes
        of, largest = torch.arange(count) % len(sizes), max(map(math.prod, sizes))
        self.buckets = Buckets(sizes, of, largest, frame_multiple=2)
        self.channels, self.size = 1, sizes[self.buckets.frequent]

    def fetch(self, indices: Tensor) -> Batch:
        assert self.buckets is not None
        length, height, width = self.buckets.size_of(int(indices[0]))
        room = torch.tensor([width - DIGIT, height - DIGIT])
        steps = self.velocity[indices][:, None] * torch.arange(length)[:, None]
        folded = (self.first[indices][:, None] * room + steps).remainder(2 * room)  # (B, T, 2)
        places = (DIGIT / 2 + torch.minimum(folded, 2 * room - folded)).float().flatten(0, 1)
        images = self.digits.images[self.chosen[indices]].float().repeat_interleave(length, 0)
        x, y = (2 * (torch.arange(side) + 0.5 - places[:, i : i + 1]) / DIGIT for i, side in enumerate((width, height)))
        grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], -1)
        shown = F.grid_sample(images, grid, align_corners=False).round().byte()
        clips = shown.reshape(len(indices), length, 1, height, width).transpose(1, 2)
        return Batch(clips.contiguous(), self.condition(indices))


def scores(clips: Tensor, labels: Tensor) -> list[float]:
    """Accuracy, same digit, speed, acceleration, and brightness outside the digit, of clips (N, 1, T, H, W)."""
    shown = clips[:, 0]
    places = centers(shown)
    logits = digit_classifier()(cut_out(shown, places, DIGIT)).unflatten(0, shown.shape[:2])
    speed, acceleration, _, same = measured(places, logits.argmax(2)).mean(0).tolist()
    accuracy = (logits.softmax(2).mean(1).argmax(1) == labels).float().mean().item()
    span = [torch.arange(side) + 0.5 for side in (shown.shape[3], shown.shape[2])]
    far = [(part - places[..., i : i + 1]).abs() > DIGIT / 2 + 1 for i, part in enumerate(span)]  # (N, T, side)
    outside = (shown.float() * (far[0][:, :, None] | far[1][:, :, :, None])).sum() / shown.float().sum()
    return [accuracy, same, speed, acceleration, outside.item()]


@torch.no_grad()
def row(pipe: Pipeline, size: tuple[int, ...], count: int) -> tuple[list[str], Tensor]:
    """The scores of generated and of real clips of a size, and the generated clips."""
    labels = [i % 10 for i in range(count)]
    videos = pipe(labels, seeds=range(count), size=size, batch_size=25).videos
    clips = torch.from_numpy(np.stack(videos)).movedim(-1, 1)
    held_out = MovingOnCanvas((size,), held_out=True, count=count).fetch(torch.arange(count))
    generated, real = scores(clips, torch.tensor(labels)), scores(held_out.x, held_out.labels)
    forms = ("{:.0%}", "{:.0%}", "{:.2f}", "{:.2f}", "{:.1%}")
    cells = [f"{form.format(a)} ({form.format(b)})" for form, a, b in zip(forms, generated, real, strict=True)]
    return [sides_of(size), "yes" if size in TRAINED else "no", *cells], clips


def main() -> None:
    """Train if necessary, and print the scores at each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=30_000, help="clips of the training")
    parser.add_argument("--count", type=int, default=60, help="generated clips of each size")
    parser.add_argument("--sheet", type=Path, help="PNG file with film strips of each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    recipe = RECIPE | {"train": RECIPE["train"] | {"images": arguments.images}}
    ditlab.train(recipe, arguments.run, data=MovingOnCanvas(TRAINED))
    trained = time.process_time()
    pipe = ditlab.load(arguments.run, device="cpu")
    table = Table("size", "seen", "accuracy (real)", "same digit", "speed", "acceleration", "outside")
    strips = {}
    for size in (*TRAINED, *UNSEEN):
        cells, clips = row(pipe, size, arguments.count)
        table.add_row(*cells)
        strips[sides_of(size)] = [evenly(video) for video in frames(clips[3:5])]
    Console(width=120).print(table)
    print(f"{trained - started:.0f} s of CPU time for training, {time.process_time() - trained:.0f} s for the scores")
    if arguments.sheet:
        for name, rows in strips.items():
            save_sheet(
                contact_sheet(rows, [name] * len(rows)), arguments.sheet.with_stem(f"{arguments.sheet.stem}-{name}")
            )


if __name__ == "__main__":
    main()
