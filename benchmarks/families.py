"""Walk through all families with tiny sizes: count, save and load, convert, export, time, and predict the memory.

    python benchmarks/families.py [--bench] [FAMILY ...]

Each line is a family; "ok", or the one line with which a command refuses it. Anything else is a failure.
"""

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

import ditlab
from ditlab.backbones import create
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.evaluation import measure
from ditlab.inference.compute import sampled_compute
from ditlab.inference.export import export
from ditlab.inference.pipeline import Pipeline
from ditlab.profiling.bench import bench

PLAIN = {"width": 32, "depth": 2, "heads": 2, "patch": 2}
TEXT = {"classes": 0, "text_length": 4, "text_width": 8}
TINY = {
    "DiT": PLAIN,
    "DiT, early exit": PLAIN | {"name": "DiT", "exits": [1.0, 0.5]},
    "DiT, windows": PLAIN | {"name": "DiT", "window": 2},
    "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    "U-ViT": PLAIN | {"depth": 3},
    "Skip-DiT": PLAIN,
    "DyDiT": PLAIN,
    "LightningDiT": PLAIN | {"patch": 1},
    "FiT": PLAIN,
    "DiMSUM": {"width": 64, "depth": 4, "heads": 2, "patch": 2},
    "DiC": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer": {"width": 16, "heads": 2, "depths": [1, 1, 1], "patch": 1, "window": 4},
    "Hourglass": {"width": 32, "depth": 2, "heads": 2},
    "PixArt": PLAIN | TEXT,
    "MMDiT": PLAIN | TEXT | {"pooled_width": 8},
    "Flux": PLAIN | TEXT | {"pooled_width": 8, "depth": 1, "single_depth": 2},
    "Latte": PLAIN | {"size": (2, 8, 8)},
    "VideoDiT": PLAIN | {"size": (2, 8, 8), "patch_frames": 1},
    "STDiT3": PLAIN | TEXT | {"size": (2, 8, 8)},
}
"""Row -> options of a tiny network."""


def network(row):
    """A tiny network of a row, in which no weight is zero."""
    options = {"name": row, "size": 8, "channels": 4, "classes": 3, "learn_variance": False} | TINY[row]
    net = create(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.eval()


def walk(row, folder, times):
    """Run all commands on a family; yields the name of each and its result."""
    net = network(row)
    pipe = Pipeline(net, Objective())
    inputs = net.example(2, torch.Generator().manual_seed(0))

    def same(other):
        with torch.no_grad():
            assert torch.allclose(net(*inputs), other.net(*inputs), atol=1e-5)

    def counted():
        cost = measure(lambda: create(**net.config | {"size": net.size}))
        if net.gates:
            sampled_compute(pipe)
        assert cost.average_gmacs <= cost.gmacs

    def official():
        convert(pipe, folder / "official", "official")
        fixed = {key: net.config[key] for key in ("window", "periodic") if key in net.config and "PDE" in row}
        fixed |= {"exits": net.exits} if net.exits else {}
        same(ditlab.load(folder / "official", size=net.size, heads=net.config.get("heads"), **fixed))

    def own():
        pipe.save(folder / "own")
        same(ditlab.load(folder / "own"))

    steps = {"info": counted, "save": own, "official": official}
    steps |= {"export": lambda: export(pipe, folder / "exported", "torch")}
    if times:
        quiet = Console(quiet=True)
        steps |= {"bench": lambda: bench(pipe, quiet, batch=1, rounds=1, compile=False, training=True)}
    for name, step in steps.items():
        try:
            step()
            yield name, "ok"
        except InputError as error:
            yield name, str(error)
        except Exception as error:
            yield name, f"FAILED {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main():
    """Walk through the families that are named, or all."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--bench"]
    failures = 0
    for row in arguments or TINY:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results = dict(walk(row, Path(folder), times="--bench" in sys.argv))
            except Exception as error:
                results = {"create": f"FAILED {type(error).__name__}: {error}"}
        failures += sum(result.startswith("FAILED") for result in results.values())
        print(f"{row}: " + "; ".join(f"{name} {result}" for name, result in results.items()), flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
