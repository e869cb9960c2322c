"""What a training run will need, before it is started: `ditlab plan`.

Memory is counted part by part. Activations are what the backward pass keeps, found by a forward pass without memory or
work (PyTorch's meta device). Rates of accelerators are the published dense bfloat16 peaks, of which training is taken
to reach a third; for the machine itself a step is timed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import add_lora
from ditlab.checkpoints import load
from ditlab.config.sections import Recipe
from ditlab.core.device import pick_device, total_memory
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Trace
from ditlab.core.units import GIB, duration
from ditlab.data import Dataset, open_dataset
from ditlab.evaluation import measure
from ditlab.inference.optimize.precision import quick_precision
from ditlab.inference.optimize.timing import interleaved, waiter
from ditlab.training.ema import EMA
from ditlab.training.optim import make_optimizer, muon_matrices
from ditlab.training.parallel import Place, keep_inputs_only
from ditlab.training.trainer import LossOf, build, check_ranges, continued, pick_autoencoder, routed, trial_step


@dataclass(frozen=True)
class Device:
    """An accelerator."""

    memory: float  # bytes
    flops: float  # dense bfloat16, a second


DEVICES = {
    "b200": Device(180 * GIB, 2250e12),
    "h200": Device(141 * GIB, 989e12),
    "h100": Device(80 * GIB, 989e12),
    "a100": Device(80 * GIB, 312e12),
    "a100-40": Device(40 * GIB, 312e12),
    "l40s": Device(48 * GIB, 362e12),
    "a10": Device(24 * GIB, 125e12),
    "rtx5090": Device(32 * GIB, 209e12),
    "rtx4090": Device(24 * GIB, 165e12),
    "rtx3090": Device(24 * GIB, 71e12),
}
REACHED = 1 / 3  # of the peak, in training
PROCESS = {"cpu": 0.45 * GIB, "cuda": 0.8 * GIB}  # Python, PyTorch and their libraries
HALF = 0.6  # of the activations' bytes in bfloat16 autocast: norms and softmax keep float32
USABLE = 0.94  # of a device's memory, for fragments between tensors
MOST = 2**16  # pictures
FEW, MORE = 8, 4  # pictures of a first trial, and how many times more the next one has
LONG = 2.0  # seconds that no trial may be expected to take; of a tiny network few pictures take as long as many


@dataclass(frozen=True)
class Plan:
    """All figures are for one process and in bytes where nothing else is said."""

    device: str
    devices: int
    batch: int  # pictures of a process at a time
    parameters: int
    gmacs: float  # of the network for one picture
    memory: dict[str, float]
    peak: float
    capacity: float
    steps_per_second: float | None  # None where nothing was timed
    measured: bool  # or taken from the table
    seconds: float | None  # to the end of the run
    checkpoint: float
    largest_batch: int  # of a process at a time, that fits
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return not self.advice


Shape = tuple[int, tuple[int, ...], int]  # channels, size and classes of a network


def plan(recipe: Recipe, device: str = "", devices: int = 1, *, timed: bool = True, shape: Shape | None = None) -> Plan:
    """What a run would need.

    Args:
        recipe: the run.
        device: a name in `DEVICES`; this machine if empty.
        devices: how many; on this machine's CPU so many processes share its cores and memory.
        timed: take a few steps on this machine, if they fit.
        shape: of the network, where the data is not at hand; then no step is taken.

    Raises:
        InputError: an unknown device, a batch that so many devices cannot share, or what training would refuse.
    """
    check_ranges(recipe)
    if devices < 1:
        raise InputError(f"{devices} devices; give 1 or more")
    if devices == 1 and recipe.parallel.shard != "none":
        raise InputError("parallel.shard needs several processes; give --devices, or leave it out")
    here = not device
    kind = pick_device(recipe.train.device).type if here else "cuda"
    capacity = total_memory(pick_device(recipe.train.device)) if here else lookup(DEVICES, device, "device").memory
    at_once = 1 if kind == "cpu" else devices  # processes on one CPU take turns
    capacity /= devices // at_once
    batch = Place(torch.device("cpu"), 0, devices).share(recipe.train.batch, recipe.parallel.accumulate)
    dataset = open_dataset(recipe.data.source, recipe.data) if shape is None else None
    source = load(recipe.train.init_from) if recipe.train.init_from else None
    if source is not None:
        recipe = replace(recipe, model=continued(recipe.model, source))
    autoencoder = None if dataset is None else pick_autoencoder(recipe.data.autoencoder, dataset, source)
    if dataset is not None and autoencoder is not None:
        classes = recipe.data.classes or len(dataset.classes)
        shape = (*autoencoder.latent_shape(dataset.channels, dataset.size), classes)
    assert shape is not None
    channels, size, classes = shape

    def make() -> Backbone:
        learned = recipe.diffusion.learn_variance
        net = create(**vars(recipe.model), size=size, channels=channels, classes=classes, learn_variance=learned)
        if recipe.train.lora:
            add_lora(net, recipe.train.lora, [*net.label_tables, *net.heads_out], 0)
        return net

    cost = measure(make)
    precision: str = recipe.train.precision
    if precision == "auto" and here:
        with torch.device("meta"):
            width = make().matrix_width
        precision = quick_precision(width, pick_device(recipe.train.device))
    half = precision != "float32"
    frozen = float32_bytes(autoencoder.state_dict().values()) if autoencoder else 0.0
    held = held_in_training(make, recipe)

    def parts(batch: int) -> dict[str, float]:
        found = memory_parts(make, held, batch, recipe, devices, kind, half)
        return found | ({"autoencoder": frozen} if frozen else {})

    memory = parts(batch)
    largest = largest_batch(parts, capacity * USABLE)
    seconds = None
    troubles = advice(recipe, memory, capacity * USABLE, batch, largest, devices)
    if here and timed and not troubles and dataset is not None and autoencoder is not None:
        told = replace(recipe, train=replace(recipe.train, precision="bfloat16" if half else "float32"))
        seconds = timed_step(told, dataset, autoencoder, batch) * recipe.train.batch / batch / at_once
    elif not here:
        flop = (8 if recipe.parallel.checkpointing else 6) * cost.gmacs * 1e9 * recipe.train.batch
        seconds = flop / (DEVICES[device].flops * REACHED * devices)
    return Plan(
        device=device or kind,
        devices=devices,
        batch=batch,
        parameters=cost.parameters_unfused,
        gmacs=cost.gmacs,
        memory=memory,
        peak=peak(memory),
        capacity=capacity,
        steps_per_second=1 / seconds if seconds else None,
        measured=here,
        seconds=seconds * recipe.train.images / recipe.train.batch if seconds else None,
        checkpoint=held.saved,
        largest_batch=largest,
        advice=troubles,
    )


def memory_parts(
    make: Callable[[], Backbone], held: "Held", batch: int, recipe: Recipe, devices: int, kind: str, half: bool
) -> dict[str, float]:
    """Bytes of each part, for one process."""
    shards = {"none": 1, "full": devices, "hybrid": min(devices, 8)}[recipe.parallel.shard]
    kept, largest = activations(make, batch, recipe.parallel.checkpointing, recipe.train.route)
    factor = HALF if half else 1.0
    found = {
        "process": PROCESS.get(kind, 0.0),
        "weights": held.weights / shards,
        "gradients": held.gradients / shards,
        "optimiser": held.moments / shards,
        "averages": held.averages / shards,
        "activations": kept * factor,
        "workspace": 2 * largest * factor,
    }
    if kind == "cpu":  # elsewhere it lies in the host's memory
        found["copy for the checkpoint"] = held.saved
    if devices > 1 or recipe.parallel.accumulate > 1:  # they do not come and go with the activations
        found["gradients kept"] = found.pop("gradients")
    return found


def peak(memory: dict[str, float]) -> float:
    """Bytes when most is held: gradients grow in the backward pass as activations go."""
    gradients = memory.get("gradients", 0.0)
    either = max(memory["activations"] + memory["workspace"], gradients)
    return sum(memory.values()) - memory["activations"] - memory["workspace"] - gradients + either


class Held(NamedTuple):
    """Bytes in float32 that training holds whatever the batch."""

    weights: float
    gradients: float
    moments: float
    averages: float

    @property
    def saved(self) -> float:
        """Those that a checkpoint has."""
        return self.weights + self.moments + self.averages


def held_in_training(make: Callable[[], Backbone], recipe: Recipe) -> Held:
    """All weights are averaged; gradients and moments are of those that are trained, which with LoRA are few."""
    with torch.device("meta"):
        net = make()
    weights = float32_bytes(net.parameters())
    trained = float32_bytes(parameter for parameter in net.parameters() if parameter.requires_grad)
    moments = 2 * trained - float32_bytes(muon_matrices(net, recipe.optim))  # of these only the first
    return Held(weights, trained, moments, (1 + len(recipe.train.widths)) * weights)


def float32_bytes(parameters: Iterable[Tensor]) -> float:
    """Bytes in float32."""
    return 4.0 * sum(parameter.numel() for parameter in parameters)


def activations(
    make: Callable[[], Backbone], batch: int, checkpointing: bool, route: float = 0.0
) -> tuple[float, float]:
    """Bytes that the backward pass keeps in float32, and those of the largest tensor."""
    with torch.device("meta"):
        net = make().train()
        kept = torch.empty(batch, sum(routed(net, route)), dtype=torch.long) if route and net.routable else None
    trace = None if kept is None else Trace(kept=kept)
    whole = kept_tensors(net, batch, trace)
    if not checkpointing or not net.repeated:
        return sum(whole), max(whole)
    keep_inputs_only(net)
    # One block at a time is computed again.
    return sum(kept_tensors(net, batch, trace)) + sum(whole) / len(net.repeated), max(whole)


def kept_tensors(net: Backbone, batch: int, trace: Trace | None) -> list[float]:
    """Bytes of each storage that autograd keeps for the backward pass, the weights left out."""
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = net(*net.example(batch), trace=trace)
    return [float(storage.nbytes()) for storage in found.values()] + [float(output.nbytes)]


def largest_batch(parts: Callable[[int], dict[str, float]], capacity: float) -> int:
    """The most pictures at a time that fit; each part grows along a line."""
    two, four = parts(2), parts(4)  # a single one needs fewer copies

    def fits(count: int) -> bool:
        return peak({name: two[name] + (count - 2) * (four[name] - two[name]) / 2 for name in two}) <= capacity

    return bisect_left(range(1, MOST + 1), True, key=lambda count: not fits(count))


def advice(
    recipe: Recipe, memory: dict[str, float], capacity: float, batch: int, largest: int, devices: int
) -> list[str]:
    """What to change where it does not fit."""
    if peak(memory) <= capacity:
        return []
    found = []
    if not recipe.parallel.checkpointing:
        found.append("--parallel.checkpointing computes the blocks again instead of keeping them, a third more work")
    if largest >= 1:
        parts = recipe.parallel.accumulate * -(-batch // largest)
        while recipe.train.batch % (parts * devices):
            parts += 1
        found.append(f"--parallel.accumulate={parts} lets the batch pass in parts")
    if devices > 1 and recipe.parallel.shard == "none":
        found.append("--parallel.shard=full leaves a part of the weights, gradients and moments in each process")
    if largest < 1 and devices == 1:
        found.append("more devices with --parallel.shard=full, or a smaller network")
    return found


def timed_step(recipe: Recipe, dataset: Dataset, autoencoder: Autoencoder, batch: int) -> float:
    """Seconds of a step with so many pictures here; from a few of them where that takes long."""
    pipe = build(recipe, dataset, autoencoder, pick_device(recipe.train.device))
    pipe.net.train()
    loss_of = LossOf(pipe, recipe.train)
    dtype = torch.bfloat16 if recipe.train.precision == "bfloat16" else torch.float32
    count = min(batch, FEW)
    while True:
        step, wait = trial_step(loss_of, dataset, count), waiter(pipe.net.device)
        seconds = interleaved({"step": partial(step, dtype)}, 2, wait, min)["step"]
        if count == batch or seconds * MORE > LONG:
            break
        count = min(batch, count * MORE)
    return seconds * batch / count + timed_update(pipe.net, recipe)


def timed_update(net: Backbone, recipe: Recipe) -> float:
    """Seconds in which gradients become other weights and another average; of a tiny network, as many as the rest."""
    optimizer, ema = make_optimizer(net, recipe.optim), EMA(net, recipe.train.ema)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.optim.clip or float("inf"))
        optimizer.step()
        ema.update(net)

    return interleaved({"update": update}, 2, waiter(net.device), min)["update"]


def table(found: Plan) -> Table:
    """Memory by part."""
    shown = Table("memory of a process", "GiB")
    for name, value in found.memory.items():
        shown.add_row(name, f"{value / GIB:,.2f}")
    shown.add_row("at most at a time", f"{found.peak / GIB:,.2f}", style="bold")
    shown.add_row("there is", f"{found.capacity / GIB:,.1f}")
    shown.columns[1].justify = "right"
    return shown


def lines(found: Plan) -> Iterator[str]:
    """The rest in words."""
    yield f"{found.parameters / 1e6:,.1f} M parameters; {found.batch} pictures at a time in each process"
    if found.steps_per_second and found.seconds:
        how = "timed here" if found.measured else "a third of the published peak"
        yield f"{found.steps_per_second:,.2f} steps/s ({how}); {duration(found.seconds)} to the end"
    yield f"{found.checkpoint / GIB:,.2f} GiB each checkpoint"
    yield f"the largest batch that fits: {found.largest_batch:,} pictures at a time"
    if found.advice:
        yield "it does not fit; what helps:"
        yield from found.advice
