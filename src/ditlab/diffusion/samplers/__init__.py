"""Samplers: generators that compute data from noise step by step, one per file.

A sampler is called as `sampler(denoise, process, x, schedule, noise)`, where x is the noise at time schedule[0] and the
schedule has the decreasing times (steps + 1,) that end at 0. It yields a `Step` after each step. It uses predictions of
x0 and eps only, so that it works with every target, process and guidance. To add a sampler, write a file with the
function and a line in `SAMPLERS`.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
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
from ditlab.diffusion.samplers.flow_map import flow_map
from ditlab.diffusion.samplers.grids import GRIDS, SCHEDULES, time_grid
from ditlab.diffusion.samplers.heun import heun
from ditlab.diffusion.samplers.sde import sde

Sampler = Callable[[Denoise, Process, Tensor, Tensor, Noise], Iterator[Step]]


def check(name: str, sampler: Sampler) -> None:
    """Check that a function is a sampler.

    Raises:
        InputError: it cannot be called with (denoise, process, x, schedule, noise).
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
        "map": flow_map,
    },
    check,
)

__all__ = ["GRIDS", "SAMPLERS", "SCHEDULES", "Sampler", "image_noise", "time_grid"]


def image_noise(seeds: Sequence[int | Between]) -> Noise:
    """Return a noise function with one CPU generator per image.

    A seed of up to 63 bits gives the same image on any device and in any batch. Between two seeds the noise is
    interpolated on a great circle, so that it stays Gaussian.
    """
    sources = [_interpolated(seed) if isinstance(seed, Between) else _seeded(seed) for seed in seeds]

    def noise(like: Tensor) -> Tensor:
        return torch.stack([source(like.shape[1:]) for source in sources]).to(like)

    return noise


def _seeded(seed: int) -> Callable[[torch.Size], Tensor]:
    high, low = divmod(seed, 2**32)
    if not high:
        generator = torch.Generator().manual_seed(seed)
        return lambda shape: torch.randn(shape, generator=generator)
    # PyTorch's generator on the CPU ignores all but the lower 32 bits of a seed. NumPy's reads all, and the values of
    # this one never change between versions of NumPy.
    source = np.random.RandomState([low, high])
    return lambda shape: torch.from_numpy(source.standard_normal(tuple(shape))).float()


def _interpolated(seed: Between) -> Callable[[torch.Size], Tensor]:
    first, second = _seeded(seed.first), _seeded(seed.second)
    angle = seed.weight * math.pi / 2  # the squares of the two weights sum to 1, which keeps the variance
    return lambda shape: math.cos(angle) * first(shape) + math.sin(angle) * second(shape)
