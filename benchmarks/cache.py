"""Memory and speed of reading a latent cache with 10,000 and with 1,000,000 entries, each in a separate process.

python benchmarks/cache.py [FOLDER]     needs 1.1 GB of disk; prints one line per cache
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from ditlab.core.types import Condition
from ditlab.data import Latents, training_order
from ditlab.data.identity import Stamp, Stamps
from ditlab.data.latents.cache import write_index
from ditlab.data.latents.description import Description, write_description
from ditlab.data.latents.shards import MOMENTS, Entries, shard_file, write_shard

SHAPE = (8, 8, 8)  # four channels at 8x8, mean and log-variance: 1 KiB in fp16
BATCH, BATCHES, ROUNDS = 256, 400, 3
SIZES = (10_000, 1_000_000)


def write(folder: Path, entries: int) -> None:
    """Write a cache of random moments."""
    description = Description(
        source="random", images=entries, channels=3, size=(64, 64), preprocessing={}, autoencoder="none",
        shape=SHAPE, dtype="fp16", classes=[str(i) for i in range(10)], shard=4096,
    )  # fmt: skip
    write_description(folder, description)
    for number in range(description.shards):
        count = min(4096, entries - 4096 * number)
        generator = torch.Generator().manual_seed(number)
        moments = torch.randn(count, *SHAPE, generator=generator).half()
        labels = torch.arange(count) % 10
        stamps = Stamps.of((Stamp(str(i)) for i in range(count)), labels.numpy())
        write_shard(shard_file(folder, number), Entries({MOMENTS: moments}, Condition(label=labels), {}, None), stamps)
    write_index(folder, description)


def read(folder: Path) -> None:
    """Read batches in random order; print the increase of resident memory at its peak, and the rate."""
    process = psutil.Process()
    torch.randn(10).sum()
    before = process.memory_info().rss
    cache = Latents(folder)
    order = training_order(len(cache), BATCH, seed=0, seen=0)
    peak, rates = 0, []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(BATCHES):
            cache.fetch(next(order))
            peak = max(peak, process.memory_info().rss)
        rates.append(BATCH * BATCHES / (time.perf_counter() - start))
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    print(
        f"{len(cache):>9,} entries, {size / 2**20:8,.0f} MiB on disk: "
        f"{(peak - before) / 2**20:6.1f} MiB more resident memory at its peak, {sorted(rates)[1]:,.0f} entries/s"
    )


def main() -> None:
    """Write both caches, then read each in a new process."""
    if len(sys.argv) == 3 and sys.argv[1] == "--read":
        read(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        for entries in SIZES:
            write(Path(folder) / str(entries), entries)
            arguments = [sys.executable, os.path.abspath(__file__), "--read", str(Path(folder) / str(entries))]
            subprocess.run(arguments, check=True)


if __name__ == "__main__":
    main()
