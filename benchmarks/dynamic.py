"""Time of a sampler step of networks with less work: DyDiT at several budgets, and early exit.

    python benchmarks/dynamic.py [NETWORK ...] [--batch 4] [--rounds 5] [--steps 4] [--compile]

NETWORK is DiT-S/2 or DiT-B/2 (default: both), at 4x32x32 with 1000 classes. Weights are random. The routers of DyDiT
are random too, with thresholds at which they keep the budget's share, in patterns that differ from block to block and
from timestep to timestep; early exit has schedules of the same mean depth. All networks are prepared as by
`ditlab sample` and generate in turns, with guidance; the program prints medians of CPU seconds, the share of the GMACs
that was computed, and the share of the time. With two threads, set OMP_NUM_THREADS=2.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from ditlab.backbones import create
from ditlab.backbones.dydit import DyDiT
from ditlab.backbones.routing import depth_at
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Objective
from ditlab.evaluation import measure
from ditlab.inference.base import BasePipeline
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.inference.optimize.timing import interleaved
from ditlab.inference.pipeline import Pipeline

SHAPE = {"size": 32, "channels": 4, "classes": 1000, "learn_variance": False}
BUDGETS = (1.0, 0.7, 0.5, 0.3)
EXITS = {"exits 1": (1.0,), "exits 0.75": (1.0, 0.75, 0.5), "exits 0.5": (0.75, 0.5, 0.25)}


def noisy(name: str, **options: object) -> Pipeline:
    """A network with random weights, whose blocks are not the identity."""
    torch.manual_seed(0)
    net = create(name, **SHAPE, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Pipeline(net, Objective())


@torch.no_grad()
def dynamic(name: str, budget: float) -> Pipeline:
    """A DyDiT whose routers keep about the budget's share: that of heads, and its root of groups and of tokens."""
    pipe = noisy(name.replace("DiT", "DyDiT"), budget=budget)
    net = pipe.net
    assert isinstance(net, DyDiT)
    t = net.t_embedder(torch.linspace(0, 1000, 200))  # (T, D)
    for block in net.dynamic:
        for router, share in ((block.attn_rate.router, budget), (block.mlp_rate.router, budget**0.5)):
            router.weight.normal_()
            router.bias.zero_()
            scores = router(t)  # (T, H - 1)
            free = (share * block.heads - 1) / (block.heads - 1)  # the first is always kept
            router.bias.copy_(-torch.quantile(scores, 1 - free, dim=0) if free < 1 else torch.full((), 1e4))
        head = block.token_selection.mlp_head
        head[2].weight.normal_()
        head[2].bias.zero_()
    calibrate(net, budget**0.5)
    return pipe


def calibrate(net: DyDiT, share: float) -> None:
    """Set the thresholds of the token routers in one forward pass, so that each block keeps this share."""

    def adjust(module: torch.nn.Module, given: object, scores: torch.Tensor) -> torch.Tensor:
        threshold = torch.quantile(scores, 1 - share) if share < 1 else scores.min() - 1
        module.get_submodule("mlp_head.2").bias.sub_(threshold)
        return scores - threshold

    hooks = [block.token_selection.register_forward_hook(adjust) for block in net.dynamic]
    x, t, y = net.example(2, torch.Generator().manual_seed(0))
    net(x, 1000 * t, y)
    for hook in hooks:
        hook.remove()


def computed(pipe: Pipeline, times: torch.Tensor) -> float:
    """GMACs of one image, averaged over the steps."""
    net, whole = pipe.net, measure(lambda: create(**pipe.net.config | {"size": pipe.net.size})).gmacs
    clock = pipe.objective.process.clock(times[:-1]).float()
    if net.dynamic_depth:
        depth = net.config["depth"]
        skipped = 1 - sum(depth_at(clock, net.config["exits"], depth)) / depth / len(clock)
        block = DyDiT(
            **SHAPE | {key: net.config[key] for key in ("depth", "width", "heads", "patch")} | {"size": net.size}
        )
        return whole - skipped * block.dynamic_macs / 1e9
    shares = []
    for t in clock:
        trace = Trace(["compute"])
        x, _, y = net.example(2, torch.Generator().manual_seed(1))
        with torch.no_grad():
            net(x, t.expand(2), y, trace=trace)
        shares.append(trace.taps.get("compute", torch.ones(1)).mean())
    return whole - (1 - float(torch.stack(shares).mean())) * net.dynamic_macs / 1e9


def time_steps(name: str, batch: int, rounds: int, steps: int, compile: bool) -> Table:
    """Generate with all networks of one size in turns."""
    pipes = {name: noisy(name)}
    pipes |= {f"DyDiT {budget:g}": dynamic(name, budget) for budget in BUDGETS}
    pipes |= {label: noisy(name, exits=exits) for label, exits in EXITS.items()}
    labels = list(range(batch))

    def generate(pipe: BasePipeline) -> None:
        for _ in pipe.steps(labels, seeds=labels, sampler="euler", steps=steps, guidance=1.5):
            pass

    sides: dict[str, Callable[[], object]] = {}
    for label, pipe in pipes.items():
        ready = pipe.prepared("float32")
        if compile:
            with torch.no_grad():
                compile_blocks(ready.net, partial(ready.net, *ready.net.example(2 * batch)), dynamic=True)
        sides[label] = partial(generate, ready)
    seconds = interleaved(sides, rounds, clock=time.process_time)
    times = pipes[name].resolve(sampler="euler", steps=steps).times
    gmacs = {label: computed(pipe, times) for label, pipe in pipes.items()}
    table = Table("network", "GMACs", "share", "CPU seconds a step", "share", title=f"{name}, batch {batch}")
    for label in sides:
        table.add_row(
            label, f"{gmacs[label]:.2f}", f"{gmacs[label] / gmacs[name]:.3f}",
            f"{seconds[label] / steps:.3f}", f"{seconds[label] / seconds[name]:.3f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Measure each network, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=["DiT-S/2", "DiT-B/2"])
    for option, value in (("--batch", 4), ("--rounds", 5), ("--steps", 4)):
        parser.add_argument(option, type=int, default=value)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    for name in given.networks:
        Console().print(time_steps(name, given.batch, given.rounds, given.steps, given.compile))


if __name__ == "__main__":
    main()
