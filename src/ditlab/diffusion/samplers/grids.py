"""Timestep schedules: the times of the steps of a sampler.

For latents, uniform times give better images than times uniform in log-SNR. A schedule is given by its name, or by a
file of schedules that were tuned for one process (written by `ditlab tune`):
{"process": {"name": "linear"}, "sampler": "ab4", "grids": {"6": [1.0, ..., 0.0], "8": [...]}}, with "reuse": N if they
were tuned for feature caching.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError, listing, nearest_path
from ditlab.core.formats import read_object, reason
from ditlab.core.registry import Registry
from ditlab.core.spelling import expand
from ditlab.core.units import counted
from ditlab.diffusion.process import DDPM, Process, process_name


def uniform(process: Process, steps: int) -> Tensor:
    """Evenly spaced times (for DDPM: the respaced chain)."""
    return process.uniform(steps)


def cosine(process: Process, steps: int) -> Tensor:
    """1 - cos(pi t / 2): smaller steps near the data."""
    return 1 - torch.cos(process.uniform(steps) * (math.pi / 2))


def log_snr(process: Process, steps: int) -> Tensor:
    """Evenly spaced in log(alpha / sigma) between -5 and 5, and the times 1 and 0 (Lu et al. 2022)."""
    inner = process.time_of(torch.linspace(-5, 5, steps, dtype=torch.float64))
    inner[0] = 1.0
    return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


def shifted(process: Process, steps: int, shift: float = 3.0) -> Tensor:
    """s t / (1 + (s - 1) t): smaller steps near the noise, for large images (Esser et al. 2024, eq. 23)."""
    return _shift(process.uniform(steps), shift)


def sd3(process: Process, steps: int, shift: float = 3.0) -> Tensor:
    """The schedule of Stable Diffusion 3's code and of diffusers, which shifts twice.

    The times are evenly spaced from 1 to the shifted time of 1/1000, shifted again, and followed by 0. With a shift of
    3, the last of 4 steps goes from 0.0089 to 0.
    """
    lowest = _shift(torch.tensor(1e-3, dtype=torch.float64), shift)
    times = torch.linspace(1.0, float(lowest), steps, dtype=torch.float64)
    return torch.cat([_shift(times, shift), torch.zeros(1, dtype=torch.float64)])


def flux(process: Process, steps: int, tokens: int = 4096) -> Tensor:
    """Flux's schedule, whose shift exp(mu) grows with the number of image tokens: mu is 0.5 for 256, 1.15 for 4096."""
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    return _shift(process.uniform(steps), math.exp(mu))


