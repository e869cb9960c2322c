"""Forward processes: x_t = alpha(t) x0 + sigma(t) eps, from the data at t = 0 to the noise at t = 1.

`Linear` is rectified flow (Liu et al. 2022), `Cosine` is variance preserving (Salimans & Ho 2022), `VP` is the
continuous limit of DDPM (Song et al. 2021), `DDPM` has the 1000 linear betas that DiT is trained with (Ho et al. 2020),
and `ScaledLinear` has the betas of Stable Diffusion. Times are float64 on the CPU: they are precise enough for any
network, and reading a time does not synchronize with the device.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError, nearest
from ditlab.core.registry import Registry


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values () or (B,) to broadcast with images or videos `like` (B, C, ...), in their dtype and device."""
    values = values.to(like.dtype).to(like.device)  # dtype first, because some devices have no float64
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (like.ndim - 1))


class Process(ABC):
    """The path from data to noise, and the timestep input of the network.

    A subclass must be a frozen dataclass; its fields are the keys of `[diffusion.process_options]` in a recipe.
    """

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data at time t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise at time t."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma / dt."""

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """Timestep input of the network at time t."""

    def snap(self, t: Tensor) -> Tensor:
        """Round t to a time of the process; continuous processes return t."""
        return t

    def uniform(self, steps: int) -> Tensor:
        """Return evenly spaced times (steps + 1,) from 1 to 0."""
        return torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Compute x_t from data and noise (B, C, ...) and times () or (B,)."""
        return per_image(self.alpha(t), x0) * x0 + per_image(self.sigma(t), x0) * eps

    def log_snr(self, t: Tensor) -> Tensor:
        """Compute log(alpha / sigma), half of the logarithm of the signal-to-noise ratio (lambda in DPM-Solver)."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """Compute the time of a log-SNR by bisection, the inverse of `log_snr`, which is monotonic."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):  # 2^-60 is below the precision of float64
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < log_snr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Compute straight coordinates: scale c and time s with x_t / c = (1 - s) x0 + s eps.

        Division by c = alpha + sigma turns every process into the linear path with time s = sigma / c. There the
        velocity is eps - x0 and nothing is singular at the ends, so that ODE samplers work for all processes.
        """
        scale = self.alpha(t) + self.sigma(t)
        return scale, self.sigma(t) / scale


@dataclass(frozen=True)
class Continuous(Process):
    """A process with continuous time; its timestep input is clock_start + clock_rate t.

    The default, 1000 t, suits timestep embeddings that were designed for 0..999. SiT's timestep input is 1 - t.
    """

    clock_rate: float = 1000.0
    clock_start: float = 0.0

    def clock(self, t: Tensor) -> Tensor:
        return self.clock_start + self.clock_rate * t


@dataclass(frozen=True)
class Linear(Continuous):
    """alpha = 1 - t, sigma = t (rectified flow)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Cosine(Continuous):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (variance preserving)."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.sigma(t) * (math.pi / 2)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.alpha(t) * (math.pi / 2)


@dataclass(frozen=True)
class VP(Continuous):
    """log(alpha) = -(beta_min t + (beta_max - beta_min) t^2 / 2) / 2 (Song et al. 2021, eq. 32)."""

    clock_rate: float = 999.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min + (self.beta_max - self.beta_min) * t / 2) * t / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * (self.beta_min + (self.beta_max - self.beta_min) * t) / 2

    def sigma_dot(self, t: Tensor) -> Tensor:
        return (
            -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)
        )  # infinite at t = 0, where the network is not evaluated


