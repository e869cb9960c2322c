"""Plot what a trained DyDiT computes while it generates: heads and groups of each block, and the share of the tokens.

    python benchmarks/dynamic_routes.py RUN OUT.png [--steps 50]

The routers of heads and groups see the timestep only. Those of tokens see the images: 64, with the seeds 0 to 63.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run
from torch import Tensor, nn

import ditlab
from ditlab.backbones.dydit import DyDiT
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.report.plotting import plotting

IMAGES = 64


@torch.no_grad()
def main(source: Path, out: Path, *, steps: int = 50) -> None:
    """Plot it.

    Args:
        source: run folder of a DyDiT.
        out: PNG file.
        steps: of the sampler.
    """
    pipe = ditlab.load(source)
    net = pipe.net
    if not isinstance(net, DyDiT):
        raise InputError(f"{source} is no DyDiT; give a run of the study dynamic")
    timesteps: list[Tensor] = []
    traces: list[Trace] = []

    def record(net: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        timesteps.append(inputs[1][:1])
        traces.append(Trace(["compute", "tokens"]))
        return inputs, options | {"trace": traces[-1]}

    handle = net.register_forward_pre_hook(record, with_kwargs=True)
    labels = [i % net.classes for i in range(IMAGES)]
    pipe(labels, seeds=range(IMAGES), sampler="euler", steps=steps, guidance=1.0, schedule="uniform")
    handle.remove()
    seen = torch.cat(timesteps)
    patterns, index = net.patterns(net.t_embedder(seen), seen)
    kept = np.array([patterns[i] for i in index.tolist()])  # (steps, depth, 2 H - 2)
    times = pipe.resolve(sampler="euler", steps=steps, schedule="uniform").times[:-1].tolist()
    shares = {name: [float(trace.taps[name].mean()) for trace in traces] for name in ("compute", "tokens")}
    write(kept, times, shares, out)


def write(kept: np.ndarray, times: list[float], shares: dict[str, list[float]], out: Path) -> None:
    """Write the figure: a panel for heads and one for groups, a row of each block, and the shares below.

    Args:
        kept: which heads, and then which groups, are kept without the first ones (steps, depth, 2 H - 2).
        times: time of each step, 1 is noise.
        shares: name -> share at each step.
        out: PNG file.
    """
    pyplot = plotting()
    steps, depth, width = kept.shape
    figure, panels = pyplot.subplots(3, 1, figsize=(7, 6.5), sharex=True, height_ratios=(2, 2, 1.2))
    edges = np.append(times, 0.0)
    for panel, name, part in zip(panels, ("heads", "groups"), np.split(kept, 2, axis=2), strict=False):
        with_first = np.concatenate([np.ones_like(part[..., :1]), part], axis=2)  # (steps, depth, H)
        count = with_first.shape[2]
        rows = with_first.reshape(steps, depth * count).T  # (depth H, steps)
        panel.pcolormesh(edges, np.arange(depth * count + 1), rows, cmap="Blues", vmin=0, vmax=1.4)
        for block in range(1, depth):
            panel.axhline(block * count, color="white", linewidth=3)
        panel.set_yticks([(block + 0.5) * count for block in range(depth)], [f"block {i + 1}" for i in range(depth)])
        panel.set_title(f"{name}: blue is computed", fontsize=10, loc="left")
        panel.invert_yaxis()
    for name, label in (("compute", "compute of the blocks"), ("tokens", "tokens that pass the MLPs")):
        panels[2].plot(times, shares[name], label=label)
    panels[2].set(ylim=(0, 1.05), ylabel="share", xlabel="time: noise on the left, image on the right")
    panels[2].legend(frameon=False, fontsize=9)
    panels[2].invert_xaxis()
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    run(main)
