"""Time of a forward pass over batch size, tokens and model size; guidance in one network call or two.

    python benchmarks/growth.py OUT [ROUNDS]

Eager float32; all points of a curve run in turns; medians. Writes OUT/growth.json and OUT/growth.png. The slope is that
of log time over log cost: 1 is proportional, and below 1 there is a fixed overhead.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ditlab import create
from ditlab.backbones import Backbone
from ditlab.core.device import keep_freed_memory
from ditlab.evaluation import measure
from ditlab.inference.optimize.timing import interleaved

BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (8, 16, 32, 48, 64)  # sides of the latent; with patch 2 there is one token per four positions
SIZES = ("S", "B", "L", "XL")


def forward(net: Backbone, batch: int) -> Callable[[], object]:
    """A call of the network."""
    x = torch.randn(batch, net.channels, *net.size)
    t, y = torch.full((batch,), 500.0), torch.arange(batch) % net.classes

    @torch.no_grad()
    def run() -> object:
        return net(x, t, y)

    return run


def main() -> None:
    """Measure, print and plot."""
    keep_freed_memory()
    out, rounds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    out.mkdir(parents=True, exist_ok=True)
    small = create("DiT-S/2").eval()
    lines = {
        "batch": interleaved({n: forward(small, n) for n in BATCHES}, rounds),
        "tokens": interleaved(
            {(side // 2) ** 2: forward(create("DiT-S/2", size=side).eval(), 2) for side in SIDES}, rounds
        ),
        "GMACs": dict(sizes(rounds)),
    }
    results = {name: {"times": times, "slope": slope(times)} for name, times in lines.items()}
    results["halves"] = dict(halves(small, rounds))
    (out / "growth.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    plot(results, out / "growth.png")


def sizes(rounds: int) -> list[tuple[float, float]]:
    """GMACs and seconds per image for each size of DiT with patch 2."""
    nets = {name: create(f"DiT-{name}/2").eval() for name in SIZES}
    costs = {name: measure(lambda name=name: create(f"DiT-{name}/2")).gmacs for name in SIZES}
    times = interleaved({name: forward(net, 2) for name, net in nets.items()}, rounds)
    return [(costs[name], times[name] / 2) for name in SIZES]


def halves(net: Backbone, rounds: int) -> list[tuple[int, float]]:
    """For each batch size: time of two calls (with and without the class) over that of one call with both."""
    results = []
    for batch in (1, 4, 16):
        one, both = forward(net, batch), forward(net, 2 * batch)
        times = interleaved({"split": lambda one=one: (one(), one()), "together": both}, rounds)
        results.append((batch, times["split"] / times["together"]))
    return results


def slope(times: dict[float, float]) -> float:
    """Slope of log seconds over log cost."""
    return float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0])


def plot(results: dict[str, dict[str, dict[float, float]]], file: Path) -> None:
    """Plot one panel per curve."""
    import matplotlib.pyplot as plt

    titles = {
        "batch": "DiT-S/2, 256 tokens",
        "tokens": "DiT-S/2, batch 2",
        "GMACs": "DiT-S, B, L, XL at patch 2, batch 2",
    }
    names = {"batch": "batch size", "tokens": "tokens", "GMACs": "GMACs per image"}
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6))
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        times = results[name]["times"]
        axes.plot(list(times), list(times.values()), marker="o")
        first = next(iter(times))
        axes.plot(list(times), [times[first] * cost / first for cost in times], linestyle=":", color="gray")
        unit = "seconds per image" if name == "GMACs" else "seconds per call"
        axes.set(xscale="log", yscale="log", xlabel=names[name], ylabel=unit, title=title)
        axes.text(0.05, 0.9, f"slope {results[name]['slope']:.2f}", transform=axes.transAxes)
        axes.grid(alpha=0.3, which="both")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
