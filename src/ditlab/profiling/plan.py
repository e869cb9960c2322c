"""Estimate memory and time of a training run before it is started: `ditlab plan`.

Memory is computed part by part (`ditlab.training.memory`). For this machine, a step is timed. For other accelerators,
training is assumed to reach a third of the published dense bfloat16 peak.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.table import Table

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import add_lora
from ditlab.checkpoints import load
from ditlab.checkpoints.diffusers import outline
from ditlab.conditioning import Conditioner, Text
from ditlab.config.sections import Recipe
from ditlab.core.device import pick_device, total_memory
from ditlab.core.errors import InputError, lookup
from ditlab.core.hub import is_hub_id
from ditlab.core.units import GIB, counted, duration
from ditlab.data import Dataset, open_dataset
from ditlab.evaluation import measure
from ditlab.inference.optimize.precision import quick_precision
from ditlab.inference.optimize.timing import CLOCKS, interleaved, waiter
from ditlab.inference.pipeline import Pipeline
from ditlab.profiling.settings import OVERHEAD_OF_BLOCK, OVERHEAD_OF_STEP, Fit, Question, cheapest
from ditlab.profiling.settings import line as settings_line
from ditlab.training.captions import CaptionConditions, Captions, read_captions
from ditlab.training.checks import check_recipe
from ditlab.training.ema import EMA
from ditlab.training.init_from import completed_recipe, continued
from ditlab.training.losses import make_context, trial_step
from ditlab.training.memory import (
    USABLE,
    Held,
    Sizes,
    advice,
    float32_bytes,
    held_in_training,
    largest_batch,
    of_blocks,
    parts_with,
    peak,
    sizes_of,
)
from ditlab.training.model import build, pick_autoencoder, pick_conditioner
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.optim import make_optimizer
from ditlab.training.parallel import Place


@dataclass(frozen=True)
class Device:
    """An accelerator."""

    memory: float  # bytes
    flops: float  # peak rate of dense bfloat16 operations per second


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
REACHED = 1 / 3  # share of the peak rate that training reaches
FEW, MORE = 8, 4  # images of the first trial, and the factor from one trial to the next
LONG = 2.0  # seconds: a next trial that is expected to take longer is not made


@dataclass(frozen=True)
class Plan:
    """The estimate for a run; memory is in bytes, for one process unless stated otherwise."""

    device: str
    devices: int
    batch: int  # images of a process at a time
    parameters: int
    gmacs: float  # of the network for one image
    average_gmacs: float  # at inference, on average over uniform timesteps; less for dynamic networks and early exit
    memory: dict[str, float]
    peak: float
    capacity: float
    steps_per_second: float | None  # of the whole run; None if it was not timed, or is bound by overhead
    measured: bool  # whether steps_per_second was timed on this machine, and not computed from the peak rate
    seconds: float | None  # duration of the run
    checkpoint: float  # size of a checkpoint
    largest_batch: int  # most images of a process at a time that fit in memory
    advice: list[str]
    cheapest: Fit | None = None  # settings that fit and cost least time; only for GPUs
    overhead_bound: bool = False  # the arithmetic of a step takes less time than launching its kernels

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return not self.advice


Shape = tuple[int, tuple[int, ...], int]  # channels, size and classes of a network


@dataclass(frozen=True)
class Machine:
    """The machine for which a run is planned."""

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
    """Describe a machine by the name of its device; processes on one CPU take turns and share its memory.

    Raises:
        InputError: the device is unknown, or the recipe cannot use this number of devices.
    """
    if devices < 1:
        raise InputError(f"{devices} devices; give 1 or more")
    if devices == 1 and recipe.parallel.shard != "none":
        raise InputError("parallel.shard needs several processes; plan for more devices, or omit it")
    if name:
        return Machine(name, devices, "cuda", lookup(DEVICES, name, "device").memory, devices)
    device = pick_device(recipe.train.device)
    at_once = 1 if device.type == "cpu" else devices
    return Machine("", devices, device.type, total_memory(device) / (devices // at_once), at_once)


@dataclass(frozen=True)
class Subject:
    """The run that is planned: its complete recipe, the shape of the network, and the data if it is available."""

    recipe: Recipe
    shape: Shape
    dataset: Dataset | None = None
    autoencoder: Autoencoder | None = None
    conditioner: Conditioner | None = None
    captions: Captions | None = None

    def make(self) -> Backbone:
        """Build the network, with low-rank updates if the recipe has them."""
        channels, size, classes = self.shape
        learned = bool(self.recipe.diffusion.learn_variance)
        derived = {"classes": classes} if self.conditioner is None else self.conditioner.network_options()
        options = vars(self.recipe.model) | derived
        with torch.device("cpu"):  # the network may be on the meta device, whose numbers an objective cannot check
            inputs = OBJECTIVES.find(self.recipe.train.objective).reading(self.recipe).inputs
        net = create(**options, size=size, channels=channels, learn_variance=learned, inputs=inputs)
        if self.recipe.train.lora:
            add_lora(net, self.recipe.train.lora, [*net.label_tables, *net.heads_out], 0)
        return net


def subject_of(recipe: Recipe, shape: Shape | None) -> Subject:
    """Open the data of a recipe and the model that it starts from, and complete its settings.

    Args:
        recipe: the settings of the run.
        shape: shape of the network if the data is not available; None to open the data.
    """
    source = source_of(recipe.train.init_from, shape)
    recipe = completed_recipe(recipe, None if source is None else source.objective)
    if source is not None:
        recipe = replace(recipe, model=continued(recipe.model, source))
    if shape is not None:
        text = source is not None and source.net.text
        return Subject(recipe, shape, conditioner=source.conditioner if source is not None and text else None)
    dataset = open_dataset(recipe.data.source, recipe.data)
    autoencoder = pick_autoencoder(recipe.data.autoencoder, dataset, source)
    captions = read_captions(recipe.data, dataset)
    conditioner = pick_conditioner(recipe.data, dataset, captions, source)
    latents = autoencoder.latent_shape(dataset.channels, dataset.size)
    classes = recipe.data.classes or len(dataset.classes)
    return Subject(recipe, (*latents, classes), dataset, autoencoder, conditioner, captions)


def source_of(origin: str, shape: Shape | None) -> Pipeline | None:
    """Load the model that a run starts from; None for a run that starts from new weights.

    With a given shape, nothing is downloaded: a published model on the hub is described by its name.

    Raises:
        InputError: there is no such model, or its name does not describe it.
    """
    if not origin or shape is None or not is_hub_id(origin):
        return load(origin, device="cpu") if origin else None
    source = outline(origin)
    if source is None:
        raise InputError(
            f'the name "{origin}" does not contain a published size such as DiT-XL-2; download this model, and set '
            "train.init_from to its folder"
        )
    return source


def plan(recipe: Recipe, device: str = "", devices: int = 1, *, timed: bool = True, shape: Shape | None = None) -> Plan:
    """Estimate memory and time of a run.

    Args:
        recipe: the settings of the run.
        device: a name in `DEVICES`; empty for this machine.
        devices: number of devices; on this machine's CPU, number of processes that share its cores and memory.
        timed: time a few steps on this machine if they fit in memory.
        shape: shape of the network if the data is not available; then no step is timed.

    Raises:
        InputError: the device is unknown, the batch cannot be divided among the devices, or the recipe is invalid.
    """
    check_recipe(recipe)
    machine = machine_of(recipe, device, devices)
    place = Place(torch.device("cpu"), 0, devices).in_sequence(recipe.parallel.sequence)
    batch = place.share(recipe.train.batch, recipe.parallel.accumulate)
    subject = subject_of(recipe, shape)
    recipe = subject.recipe
    cost = measure(subject.make)
    half = in_half(subject, machine)
    held = held_in_training(subject.make, recipe)
    sizes = sizes_of(subject.make, recipe, machine.kind, half)
    parts = partial(all_parts, subject, held, machine, sizes)
    memory, usable = parts(batch), machine.capacity * USABLE
    largest = largest_batch(parts, usable)
    troubles = advice(recipe, peak(memory), usable, batch, largest, devices)
    seconds, bound = None, False
    if machine.here and timed and not troubles and subject.dataset is not None:
        seconds = timed_step(subject, batch, half) * recipe.train.batch / batch / machine.at_once
    elif not machine.here:
        seconds, bound = predicted_step(subject, machine, cost.gmacs, held.gradients / held.weights)
    length = seconds * recipe.train.images / recipe.train.batch if seconds else None
    if length and recipe.train.minutes:
        length = min(length, 60 * recipe.train.minutes)
    fit = None
    if machine.kind == "cuda":
        fit = cheapest(question_of(subject, machine, cost.gmacs, held), sizes)
    return Plan(
        device=device or machine.kind,
        devices=devices,
        batch=batch,
        parameters=cost.parameters_unfused,
        gmacs=cost.gmacs,
        average_gmacs=cost.average_gmacs,
        memory=memory,
        peak=peak(memory),
        capacity=machine.capacity,
        steps_per_second=1 / seconds if seconds else None,
        measured=machine.here,
        seconds=length,
        checkpoint=held.saved_apart if recipe.train.lora and recipe.train.lora_apart else held.saved,
        largest_batch=largest,
        advice=troubles,
        cheapest=fit,
        overhead_bound=bound,
    )


def question_of(subject: Subject, machine: Machine, gmacs: float, held: Held) -> Question:
    """The question which settings of memory fit a machine; arguments as for `predicted_step`."""
    rate = DEVICES[machine.name or "a100"].flops * REACHED
    usable = machine.capacity * USABLE - frozen_bytes(subject)
    return Question.of(subject.make, subject.recipe, held, gmacs, devices=machine.devices, usable=usable, flops=rate)


def frozen_bytes(subject: Subject) -> float:
    """Size of the autoencoder in bytes."""
    return float32_bytes(subject.autoencoder.state_dict().values()) if subject.autoencoder else 0.0


def in_half(subject: Subject, machine: Machine) -> bool:
    """Whether training would run in bfloat16."""
    precision: str = subject.recipe.train.precision
    if precision == "auto" and machine.here:
        with torch.device("meta"):
            width = subject.make().matrix_width
        precision = quick_precision(width, pick_device(subject.recipe.train.device))
    return precision != "float32"


def all_parts(subject: Subject, held: Held, machine: Machine, sizes: Sizes, batch: int) -> dict[str, float]:
    """Memory in bytes of each part for a batch size, including the autoencoder."""
    activations = sizes(*of_blocks(subject.recipe), batch)
    parts = parts_with(subject.recipe, held, machine.devices, machine.kind, activations)
    frozen = frozen_bytes(subject)
    return parts | ({"autoencoder": frozen} if frozen else {})


def predicted_step(subject: Subject, machine: Machine, gmacs: float, trained: float) -> tuple[float | None, bool]:
    """Predict the seconds of a step from the peak rate of the device.

    Args:
        subject: the run.
        machine: the devices.
        gmacs: of the network for one image.
        trained: share of the weights that have gradients, which are a third of the work if all have.

    Returns:
        The seconds and False; None and True if the overhead of a step is larger than its arithmetic.
    """
    recipe = subject.recipe
    with torch.device("meta"):
        blocks = len(subject.make().repeated)
    overhead = OVERHEAD_OF_STEP + OVERHEAD_OF_BLOCK * blocks * recipe.parallel.accumulate
    flop = ((6 if recipe.parallel.checkpointing else 4) + 2 * trained) * gmacs * 1e9 * recipe.train.batch
    seconds = flop / (DEVICES[machine.name].flops * REACHED * machine.devices)
    return (seconds, False) if seconds > overhead else (None, True)


def timed_step(subject: Subject, batch: int, half: bool) -> float:
    """Time a step on this machine in seconds; a long step is extrapolated from a smaller batch."""
    recipe, dataset, autoencoder = subject.recipe, subject.dataset, subject.autoencoder
    assert dataset is not None
    assert autoencoder is not None
    assert subject.conditioner is not None
    pipe = build(recipe, dataset, autoencoder, pick_device(recipe.train.device), subject.conditioner)
    pipe.net.train()
    run = make_context(pipe, recipe, dataset)
    if subject.captions is not None and isinstance(pipe.conditioner, Text):
        run.captions = CaptionConditions.encode(subject.captions, pipe.conditioner, recipe.data.text_cache)
    dtype = torch.bfloat16 if half else torch.float32
    count = min(batch, FEW)
    while True:
        step, wait = trial_step(run, dataset, count), waiter(pipe.net.device)
        seconds = interleaved({"step": partial(step, dtype)}, 2, wait, min, CLOCKS[recipe.train.clock])["step"]
        if count == batch or seconds * MORE > LONG:
            break
        count = min(batch, count * MORE)
    return seconds * batch / count + timed_update(pipe.net, recipe)


def timed_update(net: Backbone, recipe: Recipe) -> float:
    """Time the updates of weights and average in seconds; for tiny networks they take as long as the gradient."""
    optimizer, ema = make_optimizer(net, recipe.optim), EMA(net, recipe.train.ema)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.optim.clip or float("inf"))
        optimizer.step()
        ema.update(net)

    return interleaved({"update": update}, 2, waiter(net.device), min, CLOCKS[recipe.train.clock])["update"]


def table(estimate: Plan) -> Table:
    """The memory of each part as a table for the terminal."""
    memory = Table("memory per process", "GiB")
    for name, value in estimate.memory.items():
        memory.add_row(name, f"{value / GIB:,.2f}")
    memory.add_row("peak", f"{estimate.peak / GIB:,.2f}", style="bold")
    memory.add_row("available", f"{estimate.capacity / GIB:,.1f}")
    memory.columns[1].justify = "right"
    return memory


def lines(estimate: Plan) -> Iterator[str]:
    """The other figures as lines of text."""
    yield (
        f"{estimate.parameters / 1e6:,.1f} M parameters; batch per process: {counted(estimate.batch, 'image')} at a "
        "time"
    )
    if estimate.average_gmacs < estimate.gmacs:
        full, average = f"{estimate.gmacs:,.4g}", f"{estimate.average_gmacs:,.4g}"
        yield f"{full} GMACs per image in training, and {average} on average at inference"
    if estimate.overhead_bound:
        yield "overhead-bound: not predicted (launching the kernels of a step takes longer than running them)"
    elif estimate.steps_per_second and estimate.seconds:
        method = "timed here" if estimate.measured else "a third of the published peak"
        yield f"{rate(estimate.steps_per_second)} steps/s ({method}); {duration(estimate.seconds)} for the whole run"
    yield f"{estimate.checkpoint / GIB:,.2f} GiB for each checkpoint"
    yield f"largest batch per process that fits: {counted(estimate.largest_batch, 'image')} at a time"
    if estimate.advice:
        yield "it does not fit; what helps:"
        yield from estimate.advice
    if estimate.device in DEVICES or estimate.cheapest:
        yield settings_line(estimate.cheapest)


def rate(value: float) -> str:
    """A rate as text with three significant digits, and without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
