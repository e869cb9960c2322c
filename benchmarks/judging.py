"""Peak memory and time of judging, for few and for many pictures: it must not grow with their number.

    python benchmarks/judging.py [COUNT ...] [--features D]

Pictures are made of their number as they are asked for, and the features are D random mixtures of their pixels, so
that next to nothing but the judging itself is measured. A process for each row.
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

REFERENCE = 10_000  # features that a reference keeps
TASKS = ("nothing", "precision, recall, kernel", "memorization")


class Numbered(Dataset):
    """8x8 grey pictures, each made of its number."""

    def __init__(self, count: int, seed: int) -> None:
        self.labels, self.classes, self.channels, self.size, self.seed = torch.zeros(count).long(), [], 1, (8, 8), seed

    def fetch(self, indices: Tensor) -> Batch:
        chance = torch.Generator()
        images = [torch.randint(256, (1, 8, 8), generator=chance.manual_seed(self.seed + int(i))) for i in indices]
        return Batch(torch.stack(images).byte(), Condition(label=self.labels[indices]))


class Mixtures(Features):
    """D random mixtures of the pixels."""

    name, weights = "mixtures", "0"

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.matrix = torch.randn(64, dimension, generator=torch.Generator().manual_seed(0))

    def __call__(self, images: Tensor) -> Extracted:
        return Extracted((images.float().flatten(1) / 255) @ self.matrix)


def main() -> None:
    """A row for each task and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("counts", type=int, nargs="*", default=[5_000, 50_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--task", default="")
    told = parser.parse_args()
    if told.task:
        print(json.dumps(measure(told.task, told.counts[0], told.features)))
        return
    print(f"features of {told.features} values\n\n| task | pictures | peak memory | seconds |\n|---|---|---|---|")
    for task in TASKS:
        for count in told.counts:
            command = [sys.executable, __file__, str(count), "--features", str(told.features), "--task", task]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {task} | {count:,} | {found['mib']:,.0f} MiB | {found['seconds']:.0f} |", flush=True)


def measure(task: str, count: int, dimension: int) -> dict[str, float]:
    """Peak of this process, and how long the task took."""
    features, quiet, started = Mixtures(dimension), Console(quiet=True), time.monotonic()
    drawn, real, unseen = (Numbered(size, seed * 10**7) for seed, size in enumerate((count, count, REFERENCE)))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        if task == TASKS[1]:
            kept = []
            for name, pictures, size in (("drawn", drawn, count), ("real", real, REFERENCE)):
                found = gather(pictures, min(size, count), features, quiet, keep=size, folder=home / name)
                assert found is not None
                assert found.statistics.kept is not None
                kept.append(found.statistics.kept)
            precision_recall(kept[1], kept[0])
            kernel_distance(kept[1], kept[0])
        elif task == TASKS[2]:
            memorization(drawn, real, unseen, features, home / "a.png", quiet, protocol={})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"mib": peak, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    main()