@dataclass(frozen=True)
class DDPM(Process):
    """A discrete process with `timesteps` linear betas; index i of the chain is the time (i + 1) / timesteps.

    Between indices, log(alpha_bar) is interpolated linearly, so that samplers can use any time. The timestep input is
    the (fractional) index. Respacing is a timestep schedule with fewer steps.
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    clock_start: float = 0.0  # timestep input at index 0

    def __post_init__(self) -> None:
        if self.timesteps < 1:
            raise InputError(f"a process of {self.timesteps} timesteps; give 1 or more")
        if not (0 < self.beta_start < 1 and 0 < self.beta_end < 1):
            raise InputError(f"betas from {self.beta_start} to {self.beta_end}; give numbers between 0 and 1")

    def betas(self) -> Tensor:
        """Variance of each step of the chain (timesteps,), float64."""
        return torch.linspace(self.beta_start, self.beta_end, self.timesteps, dtype=torch.float64)

    @cached_property
    def log_alpha_bar(self) -> Tensor:
        """log(alpha_bar) at all indices (timesteps + 1,), float64; 0 at t = 0."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas()).cumsum(0)])

    def _interval(self, t: Tensor) -> tuple[Tensor, Tensor]:
        position = t.to(torch.float64) * self.timesteps
        rounded = position.round()  # a rounding error must not move an index to the previous interval
        position = torch.where((position - rounded).abs() < 1e-6, rounded, position)
        left = position.floor().clamp(0, self.timesteps - 1).long()
        return left, position - left

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        left, part = self._interval(t)
        table = self.log_alpha_bar
        return table[left] + part * (table[left + 1] - table[left])

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha_bar(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._log_alpha_bar(t)))

    def alpha_dot(self, t: Tensor) -> Tensor:
        left, _ = self._interval(t)
        slope = (self.log_alpha_bar[left + 1] - self.log_alpha_bar[left]) * self.timesteps
        return self.alpha(t) * slope / 2

    def sigma_dot(self, t: Tensor) -> Tensor:
        # From alpha^2 + sigma^2 = 1. Infinite at t = 0, where the network is not evaluated.
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def clock(self, t: Tensor) -> Tensor:
        return (t * self.timesteps - 1).clamp(min=0) + self.clock_start

    def snap(self, t: Tensor) -> Tensor:
        return (t * self.timesteps).ceil().clamp(1, self.timesteps) / self.timesteps

    def uniform(self, steps: int) -> Tensor:
        """Return the times of improved DDPM's respacing: rounded indices, evenly from 999 to 0, and then t = 0."""
        if steps > self.timesteps:
            raise InputError(f"{steps} steps on a process of {self.timesteps}; give {self.timesteps} or fewer")
        indices = torch.linspace(self.timesteps - 1, 0, steps, dtype=torch.float64).round()
        return torch.cat([(indices + 1) / self.timesteps, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class ScaledLinear(DDPM):
    """The discrete process of latent diffusion: the square roots of the betas are linear (Rombach et al. 2022)."""

    beta_start: float = 8.5e-4
    beta_end: float = 1.2e-2

    def betas(self) -> Tensor:
        return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.timesteps, dtype=torch.float64) ** 2


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x0) = N(from_x x_t + from_x0 x0, variance) for s < t, and beta, the variance of q(x_t | x_s)."""

    from_x: Tensor
    from_x0: Tensor
    variance: Tensor
    beta: Tensor


def posterior(process: Process, t: Tensor, s: Tensor) -> Posterior:
    """Compute the Gaussian reverse step from t to s (Ho et al. 2020, eq. 6-7, for any alpha and sigma)."""
    ratio = process.alpha(t) / process.alpha(s)
    beta = process.sigma(t) ** 2 - (ratio * process.sigma(s)) ** 2
    shrink = process.sigma(s) ** 2 / process.sigma(t) ** 2
    return Posterior(ratio * shrink, process.alpha(s) * beta / process.sigma(t) ** 2, beta * shrink, beta)


def check(name: str, kind: type[Process]) -> None:
    """Check that a process is a dataclass.

    Raises:
        InputError: it is no dataclass, so that its options could not be saved.
    """
    if not is_dataclass(kind):
        raise InputError(f'the process "{name}" is no dataclass; decorate {kind.__name__} with @dataclass')


PROCESSES: Registry[type[Process]] = Registry(
    "process",
    {
        "linear": Linear,
        "cosine": Cosine,
        "vp": VP,
        "ddpm": DDPM,
        "scaled-linear": ScaledLinear,
    },
    check,
    base=Process,
)


def make_process(name: str, options: Mapping[str, Any] | None = None) -> Process:
    """Build a process by name.

    Args:
        name: a name in `PROCESSES`, or "package.module:Class".
        options: arguments of the class; whole numbers and floats are converted to the type of the default.

    Raises:
        InputError: an unknown name or option (the message proposes the most similar one), or a value of the wrong type.
    """
    kind = PROCESSES.find(name)
    parameters = inspect.signature(kind).parameters
    settings = {}
    for key, value in (options or {}).items():
        if key not in parameters:
            raise InputError(f'process {name} has no option "{key}"; {nearest(key, parameters)}')
        settings[key] = _typed(f"{name}.{key}", value, type(parameters[key].default))
    return kind(**settings)


def _typed(key: str, value: Any, kind: type) -> Any:
    """Convert a value to the type of an option's default."""
    if kind not in (int, float):
        return value
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise InputError(f"option {key} of the process is {value!r}; give a {'whole ' if kind is int else ''}number")
    return kind(number)


def process_name(process: Process) -> str:
    """Return the name of a process in `PROCESSES`."""
    return next(name for name, kind in PROCESSES.items() if type(process) is kind)


def process_options(process: Process) -> dict[str, Any]:
    """Return the options of a process that differ from the defaults of its class."""
    assert is_dataclass(process)
    values = {option.name: getattr(process, option.name) for option in fields(process)}
    defaults = {option.name: option.default for option in fields(process)}
    return {name: value for name, value in values.items() if value != defaults[name]}
