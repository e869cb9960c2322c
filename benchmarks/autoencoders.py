"""Train small autoencoders of letters, emoji and photos for the same time, and score them on held-out images.

    python benchmarks/autoencoders.py [--minutes 5] [--seeds 1] [--data letters emoji photos] [--out OUT]

Prints a table and writes OUT/reconstructions.png: the first held-out images of each set and their reconstructions.
Letters and emoji need `pip install 'ditlab[glyphs,emoji]'`, photos need scikit-image. A run that was stopped resumes.
"""

import argparse
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from folders import HELD_OUT, photos
from rich.console import Console

from ditlab.checkpoints import load_autoencoder
from ditlab.config.sections import AutoencoderTraining
from ditlab.core.device import keep_freed_memory
from ditlab.data import Dataset
from ditlab.data.base import InMemory
from ditlab.data.builtin.emoji import Emoji
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.report.sheets import contact_sheet, save_sheet, to_pil
from ditlab.training.autoencoder import reconstruct, split, train_autoencoder

SIDE, LETTERS, SHOWN = 64, 5200, 12
SIZES = (  # stride, latent channels, width; the first and the last have equally many latent values
    (4, 8, 64),
    (8, 16, 96),
    (8, 32, 96),
)
ENDLESS = 10**9  # images, so that the time ends a run


def main() -> None:
    """Train, score, print the table and write the image."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--out", type=Path, default=Path("autoencoders"))
    options = parser.parse_args()
    keep_freed_memory()
    print("| data | stride | latents | PSNR | SSIM | FD (real-vs-real) | images | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|")
    rows, names = [], []
    for name in options.data:
        dataset = DATA[name]()
        images = dataset.fetch(split(len(dataset), AutoencoderTraining())[1][:SHOWN]).x
        rows.append(to_pil(images))
        names.append(name)
        for sizes in SIZES:
            stride, channels, _ = sizes
            folders = [options.out / f"{name}-{stride}-{channels}-{seed}" for seed in range(options.seeds)]
            measure(name, dataset, sizes, folders, options.minutes)
            rows.append(to_pil(reconstruct(load_autoencoder(folders[0]), images, dataset.values)))
            names.append(f"{channels}x{SIDE // stride}x{SIDE // stride}")
    save_sheet(contact_sheet(rows, names), options.out / "reconstructions.png")


def measure(name: str, dataset: Dataset, sizes: tuple[int, int, int], folders: list[Path], minutes: float) -> None:
    """Train an autoencoder for each seed and print a row of the table: means, and the range of PSNR."""
    stride, channels, width = sizes
    results, started = [], time.process_time()
    for seed, folder in enumerate(folders):
        settings = AutoencoderTraining(
            stride=stride, latent_channels=channels, width=width, images=ENDLESS, minutes=minutes, seed=seed
        )
        results.append(train_autoencoder(dataset, settings, folder, Console(quiet=True), name))
    seconds = (time.process_time() - started) / len(folders)
    values = [result.psnr for result in results]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    distances = [result.fd for result in results if result.fd]
    fd = f"{mean(d.reconstructed for d in distances):.2f} ({mean(d.real for d in distances):.2f})" if distances else "-"
    side = SIDE // stride
    print(
        f"| {name} | {stride} | {channels}x{side}x{side} | {mean(values):.1f} dB{spread} | "
        f"{mean(result.ssim for result in results):.3f} | {fd} | "
        f"{mean(result.images for result in results):,.0f} | {seconds:,.0f} |",
        flush=True,
    )


def letters() -> InMemory:
    """The first letters of glyphs-64, rendered once."""
    dataset = Glyphs(SIDE, LETTERS)
    return InMemory(dataset.fetch(torch.arange(LETTERS)).x, dataset.labels, dataset.classes, features=dataset.features)


def emoji() -> Dataset:
    """The training images of emoji-64."""
    return Emoji(SIDE)


def photo_crops() -> InMemory:
    """The training crops that `benchmarks/folders.py photos` writes; crops of a photo overlap."""
    named = [pair for number, pair in enumerate(photos()) if number % HELD_OUT]
    classes = sorted({name for name, _ in named})
    pixels = torch.from_numpy(np.stack([values for _, values in named]))
    labels = torch.tensor([classes.index(name) for name, _ in named])
    return InMemory(pixels.permute(0, 3, 1, 2).contiguous(), labels, classes)


DATA = {"letters": letters, "emoji": emoji, "photos": photo_crops}

if __name__ == "__main__":
    main()
