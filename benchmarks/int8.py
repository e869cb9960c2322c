"""Products in int8 against bfloat16 and float32: time and error of a network, and quality of a trained model.

    python benchmarks/int8.py speed [NETWORK] [--batch 1] [--rounds 9] [--depth N] [--onnx] [--wall]
    python benchmarks/int8.py quality RUN digits|glyphs [--seeds 3] [--count 1000]

`speed` builds a network with random weights at 4x32x32 with 1,000 classes, prepares it in each precision as
`ditlab sample` does, with precomputed modulation, and with --onnx also exports it to ONNX files in float32 and in int8,
which compute the modulation themselves. All sides run in turns; the program prints medians of CPU seconds (--wall: of
seconds), the speedup over float32, and the relative error against the network as it was trained. With two threads, set
OMP_NUM_THREADS=2.

`quality` generates the same images in each precision, and prints the Frechet distance to held-out data over all seeds,
the difference from float32 seed by seed, the difference of the pixels, relative to their spread, and the relative error
of the network's output at t = 0.1, 0.5 and 0.9.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import ditlab
from ditlab.backbones import create
from ditlab.core.device import keep_freed_memory
from ditlab.core.stats import standard_error
from ditlab.diffusion.objective import Objective
from ditlab.evaluation.digits import score_digits
from ditlab.evaluation.glyphs import score_glyphs
from ditlab.inference.export import Network, export_part, network_inputs
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.timing import interleaved
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.prepared import PreparedPipeline

PRECISIONS = ("float32", "bfloat16", "int8")
SCORES = {"digits": score_digits, "glyphs": score_glyphs}
SAMPLING = {"digits": {"sampler": "ab4", "steps": 12}, "glyphs": {"sampler": "ab4", "steps": 8}}
TIMES, ROWS = (0.1, 0.5, 0.9), 64  # of the errors of the output
Side = Callable[[], Tensor]


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("network", nargs="?", default="DiT-S/2")
    speed.add_argument("--batch", type=int, default=1)
    speed.add_argument("--rounds", type=int, default=9)
    speed.add_argument("--depth", type=int, help="number of blocks, if the whole network does not fit into memory")
    speed.add_argument("--onnx", action="store_true")
    speed.add_argument("--wall", action="store_true")
    speed.set_defaults(run=measure_speed)
    quality = commands.add_parser("quality")
    quality.add_argument("model")
    quality.add_argument("data", choices=SCORES)
    quality.add_argument("--seeds", type=int, default=3)
    quality.add_argument("--count", type=int, default=1000)
    quality.set_defaults(run=measure_quality)
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    options = parser.parse_args()
    options.run(options)


@torch.no_grad()
def measure_speed(options: argparse.Namespace) -> None:
    """Time one forward pass in each precision, and compare the outputs."""
    pipe = random_model(options.network, options.depth)
    inputs = network_inputs(pipe, options.batch)
    x, t, y = inputs.values()
    sides: dict[str, Side] = {}
    for precision in PRECISIONS:
        net = tabulated(pipe.prepared(precision).net.eval(), t, y)
        sides[precision] = lambda net=net: net(x, t, y).float()
    with TemporaryDirectory() as folder:
        for int8 in (False, True) if options.onnx else ():
            sides["ONNX Runtime, int8" if int8 else "ONNX Runtime, float32"] = exported(
                pipe, inputs, Path(folder), int8
            )
        expected = pipe.net(x, t, y)
        errors = {name: float((side() - expected).norm() / expected.norm()) for name, side in sides.items()}
        clock = time.perf_counter if options.wall else time.process_time
        seconds = interleaved(sides, options.rounds, pick=median, clock=clock)
    table = Table(f"{options.network}, batch {options.batch}", "ms", "speedup", "relative error")
    for name, value in seconds.items():
        table.add_row(name, f"{value * 1e3:.1f}", f"{seconds['float32'] / value:.2f}x", f"{errors[name]:.1e}")
    Console(width=100).print(table)


def random_model(name: str, depth: int | None) -> Pipeline:
    """A model with random weights, also where training starts from zero."""
    torch.manual_seed(0)
    net = create(name, size=32, channels=4, classes=1000, learn_variance=False, depth=depth)
    for parameter in net.eval().requires_grad_(False).parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return Pipeline(net, Objective())


def exported(pipe: Pipeline, inputs: dict[str, Tensor], folder: Path, int8: bool) -> Side:
    """The exported network in ONNX Runtime, with as many threads as PyTorch."""
    import onnxruntime

    draft = folder / str(int8)
    draft.mkdir()
    export_part(pipe, "network", Network(pipe.net), network_inputs(pipe, 2), None, draft, "onnx", int8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
    file = draft / "network.onnx"
    print(f"{file.stat().st_size / 1e6:.1f} MB in {'int8' if int8 else 'float32'}", flush=True)
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return lambda: torch.from_numpy(session.run(None, arrays)[0])


def measure_quality(options: argparse.Namespace) -> None:
    """Generate and score the same images in each precision."""
    pipe, count, score = ditlab.load(options.model, device="cpu"), options.count, SCORES[options.data]
    labels = [i % pipe.net.classes for i in range(count)]
    distances: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    accuracy: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    changes: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    exact: dict[int, Tensor] = {}
    ready = {name: pipe.prepared(name) for name in PRECISIONS}
    for seed in range(options.seeds):
        seeds = range(seed * count, (seed + 1) * count)
        for name, model in ready.items():
            settings = {"seeds": seeds, "batch_size": 128, "output_type": "latent", **SAMPLING[options.data]}
            x0 = model(labels, **settings).images
            exact[seed] = exact.get(seed, x0)  # of float32, which is the first
            result = score(torch.cat([pipe.decode(part) for part in x0.split(256)]), torch.tensor(labels))
            distances[name].append(result.fd)
            accuracy[name].append(result.accuracy)
            changes[name].append(float((x0 - exact[seed]).std() / exact[seed].std()))
            print(seed, name, f"{result.fd:.3f}", flush=True)
    columns = ("Frechet distance", "difference", "classified correctly", "change of the pixels", "error of the output")
    table = Table(options.data, *columns)
    for name in PRECISIONS:
        paired = [ours / theirs - 1 for ours, theirs in zip(distances[name], distances["float32"], strict=True)]
        error = standard_error(paired)  # None with one seed
        table.add_row(
            name,
            f"{mean(distances[name]):.3f}",
            f"{100 * mean(paired):+.1f}{f' ± {100 * error:.1f}' if error is not None else ''} %",
            f"{100 * mean(accuracy[name]):.1f} %",
            f"{100 * mean(changes[name]):.2f} %",
            ", ".join(f"{error:.4f}" for error in errors_of(pipe, ready[name], exact[0][:ROWS], labels[:ROWS])),
        )
    Console(width=120).print(table)


@torch.no_grad()
def errors_of(pipe: Pipeline, ready: PreparedPipeline, x0: Tensor, labels: list[int]) -> Iterator[float]:
    """The relative error of the network's output at three times, on noised images x0."""
    process, noise = pipe.objective.process, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for time_ in TIMES:
        t = torch.tensor(time_, dtype=torch.float64)
        x = (process.alpha(t) * x0 + process.sigma(t) * noise).float()
        clock, condition = process.clock(t.expand(len(x0))).float(), torch.tensor(labels)
        expected = pipe.net.eval()(x, clock, condition)
        yield float((ready.net.eval()(x, clock, condition).float() - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
