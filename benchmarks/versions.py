"""Two versions of ditlab side by side: forward pass, training step, sampling, import and cold start.

    git worktree add /tmp/before v0.1.0
    python benchmarks/versions.py /tmp/before [ROUNDS]

Both versions are loaded into one process and take turns; the medians of their paired ratios are printed with the
quartiles. Import and cold start need a process each, which take turns as well.
"""

import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cyclopts import run

HERE = Path(__file__).parents[1]
Work = Callable[[], object]
SMALL = {"width": 64, "depth": 4, "heads": 4, "qk_norm": True}  # so small that the overhead of Python is largest
NETWORKS: dict[str, dict[str, Any]] = {
    "DiT-S/4": {"name": "DiT-S/4"},
    "DiT, small": {"name": "DiT-S/4", **SMALL},
    "U-DiT-S": {"name": "U-DiT-S", "width": 64, "depths": (1, 1, 1, 1, 1)},
    "U-ViT-S/2": {"name": "U-ViT-S/2"},
}


def load(checkout: Path) -> Any:
    """Import the package of a checkout, beside other versions that are loaded already."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "ditlab"]:
        del sys.modules[name]
    sys.path.insert(0, str(checkout / "src"))
    try:
        package = importlib.import_module("ditlab")
        for name in ("create", "load", "Pipeline"):
            getattr(package, name)
        importlib.import_module("ditlab.diffusion.objective")
        package.objective = sys.modules["ditlab.diffusion.objective"].Objective
        package.cost = {name: module for name, module in sys.modules.items() if name.startswith("ditlab")}
    finally:
        sys.path.remove(str(checkout / "src"))
    return package


def as_its_own(package: Any, work: Work) -> Work:
    """Run the work with the modules of its version in `sys.modules`, for imports inside functions."""

    def whole() -> object:
        sys.modules.update(package.cost)
        return work()

    return whole


def forward(package: Any, options: dict[str, Any]) -> Work:
    """A forward pass with batch size 8."""
    torch.manual_seed(0)
    net = package.create(**options, size=16).eval()
    x, t, y = torch.randn(8, 4, 16, 16), torch.rand(8) * 1000, torch.arange(8)

    @torch.no_grad()
    def work() -> object:
        return net(x, t, y)

    return work


def step(package: Any, options: dict[str, Any]) -> Work:
    """Loss and gradient with batch size 8."""
    torch.manual_seed(0)
    net = package.create(**options, size=16, learn_variance=False)
    objective = package.objective()
    x0, eps, y = torch.randn(8, 4, 16, 16), torch.randn(8, 4, 16, 16), torch.arange(8)
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)

    def work() -> object:
        objective.loss(net, x0, y, t, eps).mean().backward()
        return net.zero_grad()

    return work


def sample(package: Any, options: dict[str, Any]) -> Work:
    """10 guided sampling steps for 4 images."""
    torch.manual_seed(0)
    net = package.create(**options, size=16, learn_variance=False).eval()
    pipe = package.Pipeline(net, package.objective(), package.cost["ditlab.autoencoders"].Absent())
    settings = {"num_inference_steps": 10, "sampler": "ab4", "guidance_scale": 2.0, "output_type": "latent"}
    return lambda: pipe([1, 2, 3, 4], seeds=range(4), **settings)


def ratios(before: Work, after: Work, rounds: int) -> list[float]:
    """Time of `after` over time of `before` for each round; their order alternates."""
    results = []
    for number in range(rounds + 1):
        seconds = {}
        for which in ((before, after), (after, before))[number % 2]:
            start = time.perf_counter()
            which()
            seconds[which] = time.perf_counter() - start
        results.append(seconds[after] / seconds[before])
    return results[1:]


def processes(code: str, before: Path) -> tuple[Work, Work]:
    """Run the same code in a new process, with either version."""

    def work(checkout: Path) -> Work:
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        return lambda: subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)

    return work(before), work(HERE)


def main(before: Path, /, rounds: int = 41) -> None:
    """Measure everything and print a table."""
    torch.set_num_threads(1)
    old, new = load(before), load(HERE)
    print("| measurement | time after / before | quartiles |\n|---|---|---|")

    def show(what: str, measured: list[float]) -> None:
        low, middle, high = statistics.quantiles(measured, n=4)
        print(f"| {what} | {middle:.3f} | {low:.3f} to {high:.3f} |", flush=True)

    for name, options in NETWORKS.items():
        for what, make in (("forward", forward), ("training step", step), ("sampling", sample)):
            sides = [
                as_its_own(package, as_its_own(package, partial(make, package, options))()) for package in (old, new)
            ]
            show(f"{what}, {name}", ratios(sides[0], sides[1], rounds))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        sys.modules.update(new.cost)
        net = new.create("DiT-S/2", **SMALL, size=8, channels=1, classes=10, learn_variance=False)
        new.Pipeline(net, new.objective()).save(model)
        cold = f"import ditlab; ditlab.load({str(model)!r})(3, num_inference_steps=4)"
        help_ = "import sys; sys.argv = ['ditlab', '--help']; from ditlab.cli import main; main()"
        for what, code in (
            ("import ditlab", "import ditlab"),
            ("ditlab --help", help_),
            ("cold start to the first image", cold),
        ):
            show(what, ratios(*processes(code, before), rounds // 2))


if __name__ == "__main__":
    run(main)