def _shift(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def shifts_with_size(name: str, process: Process) -> bool:
    """Whether a schedule is shifted for images of another size.

    Schedules that depend on the number of tokens are already, and the indices of a chain stay.
    """
    if isinstance(process, DDPM):
        return False
    return "tokens" not in inspect.signature(SCHEDULES.find(name)).parameters


def default_shift(name: str) -> float | None:
    """The shift that a schedule has if none is given; None for a schedule without one."""
    parameter = inspect.signature(SCHEDULES.find(name)).parameters.get("shift")
    return None if parameter is None else float(parameter.default)


def shifted_times(process: Process, times: Tensor, shift: float) -> Tensor:
    """Shift the times of a schedule between its first and its last, so that sigma / alpha is `shift` times as large.

    With shift = sqrt(m / n), m pixels have the same uncertainty about the image as n pixels had (Esser et al. 2024,
    section 5.3.2, for rectified flow, where this is their equation 23).
    """
    last = times[0]  # schedules fall from 1, times the latest time of the model
    inner = process.time_of(process.log_snr(times[1:-1] / last) - math.log(shift)) * last
    return torch.cat([times[:1], inner, times[-1:]])


def leading(process: Process, steps: int) -> Tensor:
    """Every k-th index of the chain from 0, with k = 1000 // steps: DiT's "ddimN" and diffusers' default for DDIM."""
    if not isinstance(process, DDPM):
        raise InputError("the leading schedule needs a ddpm process, which this model does not have; give another")
    process.uniform(steps)  # raises an error if the chain has fewer steps
    stride = process.timesteps // steps
    indices = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride
    return torch.cat([(indices + 1) / process.timesteps, torch.zeros(1, dtype=torch.float64)])


SCHEDULES: Registry[Callable[..., Tensor]] = Registry(
    "timestep schedule",
    {
        "uniform": uniform,
        "cosine": cosine,
        "log-snr": log_snr,
        "shifted": shifted,
        "leading": leading,
        "sd3": sd3,
        "flux": flux,
    },
)
GRIDS = SCHEDULES


def time_grid(
    name: "str | ScheduleFile",
    process: Process,
    steps: int,
    last_time: float = 1.0,
    *,
    shift: float | None = None,
    tokens: int | None = None,
) -> Tensor:
    """Return the decreasing times (steps + 1,) of a schedule, from at most `last_time` to 0.

    Args:
        name: a name in `SCHEDULES`, the path of a .json file, or the content of one.
        process: the process of the model.
        steps: number of steps.
        last_time: the latest time at which the model can be evaluated, see `Objective.last_time`.
        shift: shift of the schedules that have one; None is 3.
        tokens: number of image tokens, for schedules that depend on it.

    Raises:
        InputError: an unknown name, a shift for a schedule without one, a file without a schedule for this process and
            number of steps, or a registered function that returns other times.
    """
    if steps < 1:
        raise InputError(f"{steps} sampling steps; give 1 or more")
    file = name if isinstance(name, ScheduleFile) else ScheduleFile.named(name)
    schedule: Callable[..., Tensor] = SCHEDULES.find(str(name)) if file is None else file.fitting
    known = inspect.signature(schedule).parameters
    if shift is not None and "shift" not in known:
        raise InputError(
            f'shift is {shift:g}, but the schedule "{file.path if file else name}" has none; leave it out or use '
            "shifted or sd3"
        )
    if file is not None:
        return file.fitting(process, steps, last_time)
    options = {key: value for key, value in (("shift", shift), ("tokens", tokens)) if value is not None}
    times = schedule(process, steps, **{key: options[key] for key in options if key in known}) * last_time
    if len(times) != steps + 1 or not falls(times):
        raise InputError(f'the schedule "{name}" must return {steps + 1} times that fall from at most 1 to 0')
    return times


def falls(times: Tensor) -> bool:
    """Whether a tensor holds at least two times that fall from at most 1 to 0."""
    return times.ndim == 1 and len(times) > 1 and bool((times.diff() < 0).all() and 0 == times[-1] < times[0] <= 1)


@dataclass(frozen=True)
class ScheduleFile:
    """The content of a file of schedules."""

    path: Path
    process: str
    """Name of the process for which they were made."""
    grids: Mapping[str, Any]
    """Number of steps -> times."""
    reuse: int | None
    """The feature caching for which they were tuned; None for none."""

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a file.

        Raises:
            InputError: the file cannot be read, or is no file of schedules.
        """
        file = Path(expand(name))
        try:
            content = read_object(file)
            process, grids, reuse = content["process"]["name"], dict(content["grids"]), content.get("reuse")
            if reuse is not None and (type(reuse) is not int or reuse < 1):
                raise ValueError(f"reuse is {reuse!r}")
        except FileNotFoundError:
            raise InputError(
                f"there is no schedule file {file}; {nearest_path(file, 'give another, or the name of a schedule')}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(file, error) from error
        return cls(file, process, grids, reuse)

    @classmethod
    def named(cls, schedule: object) -> Self | None:
        """Read the file, if a schedule is given as one; None for names of schedules and times."""
        return cls.read(schedule) if isinstance(schedule, str) and schedule.endswith(".json") else None

    def times(self, steps: int) -> list[float]:
        """The times of a number of steps.

        Raises:
            InputError: the file has none.
        """
        if str(steps) not in self.grids:
            raise InputError(f"{self.path} has no schedule of {counted(steps, 'step')}; it has {listing(self.grids)}")
        try:
            return [float(time) for time in self.grids[str(steps)]]
        except (ValueError, TypeError, OverflowError) as error:
            raise damaged(self.path, error) from error

    def fitting(self, process: Process, steps: int, last_time: float) -> Tensor:
        """The times of a number of steps, checked to fit a process.

        Raises:
            InputError: no such schedule, or one that does not fit.
        """
        times, remedy = self.times(steps), "make one for this model with ditlab tune"
        if self.process != process_name(process):
            raise InputError(
                f"{self.path} was made for the process {self.process}, and this model has {process_name(process)}; "
                f"{remedy}"
            )
        grid = torch.tensor(times, dtype=torch.float64)
        if len(grid) != steps + 1 or not falls(grid):
            raise InputError(
                f"{self.path}: the schedule of {counted(steps, 'step')} is not {steps + 1} falling times from at most "
                "1 to 0; make one with ditlab tune"
            )
        if grid[0] > last_time:
            raise InputError(
                f"{self.path}: the schedule of {counted(steps, 'step')} begins at {grid[0]:g}, where the prediction of "
                f"this model does not determine the data; it may begin at {last_time:g}: {remedy}"
            )
        return grid


def damaged(file: Path, error: Exception) -> InputError:
    """The error of a file that holds no schedules."""
    return InputError(f"{file} is not a file of timestep schedules ({reason(error)}); make one with ditlab tune")
