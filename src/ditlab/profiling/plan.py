"""What a training run will need, before it is started: `ditlab plan`.

Memory is computed part by part (`ditlab.training.memory`). Rates of accelerators are the published dense bfloat16
peaks, of which training is assumed to reach a third; on the machine itself a step is timed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.table import Table

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import add_lora
from ditlab.checkpoints import load
from ditlab.config.sections import Recipe
from ditlab.core.device import pick_device, total_memory
from ditlab.core.errors import InputError, lookup
from ditlab.core.units import GIB, duration
from ditlab.data import Dataset, open_dataset
from ditlab.diffusion.objective import completed
from ditlab.evaluation import measure
from ditlab.inference.optimize.precision import quick_precision
from ditlab.inference.optimize.timing import interleaved, waiter
from ditlab.training.checks import check_recipe
from ditlab.training.ema import EMA
from ditlab.training.init_from import continued
from ditlab.training.losses import make_context, trial_step
from ditlab.training.memory import (
    USABLE,
    Held,
    float32_bytes,
    held_in_training,
    memory_parts,
    peak,
)
from ditlab.training.optim import make_optimizer
from ditlab.training.parallel import Place
from ditlab.training.setup import build, pick_autoencoder


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
REACHED = 1 / 3  # of the peak rate, in training
# Seconds that a step takes even if its arithmetic took none: launching kernels, about a hundred for the forward and
# backward pass of a block, and reading the batch, the optimizer and the averages.
OVERHEAD_OF_BLOCK, OVERHEAD_OF_STEP = 0.5e-3, 3e-3
MOST = 2**16  # images
FEW, MORE = 8, 4  # images of a first trial, and the factor from one trial to the next
LONG = 2.0  # seconds that no trial may be expected to take; a tiny network needs as long for few images as for many


@dataclass(frozen=True)
class Plan:
    """What a run needs: bytes and figures of one process unless stated otherwise."""

    device: str
    devices: int
    batch: int  # images of a process at a time
    parameters: int
    gmacs: float  # of the network for one image
    memory: dict[str, float]
    peak: float
    capacity: float
    steps_per_second: float | None  # of the whole run; None if it was not timed, or is bound by overhead
    measured: bool  # or computed from the table
    seconds: float | None  # to the end of the run
    checkpoint: float
    largest_batch: int  # of a process at a time, that fits
    advice: list[str]
    overhead_bound: bool = False  # the arithmetic of a step takes less time than launching its kernels

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return not self.advice


Shape = tuple[int, tuple[int, ...], int]  # channels, size and classes of a network


@dataclass(frozen=True)
class Machine:
    """Where a run is planned for."""

    name: str  # in `DEVICES`; empty for this machine
    devices: int
    kind: str  # "cpu" or "cuda"
    capacity: float  # bytes of memory for each process
    at_once: int  # processes that work at the same time

    @property
    def here(self) -> bool:
        """Whether it is this machine."""
        return not self.name


def machine_of(recipe: Recipe, name: str, devices: int) -> Machine:
    """The machine by name; the processes on one CPU take turns and share its memory.

    Raises:
        InputError: an unknown device, or a number of devices that the recipe cannot use.
    """
    if devices < 1:
        raise InputError(f"{devices} devices; give 1 or more")
    if devices == 1 and recipe.parallel.shard != "none":
        raise InputError("parallel.shard needs several processes; plan for more devices, or leave it out")
    if name:
        return Machine(name, devices, "cuda", lookup(DEVICES, name, "device").memory, devices)
    device = pick_device(recipe.train.device)
    at_once = 1 if device.type == "cpu" else devices
    return Machine("", devices, device.type, total_memory(device) / (devices // at_once), at_once)


@dataclass(frozen=True)
class Subject:
    """What is planned: a recipe whose settings are complete, its data if they are at hand, and the network's shape."""

    recipe: Recipe
    shape: Shape
    dataset: Dataset | None = None
    autoencoder: Autoencoder | None = None

    def make(self) -> Backbone:
        """The network with all that is trained."""
        channels, size, classes = self.shape
        learned = bool(self.recipe.diffusion.learn_variance)
        net = create(**vars(self.recipe.model), size=size, channels=channels, classes=classes, learn_variance=learned)
        if self.recipe.train.lora:
            add_lora(net, self.recipe.train.lora, [*net.label_tables, *net.heads_out], 0)
        return net


