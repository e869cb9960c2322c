"""The state of a training run in memory, snapshots of it for checkpoints, and restoring it from a checkpoint."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ditlab.backbones import Backbone, create
from ditlab.core.formats import interpreting
from ditlab.core.modules import skip_init, with_modules
from ditlab.core.weights import ADAPTER, AVERAGED, RAW, WEIGHTS, fit, read_state, read_tensors, read_weights
from ditlab.training.ema import EMA
from ditlab.training.log import Tally
from ditlab.training.optim import Optimizer
from ditlab.training.parallel import Place, place_like, whole
from ditlab.training.power_ema import PowerAverages

PROFILES = "profiles.safetensors"  # power-function averages
STATE = "state.pt"


@dataclass
class TrainState:
    """Everything that changes during training and that a checkpoint saves."""

    net: Backbone
    ema: EMA
    optimizer: Optimizer
    profiles: PowerAverages
    further: nn.ModuleDict = field(default_factory=nn.ModuleDict)  # trained modules beside the network
    seen: int = 0
    seconds: float = 0.0
    precision: str = ""
    compiled: bool | None = None
    tally: Tally = field(default_factory=Tally)
    left_out: int = 0  # steps that were skipped because their gradient was not finite
    in_a_row: int = 0  # consecutive steps that were skipped, up to now

    def parameters(self) -> list[nn.Parameter]:
        """All parameters that are trained."""
        return [*self.net.parameters(), *self.further.parameters()]

    def average(self) -> Backbone:
        """The averaged weights as a complete network in this process; with sharding, all processes must call."""
        if self.ema.net.device != self.net.device:
            return copy.deepcopy(self.ema.net).to(self.net.device)
        if not self.sharded:
            return self.ema.net
        return holding(self.ema.net, gathered(self.ema.net.state_dict(), kept=True)).to(self.ema.net.device)

    def raw(self, average: Backbone) -> Backbone:
        """The raw weights as a complete network in this process; `average` is the result of `average()`."""
        net = copy.deepcopy(average)
        net.load_state_dict(gathered(self.net.state_dict(), kept=True, copied=False))
        return net

    @property
    def sharded(self) -> bool:
        """Whether each process holds only a part of the weights."""
        return isinstance(next(self.net.parameters()), DTensor)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the state on the CPU."""

    average: Backbone
    raw: dict[str, Tensor]
    profiles: dict[str, Tensor]
    content: dict[str, Any]  # everything else: the content of state.pt

    def is_finite(self) -> bool:
        """Whether all weights are finite; other weights must not replace a good checkpoint."""
        weights = [*self.average.parameters(), *self.raw.values()]
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())


