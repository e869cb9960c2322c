"""The demo: train a DiT on handwritten digits, generate 1,000 digits, and score them."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ditlab.config.reader import find_recipe, parse_recipe, read_toml
from ditlab.evaluation import score_digits
from ditlab.inference.folder import generate_images
from ditlab.report.sheets import contact_sheet, save_sheet, to_pil
from ditlab.training import train

SAMPLES = 1000
COLUMNS = 20  # samples of each of the ten digits in the contact sheet


@dataclass(frozen=True)
class Demo:
    """Scores and times of the demo; the fields are the keys of the JSON output."""

    accuracy: float
    fd: float
    fd_floor: float  # real-vs-real FD: training digits against held-out digits
    classifier_accuracy: float
    train_seconds: float
    sample_seconds: float
    folder: Path

    def as_json(self) -> dict[str, Any]:
        """The demo for JSON."""
        return asdict(self)

    def report(self, command: str) -> list[str]:
        """The scores as lines of text; `command` is how ditlab was called."""
        return [
            f"trained in {self.train_seconds:.0f} s, generated {SAMPLES:,} digits in {self.sample_seconds:.0f} s",
            f"classified correctly: {100 * self.accuracy:.1f} % "
            f"(classifier accuracy on held-out real digits: {100 * self.classifier_accuracy:.1f} %)",
            f"Frechet distance to held-out real digits: {self.fd:.3f}, "
            f"{self.fd / self.fd_floor:.2f}x the real-vs-real FD of {self.fd_floor:.3f}",
            f"images: {self.folder / 'grid.png'}",
            f"try next: {command} sample {self.folder} --labels 3 7 --seeds 0-7 --trajectory",
            f"          {command} train digits --out runs/mine --train.images=400_000",
        ]


def run_demo(out: Path, console: Console) -> Demo:
    """Train (or use the finished run in `out`), generate digits, and score them."""
    path = find_recipe("digits")
    pipe = train(parse_recipe(read_toml(path), source=str(path)), out, console=console)
    labels = [i % 10 for i in range(SAMPLES)]
    started = time.monotonic()
    pixels = generate_images(pipe, labels, list(range(SAMPLES)), console, batch_size=250, options={})
    sample_seconds = time.monotonic() - started
    score = score_digits(pixels, torch.tensor(labels))
    images = to_pil(pixels)
    rows = [images[digit : COLUMNS * 10 : 10] for digit in range(10)]
    save_sheet(contact_sheet(rows, pipe.classes), out / "grid.png")
    return Demo(
        accuracy=score.accuracy,
        fd=score.fd,
        fd_floor=score.fd_floor,
        classifier_accuracy=score.classifier_accuracy,
        train_seconds=pipe.config["train_seconds"],
        sample_seconds=sample_seconds,
        folder=out,
    )
