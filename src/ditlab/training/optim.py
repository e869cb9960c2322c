"""The optimizer, and the learning rate as a function of the images seen."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import Parameter

from ditlab.backbones import Backbone
from ditlab.config.sections import Optim
from ditlab.core.errors import InputError
from ditlab.training.muon import Muon
from ditlab.training.offload import HostOptimizer


def make_optimizer(net: Backbone, settings: Optim, *, offloaded: bool = False) -> "Optimizer":
    """The optimizer of a network: AdamW, or Muon for the hidden matrices and AdamW for all other parameters.

    The parameter groups of the network decide which parameters have weight decay, and which matrices Muon updates
    (Jordan et al. 2024). Muon's updates are scaled to AdamW's size, so that one learning rate suits both.

    Args:
        net: the network.
        settings: the [optim] section of the recipe.
        offloaded: keep the moments in the memory of the host.

    Raises:
        InputError: a parameter is in none of the network's parameter groups, or a library is missing.
    """
    matrices = muon_matrices(net, settings)
    decay = {id(p): group.decay for group in net.parameter_groups() for p in group.parameters}
    if missing := [name for name, p in net.named_parameters() if id(p) not in decay]:
        raise InputError(f"parameter_groups of {net.config['name']} omit {missing[0]}; add it to one of them")
    # In the order of the network, because saved states number the parameters in this order.
    hidden = {id(parameter) for parameter in matrices}
    others = [p for p in net.parameters() if id(p) not in hidden]
    groups = [
        {"params": [p for p in others if decay[id(p)]], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if not decay[id(p)]], "weight_decay": 0.0},
    ]
    fused = net.device.type in ("cpu", "cuda", "mps")
    if settings.moments == "8bit":
        return eight_bits()(groups, lr=settings.lr, betas=settings.betas)
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)
    if offloaded:
        return HostOptimizer(adamw)
    if not matrices:
        return adamw
    muon = Muon(matrices, settings.lr, settings.weight_decay)
    return CombinedOptimizer(adamw, muon)


def eight_bits() -> Callable[..., torch.optim.Optimizer]:
    """The AdamW of torchao, whose moments have 8 bits (Dettmers et al. 2022) where a tensor is large enough.

    Raises:
        InputError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(
            'optim.moments "8bit" needs torchao; pip install "ditlab[lowbit]", or set it to "float32"'
        ) from None
    made: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return made


def muon_matrices(net: Backbone, settings: Optim) -> list[Parameter]:
    """The parameters that Muon updates, in the order of the network; empty for other optimizers."""
    if settings.name != "muon":
        return []
    allowed = {id(p) for group in net.parameter_groups() if group.muon for p in group.parameters}
    return [p for p in net.parameters() if id(p) in allowed]


class CombinedOptimizer:
    """Two optimizers of different parameters, with the interface of one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = first, second

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both optimizers."""
        return [group for part in self.parts for group in part.param_groups]

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a parameter group to the first optimizer."""
        self.parts[0].add_param_group(group)

    def step(self) -> None:
        """Take a step with each optimizer."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimizers, with keys (index of the optimizer, index of the parameter)."""
        states = [part.state_dict() for part in self.parts]
        return {
            "state": {(i, n): value for i, state in enumerate(states) for n, value in state["state"].items()},
            "param_groups": [state["param_groups"] for state in states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load states that `state_dict` returned."""
        for i, (part, groups) in enumerate(zip(self.parts, state["param_groups"], strict=True)):
            values = {n: value for (index, n), value in state["state"].items() if index == i}
            part.load_state_dict({"state": values, "param_groups": groups})


Optimizer = torch.optim.Optimizer | CombinedOptimizer | HostOptimizer
Number = int | tuple[int, int]
"""Number of a parameter in the state of an optimizer, for a combined one after the number of the optimizer."""


def numbered_parameters(optimizer: Optimizer) -> dict[Number, Parameter]:
    """The parameters of an optimizer by their numbers in its state."""

    def of(part: torch.optim.Optimizer | HostOptimizer) -> Iterator[tuple[int, Parameter]]:
        return enumerate(parameter for group in part.param_groups for parameter in group["params"])

    if isinstance(optimizer, CombinedOptimizer):
        return {(i, n): parameter for i, part in enumerate(optimizer.parts) for n, parameter in of(part)}
    return dict(of(optimizer))


def learning_rate(settings: Optim, seen: int, images: int, elapsed: float = 0.0) -> float:
    """The learning rate after `seen` of `images` images: linear warm-up, then constant or decaying to 0.

    "wsd" (Hu et al., "MiniCPM", 2024) is constant, and decays linearly to 0 over the last share `decay` of the run.

    Args:
        settings: peak and schedule.
        seen: images seen.
        images: length of the run in images.
        elapsed: share of the training time that has passed; the schedule follows the larger share.
    """
    if seen < settings.warmup:
        return settings.lr * (seen + 1) / settings.warmup
    progress = min(1.0, max(elapsed, (seen - settings.warmup) / max(1, images - settings.warmup)))
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "linear":
        return settings.lr * (1 - progress)
    if settings.schedule == "wsd":
        return settings.lr * min(1.0, (1 - min(1.0, max(elapsed, seen / images))) / max(settings.decay, 1e-9))
    return settings.lr