def restore_state(folder: Path, state: TrainState, place: Place) -> None:
    """Load a checkpoint into the state.

    A checkpoint with separate low-rank updates holds only what is trained. All other weights are those of the source,
    which the networks must have already.

    Raises:
        InputError: a file is missing or damaged.
    """
    average = next(name for name in (AVERAGED, ADAPTER, WEIGHTS) if name == WEIGHTS or (folder / name).exists())
    partial = average == ADAPTER
    trained = {name for name, parameter in state.net.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for net, name in ((state.net, RAW), (state.ema.net, average)):
            target, tensors = net.state_dict(), read_tensors(folder / name, checked=True)
            expected = {key: value for key, value in target.items() if not partial or key in tensors or key in trained}
            for key, value in fit(tensors, expected, str(folder / name)).items():
                target[key].copy_(place_like(value, target[key]))
        if averages := state.profiles.values:
            for key, value in read_weights(folder / PROFILES, averages, checked=True).items():
                averages[key].copy_(place_like(value, averages[key]))
    file = folder / STATE
    with interpreting(file, f"remove {folder} to resume from the checkpoint before it", "is missing or damaged"):
        saved: dict[str, Any] = read_state(file)
        restore_optimizer(saved["optimizer"], state)
        restore_content(saved, state, place)


def restore_content(saved: dict[str, Any], state: TrainState, place: Place) -> None:
    """Load everything of state.pt but the state of the optimizer."""
    state.further.load_state_dict(saved.get("further", {}))
    state.ema.updates = saved["ema_updates"]
    state.seen, state.seconds, state.precision = saved["seen"], saved["seconds"], saved["precision"]
    state.compiled, state.profiles.steps = saved["compiled"], saved["profile_steps"]
    state.left_out, state.in_a_row = saved["left_out"], saved["in_a_row"]
    named = saved.get("named_losses", {})
    if place.first:  # a checkpoint holds the sums over all processes
        state.tally = Tally(saved["tally"], named)
    else:
        state.tally = Tally(None, {name: torch.zeros(()) for name in named})


def restore_optimizer(saved: dict[str, Any], state: TrainState, *, complete: bool = True) -> None:
    """Load the moments of the optimizer; its settings stay those of the recipe, which may have changed.

    Args:
        saved: the state of the optimizer.
        state: the state of the run.
        complete: whether the moments are complete tensors, of which a sharded run takes its part.
    """
    if state.sharded and complete:
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        for number, values in saved["state"].items():
            for key, value in values.items():
                if value.ndim:  # all values but the step count
                    values[key] = place_like(value, parameters[number])
    present_settings = [settings_of(group) for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(saved)
    for group, settings in zip(state.optimizer.param_groups, present_settings, strict=True):
        group.update(settings)


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group, without the learning rate, which is set before each step."""
    return {key: value for key, value in group.items() if key not in ("params", "lr")}


def snapshot(state: TrainState, place: Place, *, copied: bool) -> Snapshot | None:
    """The present state on the CPU, in the first process; all processes must call.

    Args:
        state: the state.
        place: the place of this process.
        copied: whether tensors are copied, so that training may continue while the snapshot is used.
    """

    def gather(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return gathered(values, kept=place.first, copied=copied)

    optimizer = state.optimizer.state_dict()
    average, raw = gather(state.ema.net.state_dict()), gather(state.net.state_dict())
    profiles = gather(state.profiles.values)
    moments = {number: gather(values) for number, values in optimizer["state"].items()}
    tally = place.total(state.tally.flat())
    if not place.first:
        return None
    return Snapshot(
        holding(state.ema.net, average).cpu() if copied or state.sharded else state.ema.net,
        raw,
        profiles,
        content_of(state, optimizer | {"state": moments}, tally),
    )


def content_of(state: TrainState, optimizer: dict[str, Any], tally: Tensor) -> dict[str, Any]:
    """The content of state.pt.

    Args:
        state: the state.
        optimizer: state of the optimizer, with those of its tensors that are saved in this file.
        tally: the sums of metrics of all processes.
    """
    return {
        "optimizer": optimizer,
        "ema_updates": state.ema.updates,
        "profile_steps": state.profiles.steps,
        "seen": state.seen,
        "seconds": state.seconds,
        "precision": state.precision,
        "compiled": state.compiled,
        "left_out": state.left_out,
        "in_a_row": state.in_a_row,
        "further": {key: value.cpu().clone() for key, value in state.further.state_dict().items()},
        "tally": tally[: len(state.tally.sums)],
        "named_losses": dict(zip(state.tally.named, tally[len(state.tally.sums) :], strict=True)),
    }


def holding(net: Backbone, tensors: dict[str, Tensor]) -> Backbone:
    """A network with the architecture of `net` and these tensors."""
    if not isinstance(next(net.parameters()), DTensor):
        replaced = {key: value for key, value in net.state_dict(keep_vars=True).items() if key in tensors}
        replacements = {
            value: nn.Parameter(tensors[key], False) if isinstance(value, nn.Parameter) else tensors[key]
            for key, value in replaced.items()
        }
        return with_modules(net, replacements)
    with skip_init():
        plain = create(**net.config)
    plain.load_state_dict(tensors, assign=True)
    return plain.eval().requires_grad_(False)


def gathered(values: Mapping[str, Tensor], *, kept: bool, copied: bool = True) -> dict[str, Tensor]:
    """Gather tensors that may be sharded on the CPU; with sharding, all processes must call.

    Args:
        values: the tensors.
        kept: whether this process keeps the result; otherwise it is empty.
        copied: whether tensors that are already on the CPU are copied.
    """
    complete = {}
    for key, value in values.items():
        full = whole(value.detach())
        if kept:
            complete[key] = on_cpu(full, copied=copied)
    return complete


def on_cpu(value: Tensor, *, copied: bool) -> Tensor:
    """A tensor on the CPU, also one of several inner tensors such as moments of 8 bits.

    Args:
        value: the tensor.
        copied: whether it is copied if it is already on the CPU.
    """
    if not is_traceable_wrapper_subclass(value):
        return value.to("cpu", copy=copied)
    names, context = value.__tensor_flatten__()
    inner = {name: getattr(value, name).to("cpu", copy=copied) for name in names}
    return type(value).__tensor_unflatten__(inner, context, value.shape, value.stride())
