"""Distributions of the training times, as quantile functions u in (0, 1) -> t, so that all can be stratified."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ditlab.core.registry import Registry


def mode(u: Tensor, mean: float, scale: float) -> Tensor:
    """More samples in the middle for a scale above 0, and at the ends below 0 (Esser et al. 2024, eq. 20)."""
    return 1 - u - scale * (torch.cos(u * (math.pi / 2)).square() - 1 + u)


def cosmap(u: Tensor, mean: float, scale: float) -> Tensor:
    """The cosine schedule on the linear path (Esser et al. 2024, eq. 21)."""
    return 1 - 1 / (torch.tan(u * (math.pi / 2)) + 1)


TIMES: Registry[Callable[[Tensor, float, float], Tensor]] = Registry(
    "time distribution",
    {
        "uniform": lambda u, mean, scale: u,
        # more samples in the middle of the path, which is the hardest part (Esser et al. 2024)
        "logit-normal": lambda u, mean, scale: torch.sigmoid(mean + scale * torch.special.ndtri(u)),
        "mode": mode,
        "cosmap": cosmap,
    },
)
