"""Timestep schedules: the times that a sampler visits. For latents, times even in t beat times even in log-SNR.

A schedule is a name, or a file of schedules that were tuned for one process (`ditlab tune` writes it):
{"process": {"name": "linear"}, "sampler": "ab4", "grids": {"6": [1.0, ..., 0.0], "8": [...]}}
"""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.diffusion.process import DDPM, Process, process_name


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
    """3 t / (1 + 2 t): finer near the noise, for large images (Esser et al. 2024, eq. 23)."""
    t = process.uniform(steps)
    return 3 * t / (1 + 2 * t)


def leading(process: Process, steps: int) -> Tensor:
    """Indices 0, k, 2 k, ... with k = 1000 // steps, noisiest first: DiT's "ddimN", diffusers' default for DDIM."""
    if not isinstance(process, DDPM):
        raise InputError("the leading schedule counts indices of the ddpm process, which this model does not have")
    process.uniform(steps)  # refuses more steps than the chain has
    stride = process.timesteps // steps
    indices = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride
    return torch.cat([(indices + 1) / process.timesteps, torch.zeros(1, dtype=torch.float64)])


SCHEDULES: Registry[Callable[[Process, int], Tensor]] = Registry(
    "timestep schedule",
    {
        "uniform": uniform,
        "cosine": cosine,
        "log-snr": log_snr,
        "shifted": shifted,
        "leading": leading,
    },
)
GRIDS = SCHEDULES


def time_grid(name: str, process: Process, steps: int, last_time: float = 1.0) -> Tensor:
    """`steps` + 1 falling times (steps + 1,) that end at 0, none of them noisier than `last_time`.

    Raises:
        InputError: an unknown name, or a file that has nothing for this process or count.
    """
    if steps < 1:
        raise InputError(f"{steps} sampling steps; give 1 or more")
    if name.endswith(".json"):
        return read_grid(Path(name), process, steps, last_time)
    return SCHEDULES.find(name)(process, steps) * last_time


def grid_identity(name: str, steps: int) -> str | list[float]:
    """What identifies a schedule: its name, or the times of one in a file, because a file may be overwritten."""
    return tabulated_times(Path(name), steps)[0] if name.endswith(".json") else name


def read_grid(file: Path, process: Process, steps: int, last_time: float) -> Tensor:
    """The times in a file for a count of steps, checked for this process."""
    times, made_for = tabulated_times(file, steps)
    if made_for != process_name(process):
        raise InputError(f"{file} was made for the process {made_for}, this model has {process_name(process)}")
    grid = torch.tensor(times, dtype=torch.float64)
    if len(grid) != steps + 1 or not bool((grid.diff() < 0).all()) or not 0 == grid[-1] < grid[0] <= 1:
        raise InputError(f"{file}: the schedule of {steps} steps is not {steps + 1} falling times from at most 1 to 0")
    if grid[0] > last_time:
        raise InputError(
            f"{file}: the schedule of {steps} steps begins at {grid[0]:g}, where the prediction of this model does not "
            f"determine the data; it may begin at {last_time:g}: make one for this model with ditlab tune"
        )
    return grid


def tabulated_times(file: Path, steps: int) -> tuple[list[float], str]:
    """The times in a file for a count of steps, and the process that they are for."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        made_for, grids = content["process"]["name"], content["grids"]
        times = grids.get(str(steps))
        found = None if times is None else [float(time) for time in times]
    except FileNotFoundError:
        raise InputError(f"there is no schedule file {file}; give another, or the name of a schedule") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not a file of timestep schedules ({error!r}); make one with ditlab tune"
        ) from error
    if found is None:
        raise InputError(f"{file} has no schedule of {steps} steps; it has {', '.join(grids)}")
    return found, made_for
