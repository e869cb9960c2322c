"""Peak memory of training on this machine.

python benchmarks/memory.py          # whole runs, compared with the estimate of `ditlab plan`
python benchmarks/memory.py steps    # one step of DiT-S/2, batch 16: float32, bfloat16, compiled, checkpointed
python benchmarks/memory.py tracked  # steps that are too large for this machine, by PyTorch's tracker of tensors
"""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from ditlab import create
from ditlab.config.reader import find_recipe, parse_recipe, read_toml
from ditlab.core.device import keep_freed_memory, peak_memory
from ditlab.core.units import GIB
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.profiling.plan import plan
from ditlab.training.memory import Make, held_in_training, memory_parts, peak
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


TRACKED = {  # network, batch, bfloat16, checkpointing
    "DiT-S/2, batch 16, float32": ("DiT-S/2", 16, False, False),
    "DiT-S/2, batch 16, bfloat16, checkpointing": ("DiT-S/2", 16, True, True),
    "DiT-XL/2, batch 32, bfloat16, checkpointing": ("DiT-XL/2", 32, True, True),
}


def tracked() -> None:
    """Compare the estimate with the tracked peak, for a CPU, of weights, gradients, moments and activations."""
    print("| step | planned | tracked | planned / tracked |\n|---|---|---|---|")
    for name, (network, batch, half, checkpointing) in TRACKED.items():
        tables = {"model": {"name": network}, "diffusion": {"process": "linear", "learn_variance": False}}
        recipe = parse_recipe(tables | {"parallel": {"checkpointing": checkpointing}})
        make = partial(create, network, learn_variance=False)
        parts = memory_parts(make, held_in_training(make, recipe), batch, recipe, 1, "cpu", half)
        planned = peak({part: 0.0 if part in UNTRACKED else size for part, size in parts.items()})
        found = tracked_peak(make, batch, half, checkpointing)
        print(f"| {name} | {planned / GIB:.2f} GiB | {found / GIB:.2f} GiB | {planned / found:.2f} |", flush=True)


UNTRACKED = ("process", "averages", "copy for the checkpoint")


def tracked_peak(make: Make, batch: int, half: bool, checkpointing: bool) -> float:
    """Peak of two steps in bytes, with tensors that have no values."""
    with FakeTensorMode():
        net = make().train()
        inputs = net.example(batch)
        optimizer = torch.optim.AdamW(net.parameters(), foreach=False)
        if checkpointing:
            keep_inputs_only(net)
        tracker = MemTracker()
        tracker.track_external(net, optimizer)
        with tracker:
            for _ in range(2):
                tracker.reset_mod_stats()  # it knows each module once
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = net(*inputs).float().square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    return float(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


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
        case ["tracked"]:
            tracked()
        case _:
            steps()
