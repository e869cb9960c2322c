"""Checkpoints that all processes write together, each its part of the weights, the average and the moments.

    run/checkpoints/000000128000/config.json, state.pt, manifest.json, ...   as in other checkpoints
    run/checkpoints/000000128000/ema, raw, optimizer                         tensors in parts, see `ditlab.core.parts`

No process ever holds more than its part. The last checkpoint of a run has `model.safetensors` too, so that it is a
complete model folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from ditlab.backbones import Backbone, create
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.io import damage, entry_of
from ditlab.core.model_files import AVERAGE_PARTS
from ditlab.core.parts import outline, read_parts, write_parts
from ditlab.core.units import GIB
from ditlab.core.weights import RAW_PARTS, checkpoint_damage, fit, read_state
from ditlab.training.optim import Number, numbered_parameters
from ditlab.training.parallel import Place, local
from ditlab.training.state import STATE, TrainState, content_of, restore_content, restore_optimizer

MOMENTS = "optimizer"
LARGE = 8 * GIB  # of a checkpoint: half a billion parameters with AdamW


def in_parts(folder: Path) -> bool:
    """Whether a checkpoint was written in parts."""
    return (folder / RAW_PARTS).is_dir()


def writes_parts(recipe: Recipe, state: TrainState) -> bool:
    """Whether all processes write the checkpoints of a run together.

    Raises:
        InputError: the recipe demands it, but another setting excludes it.
    """
    chosen, excluded = recipe.parallel.checkpoint, obstacle(recipe, state)
    if chosen == "sharded" and excluded:
        raise InputError(f'parallel.checkpoint "sharded" cannot be combined with {excluded}; set it to "whole"')
    size = 4 * sum(value.nbytes for value in state.net.parameters())  # raw, average, two moments
    return chosen == "sharded" or (chosen == "auto" and not excluded and state.sharded and size >= LARGE)


def obstacle(recipe: Recipe, state: TrainState) -> str:
    """What in a run needs complete tensors in one process; empty if nothing does."""
    if recipe.train.power_ema:
        return "train.power_ema, whose snapshots one process writes"
    if recipe.train.lora:
        return "train.lora, which trains few weights"
    integers = [name for name, value in state.net.state_dict().items() if not value.is_floating_point()]
    return f"a network whose {integers[0]} is of whole numbers" if integers else ""


@dataclass
class Parts:
    """What this process holds of the state, on the CPU or, if it is not copied, where it is."""

    tensors: dict[str, dict[str, Tensor]]  # folder -> name -> tensor
    content: dict[str, Any]  # of state.pt
    finite: bool  # whether all weights of all processes are finite

    def write(self, draft: Path, place: Place) -> dict[str, dict[str, int | str]]:
        """Write the parts of this process; all processes must call.

        Returns:
            In the first process, the entries of the manifest for the files of all processes.

        Raises:
            OSError: a file cannot be written by any of the processes.
        """
        for folder, tensors in self.tensors.items():
            write_parts(tensors, draft / folder, place.group)
        files = [file for folder in self.tensors for file in draft.glob(f"{folder}/shard-{place.rank + 1:05d}-*")]
        return dict(place.collect([(file.relative_to(draft).as_posix(), entry_of(file)) for file in files]))


class Stager:
    """Copies tensors to the memory of the CPU, into the same place each time, as PyTorch's asynchronous saving does."""

    def __init__(self, device: torch.device) -> None:
        pinned = device.type == "cuda"  # from which a GPU copies faster
        self.stager = DefaultStager(StagingOptions(pinned, False, False, pinned))

    def __call__(self, tensors: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Copy tensors; the copies are valid until the next call."""
        copies: Any = self.stager.stage(tensors)
        return dict(copies)


def take_parts(state: TrainState, place: Place, stage: Callable[..., dict[str, dict[str, Tensor]]] | None) -> Parts:
    """What this process holds of the state; all processes must call.

    Args:
        state: the state.
        place: the place of this process.
        stage: copies the tensors; None if training waits until they are written.
    """
    optimizer = state.optimizer.state_dict()
    # Numbers of steps. They are copied here, because training counts on while the files are written.
    few = {
        number: {key: value.clone() for key, value in values.items() if not value.ndim}
        for number, values in optimizer["state"].items()
    }
    tensors = {
        AVERAGE_PARTS: detached(state.ema.net),
        RAW_PARTS: detached(state.net),
        MOMENTS: {
            key_of(number, key): value
            for number, values in optimizer["state"].items()
            for key, value in values.items()
            if value.ndim
        },
    }
    weights = local([*tensors[AVERAGE_PARTS].values(), *tensors[RAW_PARTS].values()])
    ruined = place.maximum(int(not torch.stack([weight.isfinite().all() for weight in weights]).all()))
    tally = place.total(state.tally.flat())
    content = content_of(state, optimizer | {"state": few}, tally)
    return Parts(tensors if stage is None else stage(tensors), content, not ruined)


def outlined(net: Backbone) -> Backbone:
    """A network of the same architecture without numbers, which describes a network that no process holds whole."""
    if not isinstance(next(net.parameters()), DTensor):
        return net
    with torch.device("meta"):
        return create(**net.config | {"size": tuple(net.config["size"])})


def detached(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network."""
    return {name: value.detach() for name, value in net.state_dict().items()}


def key_of(number: Number, key: str) -> str:
    """Name of a moment: number of its parameter in the optimizer, and its key there."""
    return f"{'-'.join(map(str, number)) if isinstance(number, tuple) else number}/{key}"


def damage_together(folder: Path, place: Place) -> str | None:
    """Describe what is wrong with a checkpoint; all processes must call, and each compares some of the hashes.

    Returns:
        The same in all processes; None if the checkpoint is whole.
    """
    if not place.agree(in_parts(folder)):
        return place.first_does(lambda: damage(folder, hashes=True))
    problems = place.collect([checkpoint_damage(folder, hashes=True, share=(place.rank, place.world))])
    return place.agree(next(filter(None, problems), None))


def restore_parts(folder: Path, state: TrainState, place: Place) -> None:
    """Load a checkpoint that any number of processes have written in parts; all processes must call.

    Raises:
        InputError: a file is missing or damaged, or belongs to another network.
    """
    for net, name in ((state.net, RAW_PARTS), (state.ema.net, AVERAGE_PARTS)):
        targets = detached(net)
        fit(outline(folder / name), targets, str(folder / name))
        read_parts(folder / name, targets, place.group)
    parameters = numbered_parameters(state.optimizer)
    names = {key_of(number, ""): number for number in parameters}
    file = folder / STATE
    with interpreting(file, f"remove {folder} to resume from the checkpoint before it", "is missing or damaged"):
        saved: dict[str, Any] = read_state(file)
        moments = {}
        for key in outline(folder / MOMENTS):
            number, _, name = key.partition("/")
            moments[key] = torch.zeros_like(parameters[names[f"{number}/"]])
            saved["optimizer"]["state"][names[f"{number}/"]][name] = moments[key]
    fit(outline(folder / MOMENTS), moments, str(folder / MOMENTS))
    read_parts(folder / MOMENTS, moments, place.group)
    with interpreting(file, f"remove {folder} to resume from the checkpoint before it", "is missing or damaged"):
        restore_optimizer(saved["optimizer"], state, complete=False)
        restore_content(saved, state, place)
