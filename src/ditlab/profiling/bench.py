"""What this machine makes of a network: `ditlab bench`.

All sides of a comparison run in turns in one process, and medians count. The baseline is the network as it is trained:
plain eager PyTorch in float32, nothing merged, nothing worked out beforehand.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ditlab.backbones import Backbone, create
from ditlab.checkpoints.diffusers import as_diffusers
from ditlab.config.sampling import QUALITIES
from ditlab.core.device import describe, has_bfloat16
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import PROCESSES
from ditlab.evaluation import measure
from ditlab.inference.export import export, runner
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.reuse import Reuse
from ditlab.inference.optimize.timing import Work, interleaved, waiter
from ditlab.inference.pipeline import Pipeline


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    seconds: float  # median
    gflops: float  # 1e9 floating-point operations a second
    against: float  # seconds of the baseline / seconds
    error: float  # relative, of the output against the baseline's


@dataclass(frozen=True)
class Bench:
    """All that was measured."""

    machine: dict[str, str | int]
    batch: int
    gmacs: float
    peaks: dict[str, float]  # GFLOP/s of the best matrix product in each precision
    bandwidth: float  # GB/s of a copy, read and written
    forward: dict[str, Side]
    training: dict[str, Side]
    presets: dict[str, dict[str, float]]  # seconds of a guided picture, network calls
    limit: str


def random_model(name: str, size: tuple[int, int], channels: int, classes: int, device: torch.device) -> Pipeline:
    """A network by name, on DiT's chain; its weights are random, and none is zero, so that outputs can be compared."""
    torch.manual_seed(0)
    net = create(name, size=size, channels=channels, classes=classes, learn_variance=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    objective = Objective(PROCESSES["ddpm"](), "eps", learn_variance=True)
    return Pipeline(net.to(device).eval(), objective, config={"sample": {"guidance": 1.5}})


def bench(
    pipe: Pipeline,
    console: Console,
    *,
    batch: int,
    rounds: int = 5,
    compile: bool = True,
    training: bool = True,
    against: Sequence[str] = (),
) -> Bench:
    """Measure a model on the device that it is on.

    Args:
        pipe: the model; weights need not be trained.
        console: where progress is told.
        batch: pictures in a network call.
        rounds: that count.
        compile: try compiled blocks too.
        training: measure a training step too.
        against: other ways to run this network, of `AGAINST`: diffusers' DiTTransformer2DModel, exported graphs.

    Raises:
        InputError: a comparison that this network does not have, or a library that is missing.
    """
    net = pipe.net.eval()
    device = net.device
    wait = waiter(device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    with console.status("matrix products"):
        peaks, bandwidth = machine_peaks(device, rounds, wait)
    if peaks["bfloat16"] < 1.5 * peaks["float32"]:
        del dtypes["bfloat16"]  # without the instructions a step could take minutes
    size = net.size
    gmacs = measure(lambda: create(**net.config | {"size": size})).gmacs
    given = example(pipe, batch)
    sides = dict(forward_sides(pipe, given, dtypes, compile, against, console))
    with torch.no_grad(), console.status("forward pass"):
        expected = sides["baseline"]()
        errors = {name: float((work() - expected).norm() / expected.norm()) for name, work in sides.items()}
        seconds = interleaved(sides, rounds, wait)
    forward = compared(seconds, errors, 2 * batch * gmacs)
    steps = {}
    if training:
        with console.status("training step"):
            steps = training_times(net, given, dtypes, compile, rounds, wait, 6 * batch * gmacs)
    calls = {name: pipe.resolve(preset=name).evaluations for name in QUALITIES}
    best = forward[quickest(forward)].seconds
    presets = {name: {"calls": float(count), "seconds": count * best / batch} for name, count in calls.items()}
    limit = limited_by(net, forward, peaks, bandwidth, 2 * batch * gmacs)
    return Bench(describe(str(device)), batch, gmacs, peaks, bandwidth, forward, steps, presets, limit)


def machine_peaks(device: torch.device, rounds: int, wait: Work) -> tuple[dict[str, float], float]:
    """GFLOP/s of a large matrix product in each precision, and GB/s of a copy that no cache holds."""
    side = 4096 if device.type == "cuda" else 1536
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    half = a.bfloat16(), b.bfloat16()
    work: dict[str, Work] = {"float32": lambda: a @ b}
    if has_bfloat16(device):
        work["bfloat16"] = lambda: half[0] @ half[1]
    seconds = interleaved(work, 2 * rounds, wait, min)
    peaks = {name: 2 * side**3 / each / 1e9 for name, each in seconds.items()}
    if "bfloat16" not in peaks:  # without the instructions the large one takes minutes
        part = interleaved({"bfloat16": lambda: half[0][:32] @ half[1]}, 1, wait)["bfloat16"]
        peaks["bfloat16"] = 2 * 32 * side**2 / part / 1e9
    large = torch.empty(2**26, device=device)  # 256 MiB
    target = torch.empty_like(large)
    copied = interleaved({"copy": lambda: target.copy_(large)}, rounds, wait, min)["copy"]
    return peaks, 2 * large.nbytes / copied / 1e9


def example(pipe: Pipeline, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch at the middle of the trajectory, with different labels."""
    x, _, condition = pipe.net.example(batch, torch.Generator().manual_seed(0))
    clock = pipe.objective.process.clock(torch.tensor(0.5, dtype=torch.float64)).float()
    return x, clock.expand(batch).to(x.device), pipe.net.labels(condition)


def forward_sides(
    pipe: Pipeline,
    given: tuple[Tensor, Tensor, Tensor],
    dtypes: dict[str, torch.dtype],
    compile: bool,
    against: Sequence[str],
    console: Console,
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The ways to run the network forward, each by name."""
    x, t, y = given

    def run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(x, t, y).float()

    yield "baseline", run(pipe.net)
    for name in dtypes:
        ready = pipe.prepared(name).net
        yield name, run(tabulated(ready, t[:1], torch.unique(y)))
        if compile and ready.repeated:
            own = copy.deepcopy(ready)
            with console.status(f"compiling in {name}"), torch.no_grad():
                seconds = compile_blocks(own, run(own), dynamic=False)
            if seconds is None:
                console.print(f"no compiled side in {name}: there is no working compiler here")
            else:
                console.print(f"compiled in {name} in {seconds:.0f} s", highlight=False)
                yield f"{name}, compiled", run(own)
    for name in against:
        if name == "diffusers":
            yield name, by_diffusers(pipe.net, given)
        else:
            with console.status(f"export to {name}"):
                graph = by_graph(pipe, given, name)
            yield name, graph


AGAINST = ("diffusers", "torch", "onnx", "openvino")


def by_diffusers(net: Backbone, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    """A call of diffusers' form of the network."""
    other, (x, t, y) = as_diffusers(net), given

    def call() -> Tensor:
        output: Tensor = other(x, timestep=t.long(), class_labels=y).sample
        return output

    return call


def by_graph(pipe: Pipeline, given: tuple[Tensor, Tensor, Tensor], kind: str) -> Callable[[], Tensor]:
    """A call of the exported network, on the CPU."""
    inputs = {name: value.cpu().numpy() for name, value in zip("xty", given, strict=True)}
    with tempfile.TemporaryDirectory() as draft:
        export(pipe, Path(draft) / "graphs", kind)
        run = runner(Path(draft) / "graphs" / "network", kind)
        run(inputs)
    return lambda: torch.from_numpy(run(inputs)).to(given[0].device)


def training_times(
    net: Backbone,
    given: tuple[Tensor, Tensor, Tensor],
    dtypes: dict[str, torch.dtype],
    compile: bool,
    rounds: int,
    wait: Work,
    flop: float,
) -> dict[str, Side]:
    """Forward and backward pass: plain, in each precision, and with compiled blocks."""
    x, t, y = given

    def step(own: Backbone, dtype: torch.dtype) -> Work:
        def work() -> None:
            with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
                loss = own(x, t, y).float().square().mean()
            loss.backward()
            own.zero_grad()

        return work

    trained = copy.deepcopy(net).train().requires_grad_(True)
    sides: dict[str, Work] = {"baseline": step(trained, torch.float32)}
    for name, dtype in dtypes.items():
        if dtype is not torch.float32:
            sides[name] = step(trained, dtype)
        own = copy.deepcopy(trained)
        if compile and own.repeated and compile_blocks(own, step(own, dtype), dynamic=False) is not None:
            sides[f"{name}, compiled"] = step(own, dtype)
    return compared(interleaved(sides, rounds, wait), dict.fromkeys(sides, 0.0), flop)


def compared(seconds: dict[str, float], errors: dict[str, float], gflop: float) -> dict[str, Side]:
    """Each side against the baseline."""
    first = seconds["baseline"]
    return {name: Side(each, gflop / each, first / each, errors[name]) for name, each in seconds.items()}


def quickest(forward: dict[str, Side]) -> str:
    """The quickest of our own ways."""
    return min((name for name in forward if name not in AGAINST), key=lambda name: forward[name].seconds)


def limited_by(net: Backbone, forward: dict[str, Side], peaks: dict[str, float], bandwidth: float, gflop: float) -> str:
    """What the quickest forward pass waits for: its products, the reading of its weights, or neither."""
    name = quickest(forward)
    precision = "bfloat16" if name.startswith("bfloat16") else "float32"
    weights = sum(p.numel() for p in net.parameters()) * (2 if precision == "bfloat16" else 4) / 1e9
    shares = {
        "compute": gflop / peaks[precision] / forward[name].seconds,
        "bandwidth": weights / bandwidth / forward[name].seconds,
    }
    shares["overhead"] = max(0.0, 1 - sum(shares.values()))
    most = max(shares, key=lambda each: shares[each])
    told = ", ".join(f"{each} {share:.0%}" for each, share in shares.items())
    return f"{most} ({name}: {told})"


def tables(found: Bench) -> Iterator[Table]:
    """The result as tables for the screen."""
    for title, sides in (("forward pass", found.forward), ("training step", found.training)):
        if not sides:
            continue
        table = Table("", "time", "faster", "GFLOP/s", "of peak", "error", title=f"{title}, batch {found.batch}")
        for name, side in sides.items():
            peak = found.peaks["bfloat16" if name.startswith("bfloat16") else "float32"]
            table.add_row(
                name, f"{side.seconds * 1e3:,.1f} ms", f"{side.against:.2f} x", f"{side.gflops:,.0f}",
                f"{side.gflops / peak:.0%}", f"{side.error:.1e}" if side.error else "",
            )  # fmt: skip
        for column in table.columns[1:]:
            column.justify = "right"
        yield table
    table = Table("quality", "network calls", "seconds a picture", "against reference")
    slowest = found.presets["reference"]["seconds"]
    for name, preset in found.presets.items():
        table.add_row(
            name, f"{preset['calls']:.0f}", f"{preset['seconds']:.3f}", f"{slowest / preset['seconds']:.0f} x"
        )
    yield table


class Drift(Reuse):
    """Computes the inner part at every call, and notes how far it is from what would have been used instead."""

    def __init__(self) -> None:
        super().__init__(interval=2)
        self.rows: list[dict[str, float]] = []

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        assert self.inner is not None
        out = self.inner(x, *rest)
        added = out - x
        if not self.values or self.values[0].shape != x.shape:
            self.values, self.times = [], []
        elif self.time != self.times[0]:
            size = float(added.norm()) or 1.0  # an untrained network may add nothing
            kept, continued = (float((added - old).norm()) / size for old in (self.values[0], self.continued()))
            self.rows.append({"t": self.time, "kept": kept, "continued": continued})
        self.keep(added)
        return out


def drift(pipe: Pipeline, count: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """How far the inner part of the network is from its value one call earlier, along the way of `count` pictures.

    Returns:
        For each call after the first its time, and the relative error if the last value were kept, or continued along a
        line through the last two; where these are small, `reuse` is safe.

    Raises:
        InputError: a family that has no inner part.
    """
    watch = Drift()
    labels = [i % pipe.net.classes for i in range(count)] if pipe.net.classes else None
    for _ in pipe.steps(labels, seeds=range(count), reuse=watch, **options):
        pass
    return watch.rows


def drift_table(rows: list[dict[str, float]]) -> Table:
    """Twenty moments of the way, with a bar for the error of continuation."""
    if not rows:
        raise InputError(
            "the model's sampler has a single network call, so there is nothing to compare; take more steps"
        )
    table = Table("time", "kept", "continued", "", title="error of the inner part if it were not computed")
    largest = max(row["continued"] for row in rows) or 1.0
    for row in rows[:: max(1, len(rows) // 20)]:
        bar = "#" * round(40 * row["continued"] / largest)
        table.add_row(f"{row['t']:.2f}", f"{row['kept']:.2%}", f"{row['continued']:.2%}", bar)
    return table
