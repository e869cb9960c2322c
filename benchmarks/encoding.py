"""Encoding PNG files compared with the autoencoder alone, and training on a cache compared with encoding on the fly.

    python benchmarks/encoding.py [IMAGES] [SIZE]     default: 512 images of 64 pixels

Both sides run interleaved in this process; medians of five rounds.
"""

import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from rich.console import Console

from ditlab.autoencoders import Latent
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import AutoencoderTraining, Preparation
from ditlab.data import Latents, open_dataset
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.data.images import write_folder
from ditlab.data.latents.encode import encode
from ditlab.training.autoencoder import begin
from ditlab.training.losses import batch_losses, make_context
from ditlab.training.setup import build

ROUNDS, BATCH = 5, 64


def main() -> None:
    """Measure both comparisons and print them."""
    count, size = (int(text) for text in (*sys.argv[1:], "512", "64")[:2]) if len(sys.argv) > 2 else (512, 64)
    console = Console(quiet=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_folder(Glyphs(size), home / "images", count)
        dataset = open_dataset(str(home / "images"), Preparation(size=str(size)))
        settings = AutoencoderTraining(device="cpu")
        autoencoder: Latent = begin(dataset, settings, torch.device("cpu")).autoencoder.eval().requires_grad_(False)
        batches = [dataset.fetch(part).x for part in torch.split(torch.arange(count), BATCH)]
        alone, whole, waited = [], [], []
        for i in range(ROUNDS + 1):
            start = time.perf_counter()
            for images in batches:
                autoencoder.encode(images).half()
            alone.append(time.perf_counter() - start)
            done = encode(dataset, "images", autoencoder, home / f"cache{i}", console, batch_size=BATCH)
            whole.append(done.seconds)
            waited.append(done.waited)
        print(
            f"{count} PNG files of {size} pixels: encoding takes {median(whole[1:]) / median(alone[1:]):.2f}x as long "
            f"as the autoencoder alone ({count / median(alone[1:]):,.0f} images/s); "
            f"{100 * median(waited[1:]):.1f} % of the time it waits for files"
        )
        compare_training(dataset, Latents(home / "cache0"), autoencoder)


def compare_training(images: object, cache: Latents, autoencoder: Latent) -> None:
    """Training steps of a small DiT on images that are encoded in each step, and on the cache."""
    model = {"name": "DiT-S/2", "width": 192, "depth": 4, "heads": 3}
    recipe = parse_recipe({"model": model, "train": {"batch": BATCH}})
    pipe = build(recipe, cache, autoencoder, torch.device("cpu"))
    pipe.net.train()
    run = make_context(pipe, recipe)
    times: dict[str, list[float]] = {"on the fly": [], "from the cache": []}
    order = cycle(torch.split(torch.arange(len(cache)), BATCH))
    for _ in range(ROUNDS + 1):
        for taken, data in zip(times.values(), (images, cache), strict=True):
            start = time.perf_counter()
            for _ in range(4):
                batch_losses(run, data.fetch(next(order)), 0, 0, torch.float32).total.mean().backward()
            taken.append((time.perf_counter() - start) / 4)
    slow, fast = (median(taken[1:]) for taken in times.values())
    print(f"training a 4-layer, 192-wide DiT on these latents: {slow / fast:.2f}x faster from the cache")


if __name__ == "__main__":
    main()
