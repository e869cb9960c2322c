"""The optimizer, and the learning rate as a function of the images seen."""

import math
from typing import Any

import torch
from torch.nn import Parameter

from ditlab.backbones import Backbone
from ditlab.config.sections import Optim
from ditlab.core.errors import InputError


def make_optimizer(net: Backbone, settings: Optim) -> "Optimiser":
    """AdamW, fused where the device allows, with the weight decay that the network's parameter groups say.

    With "muon" the matrices that the network allows are left to Muon (Jordan et al. 2024), at updates of AdamW's size,
    so that the same learning rate serves both.

    Raises:
        InputError: a network whose groups leave out a parameter.
    """
    matrices = muon_matrices(net, settings)
    decay = {id(p): group.decay for group in net.parameter_groups() for p in group.parameters}
    if missing := [name for name, p in net.named_parameters() if id(p) not in decay]:
        raise InputError(f"parameter_groups of {net.config['name']} leave out {missing[0]}; add it to one of them")
    # In the network's order, by which saved states number the parameters.
    hidden = {id(parameter) for parameter in matrices}
    others = [p for p in net.parameters() if id(p) not in hidden]
    groups = [
        {"params": [p for p in others if decay[id(p)]], "weight_decay": settings.weight_decay},
        {"params": [p for p in others if not decay[id(p)]], "weight_decay": 0.0},
    ]
    fused = net.device.type in ("cpu", "cuda", "mps")
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        matrices, lr=settings.lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return Both(adamw, muon)


def muon_matrices(net: Backbone, settings: Optim) -> list[Parameter]:
    """The parameters that Muon updates, in the network's order."""
    if settings.name != "muon":
        return []
    allowed = {id(p) for group in net.parameter_groups() if group.muon for p in group.parameters}
    return [p for p in net.parameters() if id(p) in allowed]


class Both:
    """Two optimizers as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = first, second

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of both."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """A step of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The states of both, with keys (optimizer, parameter)."""
        states = [part.state_dict() for part in self.parts]
        return {
            "state": {(i, n): value for i, state in enumerate(states) for n, value in state["state"].items()},
            "param_groups": [state["param_groups"] for state in states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for i, (part, groups) in enumerate(zip(self.parts, state["param_groups"], strict=True)):
            mine = {n: value for (which, n), value in state["state"].items() if which == i}
            part.load_state_dict({"state": mine, "param_groups": groups})


Optimiser = torch.optim.Optimizer | Both


def learning_rate(settings: Optim, seen: int, images: int) -> float:
    """The learning rate after `seen` of `images` images: linear warm-up, then constant or falling to 0.

    "wsd" (Hu et al., "MiniCPM", 2024) is constant until the last share `decay` of the images, then falls linearly to 0.
    """
    if seen < settings.warmup:
        return settings.lr * (seen + 1) / settings.warmup
    progress = min(1.0, (seen - settings.warmup) / max(1, images - settings.warmup))
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "linear":
        return settings.lr * (1 - progress)
    if settings.schedule == "wsd":
        return settings.lr * min(1.0, (1 - seen / images) / max(settings.decay, 1e-9))
    return settings.lr