def subject_of(recipe: Recipe, shape: Shape | None) -> Subject:
    """The recipe with its data and the model that it starts from.

    Args:
        recipe: the run.
        shape: of the network, if the data is not at hand.
    """
    source = load(recipe.train.init_from) if recipe.train.init_from else None
    own = None if source is None else source.objective
    recipe = replace(recipe, diffusion=completed(recipe.diffusion, own))
    if source is not None:
        recipe = replace(recipe, model=continued(recipe.model, source))
    if shape is not None:
        return Subject(recipe, shape)
    dataset = open_dataset(recipe.data.source, recipe.data)
    autoencoder = pick_autoencoder(recipe.data.autoencoder, dataset, source)
    classes = recipe.data.classes or len(dataset.classes)
    return Subject(recipe, (*autoencoder.latent_shape(dataset.channels, dataset.size), classes), dataset, autoencoder)


def plan(recipe: Recipe, device: str = "", devices: int = 1, *, timed: bool = True, shape: Shape | None = None) -> Plan:
    """What a run would need.

    Args:
        recipe: the run.
        device: a name in `DEVICES`; this machine if empty.
        devices: number of devices; on this machine's CPU, number of processes that share its cores and memory.
        timed: take a few steps on this machine, if they fit.
        shape: of the network, if the data is not at hand; then no step is taken.

    Raises:
        InputError: an unknown device, a batch that the devices cannot share, or what training would refuse.
    """
    check_recipe(recipe)
    machine = machine_of(recipe, device, devices)
    batch = Place(torch.device("cpu"), 0, devices).share(recipe.train.batch, recipe.parallel.accumulate)
    subject = subject_of(recipe, shape)
    recipe = subject.recipe
    cost = measure(subject.make)
    half = in_half(subject, machine)
    held = held_in_training(subject.make, recipe)
    parts = partial(all_parts, subject, held, machine, half)
    memory, usable = parts(batch), machine.capacity * USABLE
    largest = largest_batch(parts, usable)
    troubles = advice(recipe, memory, usable, batch, largest, devices)
    seconds, bound = None, False
    if machine.here and timed and not troubles and subject.dataset is not None:
        seconds = timed_step(subject, batch, half) * recipe.train.batch / batch / machine.at_once
    elif not machine.here:
        seconds, bound = predicted_step(subject, machine, cost.gmacs)
    return Plan(
        device=device or machine.kind,
        devices=devices,
        batch=batch,
        parameters=cost.parameters_unfused,
        gmacs=cost.gmacs,
        memory=memory,
        peak=peak(memory),
        capacity=machine.capacity,
        steps_per_second=1 / seconds if seconds else None,
        measured=machine.here,
        seconds=seconds * recipe.train.images / recipe.train.batch if seconds else None,
        checkpoint=held.saved,
        largest_batch=largest,
        advice=troubles,
        overhead_bound=bound,
    )


def in_half(subject: Subject, machine: Machine) -> bool:
    """Whether training would run in bfloat16."""
    precision: str = subject.recipe.train.precision
    if precision == "auto" and machine.here:
        with torch.device("meta"):
            width = subject.make().matrix_width
        precision = quick_precision(width, pick_device(subject.recipe.train.device))
    return precision != "float32"


def all_parts(subject: Subject, held: Held, machine: Machine, half: bool, batch: int) -> dict[str, float]:
    """Bytes of each part for a batch, with those of the autoencoder."""
    parts = memory_parts(subject.make, held, batch, subject.recipe, machine.devices, machine.kind, half)
    frozen = float32_bytes(subject.autoencoder.state_dict().values()) if subject.autoencoder else 0.0
    return parts | ({"autoencoder": frozen} if frozen else {})


