"""Peak memory and time of an evaluation with few and with many images; the memory must not grow with their number.

    python benchmarks/evaluation.py [COUNT ...] [--features D]

Each image is generated from its index when it is needed, and the features are D random mixtures of its pixels, so that
almost only the evaluation is measured. Each row of the table is measured in a separate process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from ditlab.core.types import Batch, Condition
from ditlab.data import Dataset
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.gather import gather
from ditlab.evaluation.memorization import memorization
from ditlab.evaluation.metrics import kernel_distance, precision_recall

REFERENCE = 10_000  # feature vectors that a reference keeps
TASKS = ("baseline (no evaluation)", "precision, recall, kernel distance", "memorization")


class Numbered(Dataset):
    """8x8 gray images, each generated from its index."""

    def __init__(self, count: int, seed: int) -> None:
        self.labels, self.classes, self.channels, self.size, self.seed = torch.zeros(count).long(), [], 1, (8, 8), seed

    def fetch(self, indices: Tensor) -> Batch:
        generator = torch.Generator()
        images = [torch.randint(256, (1, 8, 8), generator=generator.manual_seed(self.seed + int(i))) for i in indices]
        return Batch(torch.stack(images).byte(), Condition(label=self.labels[indices]))


class Mixtures(Features):
    """D random mixtures of the pixels as features."""

    name, weights = "mixtures", "0"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.matrix = torch.randn(64, dimension, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: Tensor) -> Extracted:
        return Extracted((images.float().flatten(1) / 255) @ self.matrix)


def main() -> None:
    """Print one row per task and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("counts", type=int, nargs="*", default=[5_000, 50_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--task", default="")
    options = parser.parse_args()
    if options.task:
        print(json.dumps(measure(options.task, options.counts[0], options.features)))
        return
    print(f"features of {options.features} values\n\n| task | images | peak memory | time |\n|---|---|---|---|")
    for task in TASKS:
        for count in options.counts:
            command = [sys.executable, __file__, str(count), "--features", str(options.features), "--task", task]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {task} | {count:,} | {result['mib']:,.0f} MiB | {result['seconds']:.0f} s |", flush=True)


def measure(task: str, count: int, dimension: int) -> dict[str, float]:
    """Peak memory of this process, and the seconds that the task took."""
    features, quiet, started = Mixtures(dimension), Console(quiet=True), time.monotonic()
    generated, real, held_out = (Numbered(size, seed * 10**7) for seed, size in enumerate((count, count, REFERENCE)))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        if task == TASKS[1]:
            kept = []
            for name, images, size in (("generated", generated, count), ("real", real, REFERENCE)):
                gathered = gather(images, min(size, count), features, quiet, keep=size, folder=home / name)
                assert gathered is not None
                assert gathered.statistics.kept is not None
                kept.append(gathered.statistics.kept)
            precision_recall(kept[1], kept[0])
            kernel_distance(kept[1], kept[0])
        elif task == TASKS[2]:
            memorization(generated, real, held_out, features, home / "a.png", quiet, protocol={})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"mib": peak, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()
