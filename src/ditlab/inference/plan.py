"""From sampling options to a plan for one model: everything that does not fit is refused here, before any work."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ditlab.config.sampling import Sample, SamplingOptions, canonical, preset_options
from ditlab.core.errors import InputError
from ditlab.core.registry import imported_parts_only
from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.guidance import check_guidance
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Process
from ditlab.diffusion.samplers import SAMPLERS, Sampler, time_grid
from ditlab.diffusion.samplers.grids import grid_identity
from ditlab.inference.inpaint import Original
from ditlab.inference.optimize.reuse import Reuse


@dataclass(frozen=True)
class Plan:
    """How one model will generate: all settings filled in, the times, and the cost."""

    options: SamplingOptions
    """Every setting; `schedule` is "custom" and `sampler` a function's name where Python gave the values themselves."""
    sampler: Sampler
    times: Tensor  # (n + 1,) float64, falling to 0
    process: Process
    guidance: float
    interval: tuple[float, float]
    cache: Reuse | None = None
    original: Original | None = None
    learn_variance: bool = field(default=False, repr=False)

    @property
    def steps(self) -> int:
        """Number of `Step`s of each batch, those that in-painting repeats included."""
        return (len(self.times) - 1) * (1 if self.original is None else self.original.resample)

    @property
    def schedule(self) -> str | list[float]:
        """The schedule's name, or its times where the name alone does not determine them."""
        name = str(self.options.schedule)
        if name == "custom":
            return [float(time) for time in self.times]
        return grid_identity(name, self.options.steps or 0)

    @cached_property
    def evaluations(self) -> int:
        """Number of function evaluations (NFE) of each image; guidance counts twice inside its interval.

        The sampler runs on a single value in place of the network. Feature caching makes some evaluations cheaper and
        does not change their number.
        """
        count = 0

        def denoise(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            nonlocal count
            guided = self.guides(float(t))
            count += 2 if guided else 1
            return Prediction(x, x, torch.zeros_like(x) if self.learn_variance else None, guided=guided)

        for _ in self.run(denoise, torch.ones(1, 1, 1, 1), torch.zeros_like):
            pass
        return count

    def guides(self, t: float) -> bool:
        """Whether guidance acts at time t."""
        low, high = self.interval
        return self.guidance != 1 and low <= t <= high

    def start(self, noise: Tensor) -> Tensor:
        """The state at the first time, from noise (B, C, ...) of unit variance."""
        if self.original is not None:
            return self.process.add_noise(self.original.x0.to(noise), noise, self.times[0])
        # The spread that x_t has for data of unit variance; exactly 1 on variance-preserving processes, as in DiT.
        spread = float(torch.hypot(self.process.alpha(self.times[0]), self.process.sigma(self.times[0])))
        return noise * spread

    def run(self, denoise: Denoise, x: Tensor, noise: Noise) -> Iterator[Step]:
        """All steps from the state x at the first time."""
        if self.original is None:
            return self.sampler(denoise, self.process, x, self.times, noise)
        return self.original.walk(self.sampler, denoise, self.process, x, self.times, noise)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, for records; those that do not apply are left out."""
        values = {key: value for key, value in asdict(self.options).items() if value is not None}
        return values | {"guidance_interval": list(self.interval), "schedule": self.schedule}


def resolve(
    words: Mapping[str, Any],
    objective: Objective,
    *,
    defaults: Sample | None = None,
    conditional: bool = True,
    original: Original | None = None,
) -> Plan:
    """The plan for a model with this objective.

    Args:
        words: settings of `SamplingOptions` under any accepted name. In Python `sampler` may also be a sampler
            function, `schedule` the times themselves (n + 1,), falling to 0, and `reuse` a `Reuse`.
        objective: how the model was trained.
        defaults: the model's settings, for what is left out.
        conditional: whether guidance has a second prediction: from "no condition", or from a guide model.
        original: images to start from.

    Raises:
        InputError: a setting that is unknown, out of range, or does not fit the model.
    """
    given = canonical(words)
    values = filled(given, defaults or Sample(), isinstance(objective.process, DDPM))
    # What a saved model names as its default is not imported; what the caller names is.
    with nullcontext() if "sampler" in given else imported_parts_only():
        sampler, name = pick_sampler(values["sampler"], values.get("eta"))
    with nullcontext() if "schedule" in given else imported_parts_only():
        times = pick_times(values, given, objective)
    scale, interval = number(values["guidance"], "guidance"), pair(values["guidance_interval"])
    if not conditional:
        if given.get("guidance", 1.0) != 1.0:
            raise InputError(f"guidance {scale:g} on an unconditional model; leave it out or give a guide model")
        scale = 1.0
    channels = values.get("guidance_channels")
    check_guidance(scale, interval, channels)
    cache = pick_cache(values.get("reuse"), original)
    options = SamplingOptions(
        steps=len(times) - 1,
        sampler=name,
        guidance=scale,
        guidance_interval=interval,
        guidance_channels=channels,
        schedule=values["schedule"] if isinstance(values["schedule"], str) else "custom",
        eta=values.get("eta"),
        preset=values.get("preset"),
        reuse=None if cache is None else cache.interval,
    )
    if original is not None:
        times = original.times(times)
    return Plan(options, sampler, times, objective.process, scale, interval, cache, original, objective.learn_variance)


def filled(given: dict[str, Any], defaults: Sample, chain: bool) -> dict[str, Any]:
    """All settings: those that are given, then those of the preset, then the model's defaults."""
    base = Sample()
    own = {name: value for name, value in defaults.given().items() if value != getattr(base, name)}
    values = base.given()
    if "preset" in given:
        return values | own | preset_options(given["preset"], chain=chain).given() | given
    if "preset" in own:
        values |= preset_options(own["preset"], chain=chain).given()
    return values | own | given


def pick_sampler(chosen: Any, eta: float | None) -> tuple[Sampler, str]:
    """The sampler function of a name, or the function itself; and its name."""
    if callable(chosen):
        name = str(getattr(getattr(chosen, "func", chosen), "__name__", "custom"))
        sampler: Sampler = chosen
    else:
        name, sampler = str(chosen), SAMPLERS.find(str(chosen))
    if eta is None:
        return sampler, name
    if "eta" not in inspect.signature(sampler).parameters:
        raise InputError(f"sampler {name} has no eta; leave it out or use ddim")
    return partial(sampler, **{"eta": number(eta, "eta")}), name


def pick_times(values: Mapping[str, Any], given: Mapping[str, Any], objective: Objective) -> Tensor:
    """The times (n + 1,) of a schedule."""
    schedule = values["schedule"]
    if isinstance(schedule, str):
        return time_grid(schedule, objective.process, whole(values["steps"], "steps"), objective.last_time())
    times = torch.as_tensor(schedule, dtype=torch.float64).cpu()
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 == times[-1] < times[0] <= 1:
        raise InputError("the times of a schedule must fall from at most 1 to 0; give one time more than steps")
    if given.get("steps", len(times) - 1) != len(times) - 1:
        raise InputError(f"{given['steps']} steps with a schedule of {len(times) - 1}; leave steps out")
    return times


def pick_cache(reuse: int | Reuse | None, original: Original | None) -> Reuse | None:
    """The feature cache, where one is wanted."""
    cache = reuse if isinstance(reuse, Reuse) or reuse is None else Reuse(whole(reuse, "reuse"))
    if cache is not None and original is not None and original.resample > 1:
        raise InputError("reuse follows the time in one direction, and resample repeats steps; leave one of them out")
    return cache


def whole(value: Any, name: str) -> int:
    """An integer setting."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} {value!r}; give a whole number")
    return int(value)


def number(value: Any, name: str) -> float:
    """A real setting."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} {value!r}; give a number") from None


def pair(value: Any) -> tuple[float, float]:
    """The two bounds of the guidance interval."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"guidance_interval {value!r}; give two times, such as (0.1, 0.8)")
    return number(value[0], "guidance_interval"), number(value[1], "guidance_interval")
