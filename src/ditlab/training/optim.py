"""AdamW and the learning rate as a function of the images seen."""

import math

import torch

from ditlab.backbones import Backbone
from ditlab.config import Optim


def make_optimizer(net: Backbone, settings: Optim) -> torch.optim.AdamW:
    """AdamW, fused where the device allows; weight decay acts on matrices only."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = net.device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=fused)


def learning_rate(settings: Optim, seen: int, images: int) -> float:
    """The rate after `seen` of `images` images: linear warm-up, then constant or falling to 0.

    "wsd" (Hu et al., "MiniCPM", 2024) is constant until the last share `decay` of the images, and falls along a line.
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
