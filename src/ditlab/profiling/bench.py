"""Measure the speed of a network on this machine: forward pass, training step, sampling presets (`ditlab bench`).

All variants of a comparison run in turns in one process, and medians are reported. The baseline is the unmodified
network: eager PyTorch in float32, without merged layers and without precomputed adaLN modulation.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ditlab.backbones import Backbone, create
from ditlab.backbones.cost import counted_flops, measure
from ditlab.checkpoints.diffusers import as_diffusers
from ditlab.config.sampling import QUALITIES
from ditlab.core.device import describe, has_bfloat16
from ditlab.core.errors import InputError
from ditlab.core.terminal import say
from ditlab.core.types import Condition
from ditlab.diffusion.next_state import NextState
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import PROCESSES
from ditlab.inference.export import export, runner
from ditlab.inference.finite import check_weights
from ditlab.inference.optimize.compilation import compile_blocks
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.quantized import OneDNNLinear, eligible, missing
from ditlab.inference.optimize.reuse import Reuse
from ditlab.inference.optimize.timing import Work, interleaved, waiter
from ditlab.inference.pipeline import Pipeline

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Timing:
    """Time of one variant of the network, compared with the baseline."""

    seconds: float  # median
    gflops: float  # 1e9 floating-point operations per second
    against: float  # speedup: seconds of the baseline / seconds
    error: float  # relative error of the output, compared with the baseline's


@dataclass(frozen=True)
class Bench:
    """All measurements; the fields are the keys of the JSON output."""

    machine: dict[str, str | int]
    batch: int
    gmacs: float
    peaks: dict[str, float]  # precision -> GFLOP/s of a large matrix product
    bandwidth: float  # GB/s of a copy, counting bytes read and bytes written
    forward: dict[str, Timing]
    training: dict[str, Timing]
    presets: dict[str, dict[str, float]]  # seconds and network evaluations (calls) per image, with guidance
    limit: str
    noun: str = "image"
    """What one output is called: image, clip, or state."""


def random_model(name: str, size: tuple[int, ...], channels: int, classes: int, device: torch.device) -> Pipeline:
    """A model by name with DiT's process; no weight is zero, so that the outputs of variants can be compared."""
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
    precision: str = "auto",
    compile: bool = True,
    training: bool = True,
    against: Sequence[str] = (),
) -> Bench:
    """Measure a model on its device.

    Args:
        pipe: the model; its weights need not be trained.
        console: where progress is shown.
        batch: batch size of a network call.
        rounds: measured rounds; one more round warms up.
        precision: float32, bfloat16 or int8 is measured beside the baseline; "auto" is all that are fast here.
        compile: also measure compiled blocks.
        training: also measure a training step.
        against: other runtimes in `AGAINST` to measure: diffusers' DiTTransformer2DModel, exported graphs.

    Raises:
        InputError: weights are not finite, the machine or a runtime does not support this network in this precision, or
            a library is not installed.
    """
    check_weights(pipe)
    net, device = pipe.net.eval(), pipe.net.device
    wait = waiter(device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    with console.status("matrix products"):
        peaks, bandwidth = machine_peaks(device, rounds, wait)
    if precision not in ("auto", *peaks):
        raise InputError(f"bench does not measure {precision} on this device; choose from: auto, {', '.join(peaks)}")
    if peaks["bfloat16"] < 1.5 * peaks["float32"] and precision == "auto":
        del dtypes["bfloat16"]  # without bfloat16 instructions a step could take minutes
    full = gmacs = measure(lambda: create(**net.config | {"size": net.size})).gmacs
    inputs = example(pipe, batch)
    quantized = ["int8"] if "int8" in peaks and eligible(net, "int8") else []
    precisions = [*dtypes, *quantized] if precision == "auto" else [precision]
    dtypes = {name: dtype for name, dtype in dtypes.items() if name in precisions}
    variants = dict(forward_variants(pipe, inputs, precisions, compile, against, console))
    with torch.no_grad(), console.status("forward pass"):
        if net.gates or net.dynamic_depth:  # what is computed depends on the timesteps and on the weights
            gmacs = counted_flops(net, inputs) / 2e9 / batch
        expected = variants["baseline"]()
        errors = {name: float((work() - expected).norm() / expected.norm()) for name, work in variants.items()}
        seconds = interleaved(variants, rounds, wait)
    forward = compared(seconds, errors, 2 * batch * gmacs)
    steps = {}
    if training:
        with console.status("training step"):
            flops = 6 * batch * (full if net.gates else gmacs)
            steps = training_times(net, inputs, dtypes, compile, rounds, wait, flops)
    best = forward[fastest(forward)].seconds
    calls = preset_calls(pipe)
    presets = {name: {"calls": float(count), "seconds": count * best / batch} for name, count in calls.items()}
    limit = limited_by(net, forward, peaks, bandwidth, 2 * batch * gmacs)
    return Bench(describe(str(device)), batch, gmacs, peaks, bandwidth, forward, steps, presets, limit, pipe.noun)


def preset_calls(pipe: Pipeline) -> dict[str, int]:
    """Network evaluations per image of each preset, or of the model's own settings if its times are fixed."""
    if isinstance(pipe.objective, NextState):
        return {"next state": 1}
    if pipe.objective.fixed_times:
        return {"model default": pipe.resolve().evaluations}
    return {name: pipe.resolve(preset=name).evaluations for name in QUALITIES}


def machine_peaks(device: torch.device, rounds: int, wait: Work) -> tuple[dict[str, float], float]:
    """GFLOP/s of a large matrix product in each precision, and GB/s of a copy that does not fit into caches."""
    side = 4096 if device.type == "cuda" else 1536
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    half = a.bfloat16(), b.bfloat16()
    work: dict[str, Work] = {"float32": lambda: a @ b}
    if has_bfloat16(device):
        work["bfloat16"] = lambda: half[0] @ half[1]
    if device.type == "cpu" and not missing("int8", device):
        layer, rows = OneDNNLinear(nn.Linear(side, side)), torch.randint(256, (side, side), dtype=torch.uint8)
        work["int8"] = lambda: layer.multiplied(rows)
    seconds = interleaved(work, 2 * rounds, wait, min)
    peaks = {name: 2 * side**3 / time / 1e9 for name, time in seconds.items()}
    if "bfloat16" not in peaks:  # without bfloat16 instructions the large product takes minutes
        part = interleaved({"bfloat16": lambda: half[0][:32] @ half[1]}, 1, wait)["bfloat16"]
        peaks["bfloat16"] = 2 * 32 * side**2 / part / 1e9
    large = torch.empty(2**26, device=device)  # 256 MiB
    target = torch.empty_like(large)
    copied = interleaved({"copy": lambda: target.copy_(large)}, rounds, wait, min)["copy"]
    return peaks, 2 * large.nbytes / copied / 1e9


Inputs = tuple[Tensor, Tensor, Tensor | Condition]
"""x, timestep, and class labels or texts."""


def example(pipe: Pipeline, batch: int) -> Inputs:
    """Inputs of the network: a batch at t = 0.5 with different labels or texts."""
    x, _, condition = pipe.net.example(batch, torch.Generator().manual_seed(0))
    half = torch.tensor(0.5, dtype=torch.float64)
    return x, pipe.objective.timesteps(half, half, x), condition if pipe.net.text else pipe.net.labels(condition)


def forward_variants(
    pipe: Pipeline,
    inputs: Inputs,
    precisions: Iterable[str],
    compile: bool,
    against: Sequence[str],
    console: Console,
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The variants of the forward pass: name, and a function that runs it."""
    x, t, y = inputs

    def run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(x, t, y).float()

    yield "baseline", run(pipe.net)
    for name in precisions:
        ready = pipe.prepared(name).net
        yield name, run(tabulated(ready, t[:1], torch.unique(y)) if isinstance(y, Tensor) else ready)
        if compile and ready.repeated and not ready.quantized:
            own = copy.deepcopy(ready)
            with console.status(f"compiling in {name}"), torch.no_grad():
                seconds = compile_blocks(own, run(own), dynamic=False)
            if seconds is None:
                say(console, f"not compiled in {name}: this machine has no working compiler")
            else:
                say(console, f"compiled in {name} in {seconds:.0f} s")
                yield f"{name}, compiled", run(own)
    for name in against:
        if name == "diffusers":
            yield name, diffusers_call(pipe.net, inputs)
        else:
            with console.status(f"export to {name}"):
                call = exported_call(pipe, inputs, name)
            yield name, call


AGAINST = ("diffusers", "torch", "onnx", "openvino")


def diffusers_call(net: Backbone, inputs: Inputs) -> Callable[[], Tensor]:
    """A call of the same network in diffusers."""
    other, (x, t, y) = as_diffusers(net), inputs

    def call() -> Tensor:
        output: Tensor = other(x, timestep=t.long(), class_labels=y).sample
        return output

    return call


def exported_call(pipe: Pipeline, inputs: Inputs, runtime: str) -> Callable[[], Tensor]:
    """A call of the exported network, on the CPU."""
    x, t, y = inputs
    parts = {"y": y} if isinstance(y, Tensor) else y.parts()
    tensors = {"x": x, "t": t} | {name: value for name, value in parts.items() if isinstance(value, Tensor)}
    arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
    with tempfile.TemporaryDirectory() as draft:
        export(pipe, Path(draft) / "graphs", runtime)
        run = runner(Path(draft) / "graphs" / "network", runtime)
        run(arrays)
    return lambda: torch.from_numpy(run(arrays)).to(inputs[0].device)


def training_times(
    net: Backbone,
    inputs: Inputs,
    dtypes: dict[str, torch.dtype],
    compile: bool,
    rounds: int,
    wait: Work,
    flop: float,
) -> dict[str, Timing]:
    """Times of a forward and backward pass: eager in each precision, and with compiled blocks."""
    x, t, y = inputs

    def step(trained: Backbone, dtype: torch.dtype) -> Work:
        def work() -> None:
            with torch.autocast(x.device.type, dtype, enabled=dtype is not torch.float32):
                loss = trained(x, t, y).float().square().mean()
            loss.backward()
            trained.zero_grad()

        return work

    eager = copy.deepcopy(net).train().requires_grad_(True)
    variants: dict[str, Work] = {"baseline": step(eager, torch.float32)}
    for name, dtype in dtypes.items():
        if dtype is not torch.float32:
            variants[name] = step(eager, dtype)
        own = copy.deepcopy(eager)
        if compile and own.repeated and compile_blocks(own, step(own, dtype), dynamic=False) is not None:
            variants[f"{name}, compiled"] = step(own, dtype)
    return compared(interleaved(variants, rounds, wait), dict.fromkeys(variants, 0.0), flop)


def compared(seconds: dict[str, float], errors: dict[str, float], gflop: float) -> dict[str, Timing]:
    """Each variant compared with the baseline."""
    baseline = seconds["baseline"]
    return {name: Timing(time, gflop / time, baseline / time, errors[name]) for name, time in seconds.items()}


def fastest(forward: dict[str, Timing]) -> str:
    """Name of the fastest variant that ditlab runs itself."""
    return min((name for name in forward if name not in AGAINST), key=lambda name: forward[name].seconds)


def limited_by(
    net: Backbone, forward: dict[str, Timing], peaks: dict[str, float], bandwidth: float, gflop: float
) -> str:
    """What the fastest forward pass spends most of its time on: matrix products, reading weights, or neither."""
    name = fastest(forward)
    precision = precision_of(name)
    weights = sum(p.numel() for p in net.parameters()) * BYTES[precision] / 1e9
    shares = {
        "compute": gflop / peaks[precision] / forward[name].seconds,
        "memory bandwidth": weights / bandwidth / forward[name].seconds,
    }
    shares["overhead"] = max(0.0, 1 - sum(shares.values()))
    largest = max(shares, key=lambda resource: shares[resource])
    listed = ", ".join(f"{resource} {100 * share:.0f} %" for resource, share in shares.items())
    return f"{largest} ({name}: {listed})"


def precision_of(variant: str) -> str:
    """The precision of the products of a variant."""
    name = variant.partition(",")[0]
    return name if name in BYTES else "float32"


def tables(result: Bench) -> Iterator[Table]:
    """The measurements as tables for the screen."""
    for title, timings in (("forward pass", result.forward), ("training step", result.training)):
        if not timings:
            continue
        table = Table("", "time", "speedup", "GFLOP/s", "of peak", "error", title=f"{title}, batch {result.batch}")
        for name, timing in timings.items():
            peak = result.peaks[precision_of(name)]
            table.add_row(
                name, f"{timing.seconds * 1e3:,.1f} ms", f"{timing.against:.2f}x", f"{timing.gflops:,.0f}",
                f"{100 * timing.gflops / peak:.0f} %", f"{timing.error:.1e}" if timing.error else "",
            )  # fmt: skip
        for column in table.columns[1:]:
            column.justify = "right"
        yield table
    slowest = max(preset["seconds"] for preset in result.presets.values())
    table = Table("preset", "NFE", f"seconds per {result.noun}", f"speedup over {[*result.presets][-1]}")
    for name, preset in result.presets.items():
        speedup = slowest / preset["seconds"]
        table.add_row(name, f"{preset['calls']:.0f}", f"{preset['seconds']:.3f}", f"{speedup:.0f}x")
    yield table


class Drift(Reuse):
    """Feature caching that computes the inner blocks in every call, and records the error that caching would make."""

    def __init__(self) -> None:
        super().__init__(interval=2)
        self.rows: list[dict[str, float]] = []

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        assert self.inner is not None
        out = self.inner(x, *others)
        added = out - x
        if not self.values or self.values[0].shape != x.shape:
            self.values, self.times = [], []
        elif self.time != self.times[0]:
            size = float(added.norm()) or 1.0  # an untrained network may add nothing
            kept, continued = (float((added - cached).norm()) / size for cached in (self.values[0], self.continued()))
            self.rows.append({"t": self.time, "kept": kept, "continued": continued})
        self.keep(added)
        return out


def drift(pipe: Pipeline, count: int, options: dict[str, Any]) -> list[dict[str, float]]:
    """Measure how much the output of the inner blocks changes between network calls in sampling.

    Args:
        pipe: the model.
        count: number of images that are generated.
        options: sampling settings.

    Returns:
        For each call after the first its timestep t, and the relative error if the output of the previous call were
        kept, or continued linearly from the two previous calls. Where the errors are small, feature caching is safe.

    Raises:
        InputError: the architecture does not support feature caching.
    """
    recorder = Drift()
    examples = pipe.examples
    labels = [examples[i % len(examples)] for i in range(count)]
    for _ in pipe.steps(labels, seeds=range(count), reuse=recorder, **options):
        pass
    return recorder.rows


def drift_table(rows: list[dict[str, float]]) -> Table:
    """The errors at about twenty timesteps as a table, with a bar for the error of linear continuation."""
    if not rows:
        raise InputError("sampling has a single network call, so there is nothing to compare; use more steps")
    table = Table("t", "kept", "continued", "", title="relative error of feature caching, by timestep")
    largest = max(row["continued"] for row in rows) or 1.0
    for row in rows[:: max(1, len(rows) // 20)]:
        bar = "#" * round(40 * row["continued"] / largest)
        table.add_row(f"{row['t']:.2f}", f"{100 * row['kept']:.2f} %", f"{100 * row['continued']:.2f} %", bar)
    return table
