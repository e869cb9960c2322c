"""Estimate the memory of training, part by part, without building the network.

Activations are the tensors that autograd keeps for the backward pass. Their size comes from a forward pass on PyTorch's
meta device, which neither allocates nor computes.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.config.sections import Recipe
from ditlab.core.types import Condition, Trace
from ditlab.core.units import GIB
from ditlab.diffusion.objective import make_objective
from ditlab.inference.pipeline import Pipeline
from ditlab.training.losses import make_context
from ditlab.training.optim import muon_matrices
from ditlab.training.parallel import keep_inputs_only
from ditlab.training.rng import Randomness, RunRandomness

PROCESS = {"cpu": 0.45 * GIB, "cuda": 0.8 * GIB}  # Python, PyTorch and their libraries
HALF = 0.6  # activations in bfloat16 autocast relative to float32: norms and softmax stay in float32
USABLE = 0.94  # share of a device's memory that tensors can use; the rest is lost to fragmentation

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
    return Held(weights, trained, moments, (1 + len(recipe.train.power_ema)) * weights)


def float32_bytes(parameters: Iterable[Tensor]) -> float:
    """Size of parameters in bytes, in float32."""
    return 4.0 * sum(parameter.numel() for parameter in parameters)


def memory_parts(
    make: Make, held: Held, batch: int, recipe: Recipe, devices: int, kind: str, half: bool
) -> dict[str, float]:
    """Memory of one process in bytes: part -> size.

    Args:
        make: function that builds the network.
        held: memory that does not depend on the batch size.
        batch: images of a process at a time.
        recipe: the settings of the run.
        devices: number of processes.
        kind: type of the device, "cpu" or "cuda".
        half: whether activations are in bfloat16.
    """
    shards = {"none": 1, "full": devices, "hybrid": min(devices, 8)}[recipe.parallel.shard]
    kept, largest = activations(make, batch, recipe.parallel.checkpointing, recipe)
    factor = HALF if half else 1.0
    parts = {
        "process": PROCESS.get(kind, 0.0),
        "weights": held.weights / shards,
        "gradients": held.gradients / shards,
        "optimizer": held.moments / shards,
        "averages": held.averages / shards,
        "activations": kept * factor,
        "workspace": 2 * largest * factor,
    }
    if kind == "cpu":  # for other devices, the copy is in the memory of the host
        parts["copy for the checkpoint"] = held.saved
    if devices > 1 or recipe.parallel.accumulate > 1:  # gradients exist during the next forward pass
        parts["gradients kept"] = parts.pop("gradients")
    return parts


def peak(memory: dict[str, float]) -> float:
    """Peak memory in bytes: in the backward pass, gradients are allocated while activations are freed."""
    gradients = memory.get("gradients", 0.0)
    activations = memory["activations"] + memory["workspace"]
    return sum(memory.values()) - activations - gradients + max(activations, gradients)


def activations(make: Make, batch: int, checkpointing: bool, recipe: Recipe | None = None) -> tuple[float, float]:
    """Size in bytes of all activations in float32, and of the largest one.

    Args:
        make: function that builds the network.
        batch: images at a time.
        checkpointing: whether blocks are recomputed in the backward pass.
        recipe: the settings of the run, for its training aids; None for no aids.
    """
    with torch.device("meta"):
        net = make().train()
        inputs = net.example(batch)
    trace = None if recipe is None else example_trace(net, batch, recipe)
    whole = kept_tensors(net, inputs, trace)
    if not checkpointing or not net.repeated:
        return sum(whole), max(whole)
    keep_inputs_only(net)
    # One block at a time is recomputed, with all its activations.
    return sum(kept_tensors(net, inputs, trace)) + sum(whole) / len(net.repeated), max(whole)


def example_trace(net: Backbone, batch: int, recipe: Recipe) -> Trace:
    """The trace with which the training aids of a recipe record a forward pass."""
    run = make_context(Pipeline(net, make_objective(recipe.diffusion)), recipe)
    return run.trace(Randomness(RunRandomness(0), 0, 0, batch, batch))


def kept_tensors(net: Backbone, inputs: tuple[Tensor, Tensor, Condition], trace: Trace | None) -> list[float]:
    """Size in bytes of each storage that autograd keeps for the backward pass, without the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in weights:
            storages[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = net(*inputs, trace=trace)
    return [float(storage.nbytes()) for storage in storages.values()] + [float(output.nbytes)]
