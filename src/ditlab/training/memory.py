"""Estimate the memory of training, part by part, without building the network.

Activations are the tensors that autograd keeps for the backward pass. Their size comes from a forward pass on PyTorch's
meta device, which neither allocates nor computes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.backbones.token_share import TokenShare
from ditlab.config.sections import Recipe
from ditlab.core.device import free_memory, peak_memory, total_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.core.units import GIB
from ditlab.diffusion.parametrizations import make_objective
from ditlab.inference.pipeline import Pipeline
from ditlab.training.kernels import KernelsOf
from ditlab.training.losses import make_context
from ditlab.training.optim import muon_matrices
from ditlab.training.parallel import keep_inputs_only
from ditlab.training.rng import Randomness, RunRandomness
from ditlab.training.sharded import LARGE

PROCESS = {"cpu": 0.45 * GIB, "cuda": 0.8 * GIB}  # Python, PyTorch and their libraries
USABLE = 0.94  # share of a device's memory that tensors can use; the rest is lost to fragmentation
CERTAIN = 1.5  # a run that needs this many times the memory there is cannot work, although predictions are not exact
SMALLEST, BLOCK = 4096, 256  # numbers of the smallest tensor whose moments have 8 bits, and with one scale
MOST = 2**16  # largest batch size that is considered

Make = Callable[[], Backbone]


class Held(NamedTuple):
    """Memory in bytes that training needs regardless of the batch size, in float32."""

    weights: float
    gradients: float
    moments: float
    averages: float

    @property
    def saved(self) -> float:
        """The bytes of a checkpoint with all weights, and of its copy in memory."""
        return self.weights + self.moments + self.averages

    @property
    def saved_apart(self) -> float:
        """The bytes of a checkpoint with low-rank updates alone: raw and averaged values, and moments."""
        return 2 * self.gradients + self.moments


def held_in_training(make: Make, recipe: Recipe) -> Held:
    """Memory of weights, gradients, optimizer moments and averages.

    Averages hold all weights; gradients and moments only the trained ones, which are few with LoRA.
    """
    with torch.device("meta"):
        net = make()
    weights = float32_bytes(net.parameters())
    trained = float32_bytes(parameter for parameter in net.parameters() if parameter.requires_grad)
    moments = 2 * trained - float32_bytes(muon_matrices(net, recipe.optim))  # Muon has one moment, AdamW two
    if recipe.optim.moments == "8bit":
        moments = sum(2 * eight_bit_bytes(parameter) for parameter in net.parameters() if parameter.requires_grad)
    return Held(weights, trained, moments, (1 + len(recipe.train.power_ema)) * weights)


def float32_bytes(parameters: Iterable[Tensor]) -> float:
    """Size of parameters in bytes, in float32."""
    return 4.0 * sum(parameter.numel() for parameter in parameters)


def eight_bit_bytes(parameter: Tensor) -> float:
    """Size of a moment in bytes with optim.moments = "8bit": small tensors stay in float32, as in torchao."""
    count = parameter.numel()
    return count * (1 + 4 / BLOCK) if count >= SMALLEST and count % BLOCK == 0 else 4.0 * count


def memory_parts(
    make: Make, held: Held, batch: int, recipe: Recipe, devices: int, kind: str, half: bool
) -> dict[str, float]:
    """Memory of one process in bytes: part -> size; without what is kept in the memory of the host.

    Args:
        make: function that builds the network.
        held: memory that does not depend on the batch size.
        batch: images of a process at a time.
        recipe: the settings of the run.
        devices: number of processes.
        kind: type of the device, "cpu" or "cuda".
        half: whether activations are in bfloat16.
    """
    return parts_with(recipe, held, devices, kind, sizes_of(make, recipe, kind, half)(*of_blocks(recipe), batch))


class ActivationSizes(NamedTuple):
    """Bytes of activations."""

    kept: float  # on the device, for the backward pass
    recomputed: float  # at a time, in the backward pass
    largest: float  # tensor
    offloaded: float  # in the memory of the host


def parts_with(recipe: Recipe, held: Held, devices: int, kind: str, sizes: ActivationSizes) -> dict[str, float]:
    """Memory of one process in bytes, as `memory_parts` returns it, with these activations."""
    shards, offload = shares_of(recipe, devices), recipe.parallel.offload
    parts = {
        "process": PROCESS.get(kind, 0.0),
        "weights": held.weights / shards,
        "gradients": held.gradients / shards,
        "optimizer": held.moments / shards,
        "averages": held.averages / shards,
        "activations": sizes.kept,
        "workspace": sizes.recomputed + 2 * sizes.largest,
    }
    for setting, part in (("moments", "optimizer"), ("average", "averages")):
        if setting in offload:
            del parts[part]
    if kind == "cpu":  # for other devices, the copy is in the memory of the host
        parts["copy for the checkpoint"] = held.saved / (shards if in_parts(recipe, held) else 1)
    if devices > 1 or recipe.parallel.accumulate > 1:  # gradients exist during the next forward pass
        parts["gradients kept"] = parts.pop("gradients")
    return parts


def shares_of(recipe: Recipe, devices: int) -> int:
    """The number of processes among which weights, gradients, moments and averages are divided."""
    return {"none": 1, "full": devices, "hybrid": min(devices, 8)}[recipe.parallel.shard]


def in_parts(recipe: Recipe, held: Held) -> bool:
    """Whether each process copies only its part for a checkpoint."""
    chosen = recipe.parallel.checkpoint if not recipe.train.power_ema else "whole"
    return recipe.parallel.shard != "none" and (chosen == "sharded" or (chosen == "auto" and held.saved >= LARGE))


def host_parts(held: Held, recipe: Recipe, devices: int, offloaded: float) -> dict[str, float]:
    """Memory in bytes that a process on a GPU needs on its host: part -> size.

    Args:
        held: memory that does not depend on the batch size.
        recipe: the settings of the run.
        devices: number of processes.
        offloaded: activations that are kept there.
    """
    offload = recipe.parallel.offload
    parts = {"copy for the checkpoint": held.saved / (shares_of(recipe, devices) if in_parts(recipe, held) else 1)}
    if "moments" in offload:
        parts["optimizer"] = held.moments + 2 * held.gradients  # and copies of the weights and their gradients
    if "average" in offload:
        parts["averages"] = held.averages
    return parts | ({"activations": offloaded} if offloaded else {})


def peak(memory: dict[str, float]) -> float:
    """Peak memory in bytes: in the backward pass, gradients are allocated while activations are freed."""
    return sum(memory.values()) - min(memory.get("gradients", 0.0), memory["activations"])


def largest_batch(parts: Callable[[int], dict[str, float]], capacity: float) -> int:
    """The most images at a time that fit in memory; the size of each part is linear in the batch size."""
    two, four = parts(2), parts(4)  # not 1, because a single image needs fewer copies

    def fits(count: int) -> bool:
        return peak({name: two[name] + (count - 2) * (four[name] - two[name]) / 2 for name in two}) <= capacity

    return bisect_left(range(1, MOST + 1), True, key=lambda count: not fits(count))


def advice(recipe: Recipe, needed: float, capacity: float, batch: int, largest: int, devices: int) -> list[str]:
    """Changes of the recipe that reduce its memory; empty if it fits."""
    if needed <= capacity:
        return []
    lines = []
    if not recipe.parallel.checkpointing:
        lines.append(
            "parallel.checkpointing = true recomputes the blocks instead of keeping them, for a third more work"
        )
    if largest >= 1:
        parts = recipe.parallel.accumulate * -(-batch // largest)
        while recipe.train.batch % (parts * (devices // recipe.parallel.sequence)):
            parts += 1
        lines.append(f"parallel.accumulate = {parts} processes the batch in parts")
    if devices > 1 and recipe.parallel.shard == "none":
        lines.append('parallel.shard = "full" keeps a part of weights, gradients and moments in each process')
    if largest < 1 and devices == 1:
        lines.append('more devices with parallel.shard = "full", or a smaller network')
    return lines


class Room(NamedTuple):
    """Memory in bytes that each process can use."""

    total: float  # of the machine or the container
    free: float  # now, with what this process uses already

    @classmethod
    def of(cls, device: torch.device, world: int) -> "Room":
        """The memory of a device; processes on one CPU share it."""
        shares = world if device.type == "cpu" else 1
        return cls(total_memory(device) / shares, (free_memory(device) + peak_memory(device)) / shares)


def shortage(recipe: Recipe, parts: Callable[[int], dict[str, float]], room: Room, batch: int, devices: int) -> str:
    """Describe a lack of memory in a line; empty if there is enough.

    Args:
        recipe: the settings of the run.
        parts: predicted memory of a process for a number of images at a time.
        room: the memory of a process.
        batch: images of a process at a time.
        devices: number of processes.

    Raises:
        InputError: far more is needed than there is, so that the system would end the process.
    """
    needed, usable, where = peak(parts(batch)), room.total * USABLE, " in each process" if devices > 1 else ""
    need = f"this run needs about {needed / GIB:,.1f} GiB of memory{where}, and"
    if needed > usable:
        remedies = "; or ".join(advice(recipe, needed, usable, batch, largest_batch(parts, usable), devices))
        line = f"{need} {room.total / GIB:,.1f} GiB are available; what helps: {remedies}"
        if needed > CERTAIN * room.total and recipe.parallel.check_memory:
            raise InputError(f"{line}; or parallel.check_memory = false trains nevertheless")
        return line
    if needed > room.free:
        return f"{need} {room.free / GIB:,.1f} of {room.total / GIB:,.1f} GiB are free now; end other programs first"
    return ""


class Activations:
    """What a network keeps for the backward pass. Each part is counted when it is asked for, and once."""

    def __init__(
        self, make: Make, batch: int, recipe: Recipe | None = None, *, kind: str = "cpu", half: bool = False
    ) -> None:
        """Describe a forward pass; nothing is counted yet.

        Args:
            make: function that builds the network.
            batch: images at a time.
            recipe: the settings of the run, for its training aids; None for no aids.
            kind: type of the device, "cpu" or "cuda".
            half: whether the network runs in bfloat16 autocast, which adds a copy of its weights.
        """
        self.make, self.batch, self.recipe, self.kind, self.half = make, batch, recipe, kind, half

    def sizes(self, *, checkpointing: bool = False, offloaded: bool = False) -> ActivationSizes:
        """What is kept if blocks are recomputed, and if what they keep is offloaded."""
        whole, largest, blocks = self.whole
        kept, recomputed = whole, 0.0
        if checkpointing and blocks:
            kept, recomputed = self.of_inputs, whole / blocks  # one block at a time is recomputed
        if not offloaded:
            return ActivationSizes(kept, recomputed, largest, 0.0)
        inside = kept - self.outside  # the part of one block at a time is on the device
        return ActivationSizes(self.outside, recomputed or inside / max(1, blocks), largest, inside)

    @cached_property
    def whole(self) -> tuple[float, float, int]:
        """Bytes of everything and of the largest tensor, and the number of blocks."""
        net, values, copies = self.counted(lambda net: None)
        return sum(values) + copies, max(values), len(net.repeated)

    @cached_property
    def of_inputs(self) -> float:
        """Bytes if blocks keep their inputs only."""
        _, values, copies = self.counted(keep_inputs_only)
        return sum(values) + copies

    @cached_property
    def outside(self) -> float:
        """Bytes outside the blocks."""
        _, values, copies = self.counted(uncount_blocks)
        return sum(values) + copies

    def counted(self, change: Callable[[Backbone], None]) -> tuple[Backbone, list[float], float]:
        """The network with a change, and what it keeps as `kept_tensors` counts it."""
        with torch.device("meta"):
            net = self.make().train()
            if self.recipe is not None and self.recipe.parallel.sequence > 1:
                net.share_tokens(TokenShare(0, self.recipe.parallel.sequence))
            inputs = net.example(self.batch)
        trace = None if self.recipe is None else example_trace(net, self.batch, self.recipe)
        change(net)
        return net, *kept_tensors(net, inputs, trace, KernelsOf(self.kind, self.half))


Sizes = Callable[[bool, bool, int], ActivationSizes]
"""Activations with or without recomputing, with or without offloading, for a number of images at a time."""


def sizes_of(make: Make, recipe: Recipe, kind: str, half: bool) -> Sizes:
    """The activations of a network; arguments as for `Activations`. Each count takes seconds for a large network."""
    of = cache(lambda batch: Activations(make, batch, recipe, kind=kind, half=half))
    return lambda checkpointing, offloaded, batch: of(batch).sizes(checkpointing=checkpointing, offloaded=offloaded)


def of_blocks(recipe: Recipe) -> tuple[bool, bool]:
    """Whether a recipe recomputes blocks, and whether it offloads what they keep."""
    return recipe.parallel.checkpointing, "activations" in recipe.parallel.offload


def uncount_blocks(net: Backbone) -> None:
    """Do not count what the blocks save."""
    for block in net.repeated:
        block.forward = uncounted(block.forward)


def uncounted(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a forward pass so that outer hooks do not see what it saves."""

    def inner(*inputs: Any) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda value: value, lambda value: value):
            return forward(*inputs)

    return inner


def example_trace(net: Backbone, batch: int, recipe: Recipe) -> Trace:
    """The trace with which the training aids of a recipe record a forward pass."""
    run = make_context(Pipeline(net, make_objective(recipe.diffusion)), recipe)
    return run.trace(Randomness(RunRandomness(0), 0, 0, batch, batch))


def kept_tensors(
    net: Backbone, inputs: tuple[Tensor, Tensor, Condition], trace: Trace | None, kernels: KernelsOf
) -> tuple[list[float], float]:
    """Count what is kept for the backward pass besides the weights.

    Returns:
        Size in bytes of each storage, and of all copies of weights in another precision together.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return value

    with kernels, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = net(*inputs, trace=trace)
    for weight, copy in kernels.copies.items():
        if weight.requires_grad:  # autocast keeps it until the end of the forward pass
            keep(copy)
    copied = {copy.untyped_storage()._cdata for copy in kernels.copies.values()}
    copies = sum(float(storages.pop(key).nbytes()) for key in copied & storages.keys())
    return [float(storage.nbytes()) for storage in storages.values()] + [float(output.nbytes)], copies
