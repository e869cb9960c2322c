"""Checkpoints of a sharded run: how long training stands still, and the memory of the first process.

    python benchmarks/checkpoints.py [PROCESSES ...]

For networks of two sizes, each process sets up a run, takes a step, and saves twice; the second time is measured, when
all places in memory are known. "whole" gathers the state in the first process, "sharded" copies each process's part.
"""

import gc
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console

from ditlab.core.device import peak_memory, reset_peak_memory
from ditlab.training.api import joined_run
from ditlab.training.setup import begin, set_up

DEPTHS = (2, 8)  # of a network of width 512
ONE_BILLION = 1e9
FORK = multiprocessing.get_context("fork")


def recipe(depth: int, checkpoint: str) -> dict[str, dict[str, object]]:
    """The settings of a run."""
    return {
        "model": {"name": "DiT", "width": 512, "depth": depth, "heads": 8, "patch": 4},
        "data": {"source": "digits"},
        "train": {"images": 64, "batch": 32, "precision": "float32", "compile": "never", "device": "cpu"},
        "parallel": {"shard": "full", "checkpoint": checkpoint, "check_memory": False},
    }


def save(depth: int, checkpoint: str, out: str) -> dict[str, float]:
    """Save twice in this process; seconds and bytes of the second time."""
    torch.set_num_threads(1)
    with joined_run(recipe(depth, checkpoint), out, console=Console(quiet=True)) as job:
        set_up(job)
        begin(job)
        for parameter in job.state.parameters():
            parameter.grad = torch.zeros_like(parameter)
        job.state.optimizer.step()
        job.state.optimizer.zero_grad()
        count = sum(parameter.numel() for parameter in job.net.parameters())
        before, device = float(psutil.Process().memory_info().rss), torch.device("cpu")
        result: dict[str, float] = {}
        for _ in range(2):
            job.state.seen += 32
            gc.collect()
            job.place.wait()
            reset_peak_memory(device)
            started = time.perf_counter()
            job.folder.save(job.state, job.pipe, job.recipe.train, job.place)
            stall = time.perf_counter() - started
            job.folder.finish()
            written = time.perf_counter() - started
            share = 16 * count / job.place.world
            result = {
                "count": count,
                "stall": stall,
                "written": written,
                "memory": (peak_memory(device) - before) / share,
            }
        return result


def one(rank: int, world: int, port: int, depth: int, checkpoint: str, out: str) -> None:
    """A process of a run; the first one writes what it measured."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    result = save(depth, checkpoint, out)
    if rank == 0:
        Path(out, "result.json").write_text(json.dumps(result), encoding="utf-8")


def measure(world: int, depth: int, checkpoint: str) -> dict[str, float]:
    """Start the processes of a run, and return what the first one measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "run"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        processes = [
            FORK.Process(target=one, args=(rank, world, port, depth, checkpoint, out)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return dict(json.loads(Path(out, "result.json").read_text(encoding="utf-8")))


def main() -> None:
    """Print the table; the time at a billion parameters is continued linearly from the two sizes."""
    worlds = [int(word) for word in sys.argv[1:]] or [2, 4]
    print("| processes | checkpoint | training stands still | at 1 B parameters | until written | memory of rank 0 |")
    print("|---|---|---|---|---|---|")
    for world in worlds:
        for checkpoint in ("whole", "sharded"):
            small, large = (measure(world, depth, checkpoint) for depth in DEPTHS)
            slope = (large["stall"] - small["stall"]) / (large["count"] - small["count"])
            billion = large["stall"] + slope * (ONE_BILLION - large["count"])
            print(
                f"| {world} | {checkpoint} | {large['stall']:.2f} s | {billion:.1f} s | {large['written']:.1f} s | "
                f"{large['memory']:.2f} of its share |",
                flush=True,
            )


if __name__ == "__main__":
    main()
