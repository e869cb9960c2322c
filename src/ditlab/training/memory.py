"""How much memory training needs, part by part, before anything is built.

Activations are what the backward pass keeps, found by a forward pass without memory or work (PyTorch's meta device).
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
from ditlab.training.rng import Chance, Randomness

PROCESS = {"cpu": 0.45 * GIB, "cuda": 0.8 * GIB}  # Python, PyTorch and their libraries
HALF = 0.6  # of the activations' bytes in bfloat16 autocast: norms and softmax keep float32
USABLE = 0.94  # of a device's memory, for fragments between tensors

Make = Callable[[], Backbone]


class Held(NamedTuple):
    """Bytes in float32 that training holds for any batch."""

    weights: float
    gradients: float
    moments: float
    averages: float

    @property
    def saved(self) -> float:
        """The bytes of a checkpoint."""
        return self.weights + self.moments + self.averages


def held_in_training(make: Make, recipe: Recipe) -> Held:
    """All weights are averaged; gradients and moments are of the trained weights only, which with LoRA are few."""
    with torch.device("meta"):
        net = make()
    weights = float32_bytes(net.parameters())
    trained = float32_bytes(parameter for parameter in net.parameters() if parameter.requires_grad)
    moments = 2 * trained - float32_bytes(muon_matrices(net, recipe.optim))  # which have one moment
    return Held(weights, trained, moments, (1 + len(recipe.train.power_ema)) * weights)


def float32_bytes(parameters: Iterable[Tensor]) -> float:
    """Bytes in float32."""
    return 4.0 * sum(parameter.numel() for parameter in parameters)


def memory_parts(
    make: Make, held: Held, batch: int, recipe: Recipe, devices: int, kind: str, half: bool
) -> dict[str, float]:
    """Bytes of each part, for one process.

    Args:
        make: builds the network.
        held: what training holds for any batch.
        batch: images of a process at a time.
        recipe: the run.
        devices: how many processes.
        kind: "cpu" or "cuda".
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
    if kind == "cpu":  # on other devices it is in the memory of the host
        parts["copy for the checkpoint"] = held.saved
    if devices > 1 or recipe.parallel.accumulate > 1:  # then gradients stay while activations come and go
        parts["gradients kept"] = parts.pop("gradients")
    return parts


def peak(memory: dict[str, float]) -> float:
    """The largest number of bytes at a time: gradients grow in the backward pass as activations are freed."""
    gradients = memory.get("gradients", 0.0)
    either = max(memory["activations"] + memory["workspace"], gradients)
    return sum(memory.values()) - memory["activations"] - memory["workspace"] - gradients + either


def activations(make: Make, batch: int, checkpointing: bool, recipe: Recipe | None = None) -> tuple[float, float]:
    """Bytes that the backward pass keeps in float32, and those of the largest tensor.

    Args:
        make: builds the network.
        batch: images at a time.
        checkpointing: whether blocks are computed again in the backward pass.
        recipe: the run, for its training aids.
    """
    with torch.device("meta"):
        net = make().train()
        inputs = net.example(batch)
    trace = None if recipe is None else example_trace(net, batch, recipe)
    whole = kept_tensors(net, inputs, trace)
    if not checkpointing or not net.repeated:
        return sum(whole), max(whole)
    keep_inputs_only(net)
    # One block at a time is computed again.
    return sum(kept_tensors(net, inputs, trace)) + sum(whole) / len(net.repeated), max(whole)


def example_trace(net: Backbone, batch: int, recipe: Recipe) -> Trace:
    """What the training aids of a recipe ask of a forward pass."""
    run = make_context(Pipeline(net, make_objective(recipe.diffusion)), recipe)
    return run.trace(Randomness(Chance(0), 0, 0, batch, batch))


def kept_tensors(net: Backbone, inputs: tuple[Tensor, Tensor, Condition], trace: Trace | None) -> list[float]:
    """Bytes of each storage that autograd keeps for the backward pass, without the weights."""
    own = {parameter.untyped_storage()._cdata for parameter in net.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        output = net(*inputs, trace=trace)
    return [float(storage.nbytes()) for storage in storages.values()] + [float(output.nbytes)]
