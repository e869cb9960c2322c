"""The demonstration: a DiT trained on real handwriting, 1,000 new digits, and their score, measured in this run."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ditlab.config.reader import find_recipe, parse_recipe, read_toml
from ditlab.evaluation import score_digits
from ditlab.inference.folder import generate_images
from ditlab.report.sheets import contact_sheet, to_pil
from ditlab.training import train

SAMPLES = 1000
COLUMNS = 20  # of the grid, for each of ten digits


@dataclass(frozen=True)
class Demo:
    """The outcome, as `ditlab demo --json` prints it."""

    accuracy: float
    fd: float
    fd_floor: float
    classifier_accuracy: float
    train_seconds: float
    sample_seconds: float
    folder: Path

    def report(self, command: str) -> list[str]:
        """The outcome in words; `command` is how ditlab is called here."""
        return [
            f"trained in {self.train_seconds:.0f} s, drew {SAMPLES:,} digits in {self.sample_seconds:.0f} s",
            f"read as the digit asked for: {self.accuracy:.1%}  "
            f"(the classifier reads {self.classifier_accuracy:.1%} of held-out real digits rightly)",
            f"Frechet distance to held-out real digits: {self.fd:.3f}, "
            f"{self.fd / self.fd_floor:.2f} x the floor of {self.fd_floor:.3f} (as many real training digits)",
            f"pictures: {self.folder / 'grid.png'}",
            f"try next: {command} sample {self.folder} --labels 3 7 --seeds 0-7 --trajectory --out samples",
            f"          {command} train digits --out runs/mine --train.images=400_000",
        ]


def run_demo(out: Path, console: Console) -> Demo:
    """Train (or take up a run that is already there), sample, score."""
    path = find_recipe("digits")
    pipe = train(parse_recipe(read_toml(path), source=str(path)), out, console=console)
    labels = [i % 10 for i in range(SAMPLES)]
    started = time.monotonic()
    pixels = generate_images(pipe, labels, list(range(SAMPLES)), console, batch_size=250, options={})
    sample_seconds = time.monotonic() - started
    score = score_digits(pixels, torch.tensor(labels))
    images = to_pil(pixels)
    rows = [images[digit : COLUMNS * 10 : 10] for digit in range(10)]
    contact_sheet(rows, pipe.classes).save(out / "grid.png")
    return Demo(
        accuracy=score.accuracy,
        fd=score.fd,
        fd_floor=score.fd_floor,
        classifier_accuracy=score.classifier_accuracy,
        train_seconds=pipe.config["train_seconds"],
        sample_seconds=sample_seconds,
        folder=out,
    )
