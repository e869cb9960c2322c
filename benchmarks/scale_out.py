"""Time and memory of checkpoints, several processes, sharding and activation checkpointing on this machine.

    python benchmarks/scale_out.py [ROUNDS]

Whole training runs on the command line, in turns; medians of the speed that the runs log. With two processes, each has
half of the machine's cores, so that the speed can at best be equal.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

NET = "--model.width=512 --model.depth=8 --model.heads=8 --model.patch=4 --train.batch=32"  # 29 M parameters, 64 tokens
STEPS, BATCH, SAVE_EVERY = 16, 32, 8
RUNS = {
    "one process": (1, ""),
    "one process, a checkpoint every 8 steps": (1, f"--train.save_every={SAVE_EVERY * BATCH}"),
    "one process, activation checkpointing": (1, "--parallel.checkpointing"),
    "two processes, DDP": (2, ""),
    "two processes, sharded (FSDP2)": (2, "--parallel.shard=full"),
    "two processes, sharded, activation checkpointing": (2, "--parallel.shard=full --parallel.checkpointing"),
}


def main() -> None:
    """Run all in turns and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    rates: dict[str, list[float]] = {name: [] for name in RUNS}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for name, (processes, options) in RUNS.items():
            rate, memory[name] = run(processes, options.split())
            rates[name].append(rate)
    base = median(rates["one process"])
    print("| run | images/s | speed relative to one process | peak memory of a process |\n|---|---|---|---|")
    for name, measured in rates.items():
        print(f"| {name} | {median(measured):.1f} | {median(measured) / base:.2f}x | {memory[name] / 2**30:.2f} GiB |")


def run(processes: int, options: list[str]) -> tuple[float, float]:
    """Images per second after the first steps, and peak memory of the largest process in bytes."""
    fixed = (
        f"--train.images={STEPS * BATCH} --train.log_every={4 * BATCH} --train.compile=never --train.precision=float32"
    )
    rare = "--train.preview_every=1_000_000 --sample.sampler=euler --sample.steps=1 --sample.guidance=1"
    rare += "" if any("save_every" in option for option in options) else " --train.save_every=1_000_000"
    settings = [*NET.split(), *fixed.split(), *rare.split(), *options]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = ["-m", "ditlab", "train", "glyphs-32", "--out", str(out), *settings]
        if processes > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
        process = subprocess.Popen([sys.executable, *command], env=os.environ | threads, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)  # includes the largest of its child processes
        assert status == 0, command
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return median(line["images_per_second"] for line in lines[1:]), 1024.0 * used.ru_maxrss


if __name__ == "__main__":
    main()
