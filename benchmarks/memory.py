"""Peak memory of training on this machine.

python benchmarks/memory.py          # whole runs, compared with the estimate of `ditlab plan`
python benchmarks/memory.py steps    # one step of DiT-S/2, batch 16: float32, bfloat16, compiled, checkpointed
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ditlab import create
from ditlab.config.reader import find_recipe, parse_recipe, read_toml
from ditlab.core.device import keep_freed_memory, peak_memory
from ditlab.core.units import GIB
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.profiling.plan import plan
from ditlab.training.parallel import keep_inputs_only

BASE = "glyphs-32 --model.name=DiT-B/4 --model.width=768 --model.depth=12 --model.heads=12 --model.patch=4"
RUNS = {
    "digits": "digits",
    "glyphs-32": "glyphs-32",
    "DiT-B/4, batch 32": f"{BASE} --train.batch=32",
    "DiT-B/4, batch 32, checkpointing": f"{BASE} --train.batch=32 --parallel.checkpointing",
    "DiT-B/4, batch 32 in two parts": f"{BASE} --train.batch=32 --parallel.accumulate=2",
}


STEPS = {
    "float32": (),
    "bfloat16": ("bfloat16",),
    "bfloat16, compiled": ("bfloat16", "compiled"),
    "bfloat16, checkpointing": ("bfloat16", "checkpointing"),
}


def steps() -> None:
    """Measure each kind of step in a separate process."""
    print("| step | memory above weights and gradients |\n|---|---|")
    for name, options in STEPS.items():
        started = [sys.executable, __file__, "step", *options]
        print(f"| {name} | {subprocess.check_output(started, text=True).strip()} GiB |", flush=True)


def step(options: list[str]) -> None:
    """Print the peak of the second forward and backward pass, in GiB above the memory before the first one."""
    keep_freed_memory()
    torch.manual_seed(0)
    net = create("DiT-S/2").train()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    x, t, y = torch.randn(16, 4, 32, 32), torch.rand(16) * 999, torch.arange(16)
    if "checkpointing" in options:
        keep_inputs_only(net)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in options):
            loss = net(x, t, y).float().square().mean()
        loss.backward()

    if "compiled" in options:
        compile_blocks(net, lambda: net(x[:1], t[:1], y[:1]), dynamic=True)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    work()
    work()
    print(f"{(peak_memory(x.device) - before) / GIB:.2f}")


def main() -> None:
    """Print the planned and the measured peak of each run."""
    print("| run | planned | measured | planned / measured |\n|---|---|---|---|")
    for name, arguments in RUNS.items():
        recipe, *options = arguments.split()
        path = find_recipe(recipe)
        planned = plan(parse_recipe(read_toml(path), [*options, "--train.precision=float32"], str(path))).peak
        measured = peak_of(recipe, options)
        print(f"| {name} | {planned / GIB:.2f} GiB | {measured / GIB:.2f} GiB | {planned / measured:.2f} |", flush=True)


def peak_of(recipe: str, options: list[str]) -> float:
    """Peak memory of a run of three steps in bytes, with a checkpoint after every step."""
    batch = next((int(option.split("=")[1]) for option in options if option.startswith("--train.batch=")), 128)
    few = [f"--train.images={3 * batch}", f"--train.save_every={batch}", "--train.precision=float32"]
    few += ["--train.compile=never", "--sample.steps=2"]  # shortens the preview at the end, which needs little memory
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        started = [sys.executable, "-m", "ditlab", "train", recipe, "--out", out, *options, *few]
        process = subprocess.Popen([*started, "--train.preview_every=1_000_000"], stderr=-3)
        _, status, used = os.wait4(process.pid, 0)
    assert status == 0, recipe
    return used.ru_maxrss * 1024


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["step", *options]:
            step(options)
        case _:
            steps()
