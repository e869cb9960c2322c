"""Time grids: which times a sampler visits. For latents a grid even in t beats one even in log-SNR."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ditlab.diffusion.process import DDPM, Process
from ditlab.errors import InputError, lookup


def uniform(process: Process, steps: int) -> Tensor:
    """Even in t (for DDPM: the respaced chain)."""
    return process.uniform(steps)


def cosine(process: Process, steps: int) -> Tensor:
    """1 - cos: finer near the data."""
    return 1 - torch.cos(process.uniform(steps) * (math.pi / 2))


def log_snr(process: Process, steps: int) -> Tensor:
    """Even in log(alpha / sigma) between -5 and 5, with the ends added (Lu et al. 2022)."""
    inner = process.time_of(torch.linspace(-5, 5, steps, dtype=torch.float64))
    inner[0] = 1.0
    return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


def shifted(process: Process, steps: int) -> Tensor:
    """3 t / (1 + 2 t): finer near the noise, for large pictures (Esser et al. 2024, eq. 23)."""
    t = process.uniform(steps)
    return 3 * t / (1 + 2 * t)


def leading(process: Process, steps: int) -> Tensor:
    """Indices 0, k, 2 k, ... with k = 1000 // steps, noisiest first: DiT's "ddimN", diffusers' default for DDIM."""
    if not isinstance(process, DDPM):
        raise InputError("the leading grid counts indices of the ddpm process, which this model does not have")
    process.uniform(steps)  # refuses more steps than the chain has
    stride = process.timesteps // steps
    indices = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride
    return torch.cat([(indices + 1) / process.timesteps, torch.zeros(1, dtype=torch.float64)])


GRIDS: dict[str, Callable[[Process, int], Tensor]] = {
    "uniform": uniform,
    "cosine": cosine,
    "log-snr": log_snr,
    "shifted": shifted,
    "leading": leading,
}


def time_grid(name: str, process: Process, steps: int, last_time: float = 1.0) -> Tensor:
    """`steps` + 1 falling times (steps + 1,) that end at 0, none of them noisier than `last_time`."""
    if steps < 1:
        raise InputError(f"{steps} sampling steps; give 1 or more")
    return lookup(GRIDS, name, "time grid")(process, steps) * last_time