def predicted_step(subject: Subject, machine: Machine, gmacs: float) -> tuple[float | None, bool]:
    """Seconds of a step from the published rate; None, and true, where the overhead of a step takes longer."""
    recipe = subject.recipe
    with torch.device("meta"):
        blocks = len(subject.make().repeated)
    overhead = OVERHEAD_OF_STEP + OVERHEAD_OF_BLOCK * blocks * recipe.parallel.accumulate
    flop = (8 if recipe.parallel.checkpointing else 6) * gmacs * 1e9 * recipe.train.batch
    seconds = flop / (DEVICES[machine.name].flops * REACHED * machine.devices)
    return (seconds, False) if seconds > overhead else (None, True)


def largest_batch(parts: Callable[[int], dict[str, float]], capacity: float) -> int:
    """The most images at a time that fit; each part grows linearly."""
    two, four = parts(2), parts(4)  # a single image needs fewer copies

    def fits(count: int) -> bool:
        return peak({name: two[name] + (count - 2) * (four[name] - two[name]) / 2 for name in two}) <= capacity

    return bisect_left(range(1, MOST + 1), True, key=lambda count: not fits(count))


def advice(
    recipe: Recipe, memory: dict[str, float], capacity: float, batch: int, largest: int, devices: int
) -> list[str]:
    """What to change where it does not fit."""
    if peak(memory) <= capacity:
        return []
    lines = []
    if not recipe.parallel.checkpointing:
        lines.append(
            "parallel.checkpointing = true recomputes the blocks instead of keeping them, for a third more work"
        )
    if largest >= 1:
        parts = recipe.parallel.accumulate * -(-batch // largest)
        while recipe.train.batch % (parts * devices):
            parts += 1
        lines.append(f"parallel.accumulate = {parts} processes the batch in parts")
    if devices > 1 and recipe.parallel.shard == "none":
        lines.append('parallel.shard = "full" keeps a part of weights, gradients and moments in each process')
    if largest < 1 and devices == 1:
        lines.append('more devices with parallel.shard = "full", or a smaller network')
    return lines


def timed_step(subject: Subject, batch: int, half: bool) -> float:
    """Seconds of a step with a batch on this machine; extrapolated from a part of it where that takes long."""
    recipe, dataset, autoencoder = subject.recipe, subject.dataset, subject.autoencoder
    assert dataset is not None
    assert autoencoder is not None
    pipe = build(recipe, dataset, autoencoder, pick_device(recipe.train.device))
    pipe.net.train()
    run = make_context(pipe, recipe)
    dtype = torch.bfloat16 if half else torch.float32
    count = min(batch, FEW)
    while True:
        step, wait = trial_step(run, dataset, count), waiter(pipe.net.device)
        seconds = interleaved({"step": partial(step, dtype)}, 2, wait, min)["step"]
        if count == batch or seconds * MORE > LONG:
            break
        count = min(batch, count * MORE)
    return seconds * batch / count + timed_update(pipe.net, recipe)


def timed_update(net: Backbone, recipe: Recipe) -> float:
    """Seconds of the optimizer and the average; for a tiny network they take as long as forward and backward pass."""
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
    shown = Table("memory per process", "GiB")
    for name, value in found.memory.items():
        shown.add_row(name, f"{value / GIB:,.2f}")
    shown.add_row("peak", f"{found.peak / GIB:,.2f}", style="bold")
    shown.add_row("available", f"{found.capacity / GIB:,.1f}")
    shown.columns[1].justify = "right"
    return shown


def lines(found: Plan) -> Iterator[str]:
    """The other figures in words."""
    yield f"{found.parameters / 1e6:,.1f} M parameters; batch per process: {found.batch:,} images at a time"
    if found.overhead_bound:
        yield "speed: overhead-bound: not predicted (launching the kernels of a step takes longer than computing them)"
    elif found.steps_per_second and found.seconds:
        how = "timed here" if found.measured else "a third of the published peak"
        yield f"{rate(found.steps_per_second)} steps/s ({how}); {duration(found.seconds)} for the whole run"
    yield f"{found.checkpoint / GIB:,.2f} GiB for each checkpoint"
    yield f"largest batch per process that fits: {found.largest_batch:,} images at a time"
    if found.advice:
        yield "it does not fit; what helps:"
        yield from found.advice


def rate(value: float) -> str:
    """A rate with three digits, and without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
