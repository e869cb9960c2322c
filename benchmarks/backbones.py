"""Time per GMAC of every architecture, relative to DiT: a forward pass (merged and packed) and a training step.

    python benchmarks/backbones.py [small|base|relatives] [ROUNDS]

All networks run interleaved in one process; medians. The reference is a DiT of similar cost; 1 is as fast per GMAC.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from ditlab import create
from ditlab.backbones import Backbone
from ditlab.core.device import keep_freed_memory
from ditlab.evaluation import measure
from ditlab.inference.optimize.packing import packed

SETS: dict[str, tuple[int, dict[str, dict[str, object]]]] = {  # batch size, networks of similar cost; the first is DiT
    "small": (
        8,
        {
            "DiT-S/2": {},
            "U-DiT-S": {},
            "U-ViT": {"width": 384, "depth": 11, "heads": 6, "patch": 2},
            "Skip-DiT-S/2": {},
            "ADM": {"width": 128, "multiples": (1, 2, 3), "depth": 1, "attention_at": (2, 4), "head_width": 32},
            "LDM": {"width": 128, "multiples": (1, 2, 3), "depth": 1, "attention_at": (2, 4), "head_width": 32},
        },
    ),
    "base": (4, {"DiT-B/2": {}, "U-DiT-B": {}}),
    "relatives": (
        4,
        {
            "DiT-S/2": {},
            "LightningDiT": {"width": 384, "depth": 12, "heads": 6, "patch": 2},
            "FiTv2": {"width": 384, "depth": 12, "heads": 6},
            "DiMSUM": {"width": 384, "depth": 8, "heads": 8},
            "DiC-S": {},
            "PDE-Transformer": {"width": 192, "heads": 6, "patch": 2, "window": 4, "depths": (2, 5, 8, 2, 5)},
        },
    ),
}


def main() -> None:
    """Measure all networks and print the table."""
    keep_freed_memory()
    batch, networks = SETS[sys.argv[1] if len(sys.argv) > 1 else "small"]
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    torch.manual_seed(0)
    gmacs = {name: measure(lambda n=name, o=options: create(n, **o)).gmacs for name, options in networks.items()}
    nets = {name: create(name, **options) for name, options in networks.items()}
    prepared = {name: packed(net.fused()).eval() for name, net in nets.items()}
    times = {pass_: {name: [] for name in nets} for pass_ in ("forward", "training step")}
    for _ in range(rounds + 1):
        for name, net in nets.items():
            times["forward"][name].append(forward(prepared[name], batch))
            times["training step"][name].append(training_step(net, batch))
    table = Table("network", "GMACs", *(f"{pass_}, {unit}" for pass_ in times for unit in ("GFLOP/s", "time per GMAC")))
    first = next(iter(nets))
    for name in nets:
        cells = []
        for pass_, factor in (("forward", 2), ("training step", 6)):
            seconds = {key: median(times[pass_][key][1:]) / gmacs[key] for key in (name, first)}
            cells += [f"{factor * batch / seconds[name]:,.0f}", f"{seconds[name] / seconds[first]:.2f}x"]
        table.add_row(name, f"{gmacs[name]:.2f}", *cells)
    Console(width=110).print(table)
    print(
        f"batch {batch} of 4x32x32, float32, {torch.get_num_threads()} threads, {rounds} rounds, "
        f"torch {torch.__version__}"
    )


def timed(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def inputs(net: Backbone, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch of random inputs."""
    return torch.randn(batch, net.channels, *net.size), torch.rand(batch) * 999, torch.arange(batch)


def forward(net: Backbone, batch: int) -> float:
    """Seconds of a forward pass."""
    batch_inputs = inputs(net, batch)
    with torch.inference_mode():
        return timed(lambda: net(*batch_inputs))


def training_step(net: Backbone, batch: int) -> float:
    """Seconds of a forward and backward pass."""
    batch_inputs = inputs(net.train(), batch)
    seconds = timed(lambda: net(*batch_inputs).square().mean().backward())
    net.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
