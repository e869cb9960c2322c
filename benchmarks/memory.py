"""Peak memory of training runs on this machine, against what `ditlab plan` says beforehand.

python benchmarks/memory.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ditlab.config import find_recipe, parse_recipe, read_toml
from ditlab.planning import GIB, plan

BASE = "glyphs-32 --model.name=DiT-B/4 --model.width=768 --model.depth=12 --model.heads=12 --model.patch=4"
RUNS = {
    "digits": "digits",
    "glyphs-32": "glyphs-32",
    "DiT-B/4, batch 32": f"{BASE} --train.batch=32",
    "DiT-B/4, batch 32, checkpointing": f"{BASE} --train.batch=32 --parallel.checkpointing",
    "DiT-B/4, batch 32 in two parts": f"{BASE} --train.batch=32 --parallel.accumulate=2",
}


def main() -> None:
    """Plan, run, compare."""
    print("| run | planned | measured | planned / measured |\n|---|---|---|---|")
    for name, told in RUNS.items():
        recipe, *options = told.split()
        path = find_recipe(recipe)
        planned = plan(parse_recipe(read_toml(path), options, str(path))).peak
        measured = peak_of(recipe, options)
        print(f"| {name} | {planned / GIB:.2f} GiB | {measured / GIB:.2f} GiB | {planned / measured:.2f} |", flush=True)


def peak_of(recipe: str, options: list[str]) -> float:
    """Bytes that such a run has at most, with a checkpoint at every step."""
    batch = next((int(each.split("=")[1]) for each in options if each.startswith("--train.batch=")), 128)
    few = [f"--train.images={3 * batch}", f"--train.save_every={batch}", "--train.precision=float32"]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        started = [sys.executable, "-m", "ditlab", "train", recipe, "--out", out, *options, *few]
        process = subprocess.Popen([*started, "--train.compile=never", "--train.preview_every=1_000_000"], stderr=-3)
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0, recipe
    return used.ru_maxrss * 1024


if __name__ == "__main__":
    main()
