"""Samplers: generators from noise to data, each in a file of its own.

A sampler is called as `sampler(denoise, process, x, grid, noise)` with x the noise at time grid[0] and grid the
falling times (steps + 1,) that end at 0. It yields a `Step` after each step and sees predictions only, so it works
with every target, process and guidance. A new sampler is one file and one line in `SAMPLERS`.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.core.types import Between, Denoise, Noise, Step
from ditlab.diffusion.process import Process
from ditlab.diffusion.samplers.adams_bashforth import adams_bashforth
from ditlab.diffusion.samplers.ddim import ddim
from ditlab.diffusion.samplers.ddpm import ddpm
from ditlab.diffusion.samplers.dpmpp import dpmpp
from ditlab.diffusion.samplers.euler import euler
from ditlab.diffusion.samplers.grids import GRIDS, SCHEDULES, time_grid
from ditlab.diffusion.samplers.heun import heun
from ditlab.diffusion.samplers.sde import sde

Sampler = Callable[[Denoise, Process, Tensor, Tensor, Noise], Iterator[Step]]


def check(name: str, sampler: Sampler) -> None:
    """Refuse what is no sampler.

    Raises:
        InputError: something that cannot be called with (denoise, process, x, schedule, noise).
    """
    try:
        inspect.signature(sampler).bind(*range(5))
    except (TypeError, ValueError) as error:
        raise InputError(
            f'the sampler "{name}" cannot be called with (denoise, process, x, schedule, noise): {error}'
        ) from None


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "ddpm": ddpm,
        "ddim": ddim,
        "euler": euler,
        "heun": heun,
        "dpmpp": dpmpp,
        "ab2": partial(adams_bashforth, order=2),
        "ab4": partial(adams_bashforth, order=4),
        "sde": sde,
    },
    check,
)

__all__ = ["GRIDS", "SAMPLERS", "SCHEDULES", "Sampler", "image_noise", "time_grid"]


def image_noise(seeds: Sequence[int | Between]) -> Noise:
    """Noise with one CPU generator for each image, so that a seed gives one image at any batch size and device.

    Between two seeds the noise is interpolated on a great circle, so that it stays Gaussian.
    """
    draws = [_turning(seed) if isinstance(seed, Between) else _fixed(seed) for seed in seeds]

    def noise(like: Tensor) -> Tensor:
        return torch.stack([draw(like.shape[1:]) for draw in draws]).to(like)

    return noise


def _fixed(seed: int) -> Callable[[torch.Size], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _turning(seed: Between) -> Callable[[torch.Size], Tensor]:
    first, second = _fixed(seed.first), _fixed(seed.second)
    angle = seed.weight * math.pi / 2  # squares of the two weights add up to 1, so the variance stays 1
    return lambda shape: math.cos(angle) * first(shape) + math.sin(angle) * second(shape)
