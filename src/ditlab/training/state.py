"""The state of a training run in memory: what a checkpoint copies, and how it is restored from one."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ditlab.backbones import Backbone, create
from ditlab.core.errors import InputError
from ditlab.core.modules import Unfilled
from ditlab.core.weights import WEIGHTS, read_weights
from ditlab.training.ema import EMA
from ditlab.training.log import Tally
from ditlab.training.optim import Optimiser
from ditlab.training.parallel import Place, place_like, whole
from ditlab.training.power_ema import PowerAverages

RAW = "raw.safetensors"  # the weights that are trained
PROFILES = "profiles.safetensors"  # power-function averages
AVERAGED = "ema.safetensors"  # the average with its low-rank updates, from which training resumes
STATE = "state.pt"


@dataclass
class TrainState:
    """All that changes during training, which is what a checkpoint saves."""

    net: Backbone
    ema: EMA
    optimizer: Optimiser
    profiles: PowerAverages
    seen: int = 0
    seconds: float = 0.0
    precision: str = ""
    compiled: bool | None = None
    tally: Tally = field(default_factory=Tally)
    left_out: int = 0  # steps that were skipped because their gradient was not finite
    in_a_row: int = 0  # consecutive steps that were skipped, up to now

    def average(self) -> Backbone:
        """The average of the weights as a network of this process alone; if it is sharded, all processes must call."""
        if not self.sharded:
            return self.ema.net
        return holding(self.ema.net, gathered(self.ema.net.state_dict(), kept=True)).to(self.ema.net.device)

    def raw(self, average: Backbone) -> Backbone:
        """The trained weights as a network of this process alone; `average` is what `average()` returned."""
        net = copy.deepcopy(average)
        net.load_state_dict(gathered(self.net.state_dict(), kept=True, copied=False))
        return net

    @property
    def sharded(self) -> bool:
        """Whether every process holds only a part of the weights."""
        return isinstance(next(self.net.parameters()), DTensor)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the CPU, which no longer changes."""

    average: Backbone
    raw: dict[str, Tensor]
    profiles: dict[str, Tensor]
    rest: dict[str, Any]

    def is_finite(self) -> bool:
        """Whether every weight is a finite number: other weights must not replace a good checkpoint."""
        weights = [*self.average.parameters(), *self.raw.values()]
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())


def restore_state(folder: Path, state: TrainState, place: Place) -> None:
    """Load a checkpoint into the state.

    Raises:
        InputError: a file that is missing or damaged.
    """
    average = AVERAGED if (folder / AVERAGED).exists() else WEIGHTS
    with torch.no_grad():
        for net, name in ((state.net, RAW), (state.ema.net, average)):
            target = net.state_dict()
            for key, value in read_weights(folder / name, target).items():
                target[key].copy_(place_like(value, target[key]))
        if mine := state.profiles.values:
            for key, value in read_weights(folder / PROFILES, mine).items():
                mine[key].copy_(place_like(value, mine[key]))
    try:
        saved: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        restore_optimizer(saved["optimizer"], state)
        state.ema.updates = saved["ema_updates"]
        state.seen, state.seconds, state.precision = saved["seen"], saved["seconds"], saved["precision"]
        state.compiled, state.profiles.steps = saved["compiled"], saved["profile_steps"]
        state.left_out, state.in_a_row = saved["left_out"], saved["in_a_row"]
        named = saved.get("named_losses", {})
        if place.first:  # which has the sums of all processes
            state.tally = Tally(saved["tally"], named)
        else:
            state.tally = Tally(None, {name: torch.zeros(()) for name in named})
    except Exception as error:  # a damaged pickle can raise almost anything
        raise InputError(
            f"{folder / STATE} is missing or damaged ({type(error).__name__}); "
            f"remove {folder} to resume from the checkpoint before it"
        ) from error


def restore_optimizer(saved: dict[str, Any], state: TrainState) -> None:
    """Load the moments of the optimizer; settings of the recipe that may change on resume stay the recipe's."""
    if state.sharded:
        parameters = [each for group in state.optimizer.param_groups for each in group["params"]]
        for number, values in saved["state"].items():
            for key, value in values.items():
                if value.ndim:  # all but the count of steps
                    values[key] = place_like(value, parameters[number])
    own = [settings_of(group) for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(saved)
    for group, settings in zip(state.optimizer.param_groups, own, strict=True):
        group.update(settings)


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings for a group of parameters; the learning rate is set before each step."""
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def snapshot(state: TrainState, place: Place, *, copied: bool) -> Snapshot | None:
    """The state as it is now, on the CPU, for the first process; all processes must call.

    Args:
        state: the state.
        place: this process.
        copied: whether training may continue while the snapshot is used.
    """

    def taken(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(values, kept=place.first, copied=copied)

    optimizer = state.optimizer.state_dict()
    average, raw = taken(state.ema.net.state_dict()), taken(state.net.state_dict())
    profiles = taken(state.profiles.values)
    moments = {number: taken(values) for number, values in optimizer["state"].items()}
    tally = place.total(state.tally.flat())
    if not place.first:
        return None
    return Snapshot(
        holding(state.ema.net, average).cpu() if copied or state.sharded else state.ema.net,
        raw,
        profiles,
        {
            "optimizer": optimizer | {"state": moments},
            "ema_updates": state.ema.updates,
            "profile_steps": state.profiles.steps,
            "seen": state.seen,
            "seconds": state.seconds,
            "precision": state.precision,
            "compiled": state.compiled,
            "left_out": state.left_out,
            "in_a_row": state.in_a_row,
            "tally": tally[: len(state.tally.sums)],
            "named_losses": dict(zip(state.tally.named, tally[len(state.tally.sums) :], strict=True)),
        },
    )


def holding(net: Backbone, tensors: dict[str, Tensor]) -> Backbone:
    """A network of the same kind that holds these tensors."""
    if not isinstance(next(net.parameters()), DTensor):
        own = {key: value for key, value in net.state_dict(keep_vars=True).items() if key in tensors}
        same = {
            id(value): nn.Parameter(tensors[key], False) if isinstance(value, nn.Parameter) else tensors[key]
            for key, value in own.items()
        }
        return copy.deepcopy(net, same)
    with Unfilled():
        plain = create(**net.config)
    plain.load_state_dict(tensors, assign=True)
    return plain.eval().requires_grad_(False)


def gathered(values: Mapping[str, Tensor], *, kept: bool, copied: bool = True) -> dict[str, Tensor]:
    """Values that may be sharded, whole and on the CPU; nothing where they are not kept."""
    values_here = {}
    for key, value in values.items():
        full = whole(value.detach())
        if kept:
            values_here[key] = full.to("cpu", copy=copied)
    return values_here
