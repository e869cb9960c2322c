"""Time and memory of a training step of VideoDiT over frames and size, and what buckets of clips leave unused.

    python benchmarks/clip_sizes.py

Each row is a process of its own, on one thread: CPU time of the forward and backward pass of one clip (the fastest of
three), and the growth of its peak memory in them. The clips for the buckets have usual aspect ratios, and durations
from an exponential distribution; no file is read.
"""

import multiprocessing
import resource
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ditlab.backbones import create
from ditlab.core.units import sides_of
from ditlab.data.buckets import Buckets, Native
from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.timing import Timing
from ditlab.data.clips.windows import windows

NAME, FRAMES, SIDES = "VideoDiT-XS/2x4x4", (8, 16, 32), (32, 64)
RATIOS = {(480, 480): 0.2, (480, 640): 0.25, (480, 854): 0.3, (854, 480): 0.15, (640, 480): 0.1}
FILES, SECONDS, RATE = 2_000, 3.0, 8.0
TIMING, NATIVE, BATCH = Timing(16, RATE), Native(65_536, 16), 32


def measured(size: tuple[int, int, int], space_time: str) -> tuple[int, float, float]:
    """Tokens, CPU seconds of forward and backward pass, and growth of memory in MiB."""
    torch.set_num_threads(1)
    net = create(NAME, size=size, channels=1, classes=10, learn_variance=False, space_time=space_time)
    x, t, y = net.example(1, torch.Generator().manual_seed(0))
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(3):
        started = time.process_time()
        net(x, t, y).square().mean().backward()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return net.tokens_at(size), min(seconds), (peak - before) / 1024


def sizes() -> Table:
    """The table over frames and size."""
    table = Table("frames x height x width", "tokens", "factorized", "full", "memory, factorized", "full")
    for side in SIDES:
        for frames in FRAMES:
            size, rows = (frames, side, side), []
            for form in ("factorized", "full"):
                with multiprocessing.get_context("fork").Pool(1) as pool:
                    rows.append(pool.apply(measured, (size, form)))
            times, memory = ([row[i] for row in rows] for i in (1, 2))
            table.add_row(
                sides_of(size), f"{rows[0][0]:,}", *(f"{value:.2f} s" for value in times),
                *(f"{value:.0f} MiB" for value in memory),
            )  # fmt: skip
    return table


def buckets() -> None:
    """Print what buckets of clips leave unused."""
    rng = np.random.default_rng(0)
    shapes = [[*RATIOS][i] for i in rng.choice(len(RATIOS), FILES, p=[*RATIOS.values()])]
    headers = [ClipHeader(s, False, d, 24.0) for s, d in zip(shapes, rng.exponential(SECONDS, FILES), strict=True)]
    cut = [window for i, header in enumerate(headers) for window in windows(i, header, TIMING, NATIVE)]
    frames = torch.tensor([window.frames for window in cut])
    found = Buckets.nearest([headers[window.file].size for window in cut], NATIVE)
    cropped = np.mean(found.losses)
    found = found.with_frames(frames, NATIVE, TIMING.frames)
    work = np.array([n * found.cost(size) for n, size in zip(found.batches(BATCH), found.sizes, strict=True)])
    times = np.array(found.counts) / np.array(found.batches(BATCH))  # batches of each bucket in an epoch
    mean = (work * times).sum() / times.sum()
    lost = 1 - int(frames.sum()) / sum(window.available for window in cut)
    print(
        f"{len(cut):,} clips from {FILES:,} files in {len(found.sizes)} buckets; padding 0 %; tokens of a batch "
        f"{work.min() / mean - 1:+.1%} to {work.max() / mean - 1:+.1%} from the mean, "
        f"{1 - mean / work.max():.1%} less than the largest on average; mean crop {cropped:.1%}, "
        f"frames left out by an epoch {lost:.1%}"
    )


if __name__ == "__main__":
    buckets()
    Console(width=120).print(sizes())
