"""Compute the sampling plan of a model from sampling settings; all settings are checked here, before any work."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ditlab.config.fields import outside
from ditlab.config.sampling import Sample, SamplingOptions, canonical, preset_options
from ditlab.config.values import number, whole
from ditlab.core.errors import InputError
from ditlab.core.registry import imported_parts_only
from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.core.units import counted
from ditlab.diffusion.guidance import SkipLayers, check_guidance
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Process
from ditlab.diffusion.samplers import SAMPLERS, Sampler, time_grid
from ditlab.diffusion.samplers.grids import ScheduleFile, default_shift, falls, shifted_times, shifts_with_size
from ditlab.diffusion.samplers.scheduler import SchedulerSampler, is_scheduler
from ditlab.inference.caching import check_fixed, pick_cache, with_tuned_reuse
from ditlab.inference.inpaint import Original
from ditlab.inference.optimize.reuse import FeatureCache

IN_CALLS = ("labels", "seeds", "image", "mask", "strength", "size", "negative_prompt", "batch_size", "output_type")
SKIP_SCALE, SKIP_INTERVAL = 2.8, (0.01, 0.2)  # defaults of skip-layer guidance in diffusers


@dataclass(frozen=True)
class Plan:
    """The sampling plan of a model: all settings, the times of the steps, and the cost."""

    options: SamplingOptions
    """All settings. If Python passed times or a function, `schedule` is "custom" and `sampler` the function's name."""
    sampler: Sampler
    times: Tensor  # (n + 1,) float64, decreasing to 0
    process: Process
    outer: float  # guidance scale of the second evaluation; 1 if there is none, also if guidance is built in
    interval: tuple[float, float]
    skip: SkipLayers | None = None
    cache: FeatureCache | None = None
    original: Original | None = None
    learn_variance: bool = field(default=False, repr=False)
    negative: str | None = None  # prompt that replaces the null condition in guidance
    size: tuple[int, ...] = ()  # of the network's input; empty for one that is not resolved with a model
    size_shift: float = 1.0  # shift of the schedule because of the size; 1 is none
    file_times: list[float] | None = None  # times of a schedule from a file, which may be overwritten later

    @property
    def guidance(self) -> float:
        """The guidance scale, also that of a model with built-in guidance, which receives it as its input."""
        return 1.0 if self.options.guidance is None else self.options.guidance

    @property
    def steps(self) -> int:
        """Number of `Step`s of each batch, including those that in-painting repeats and all parts of longer clips."""
        original = self.original
        return (len(self.times) - 1) * (1 if original is None else original.rounds * original.parts)

    @property
    def schedule(self) -> str | list[float]:
        """Name of the schedule, or its times if they do not follow from the name."""
        name = str(self.options.schedule)
        if name == "custom":
            return [float(time) for time in self.times]
        return name if self.file_times is None else self.file_times

    @cached_property
    def evaluations(self) -> int:
        """Number of function evaluations (NFE) per image; steps with guidance count twice, with skip layers once more.

        The number is counted by running the sampler with a trivial model. Feature caching makes some evaluations
        cheaper, but does not change their number.
        """
        count = 0

        def denoise(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            nonlocal count
            guides, skips = self.guides(float(t)), self.skip is not None and self.skip.acts(float(t))
            count += 1 + guides + skips
            variance = torch.zeros_like(x) if self.learn_variance else None
            return Prediction(x, x, variance, guided=guides + 2 * skips)

        for _ in self.run(denoise, torch.ones(1, 1, 1, 1), torch.zeros_like):
            pass
        return count * (1 if self.original is None else self.original.parts)

    def guides(self, t: float) -> bool:
        """Whether guidance is applied at time t."""
        low, high = self.interval
        return self.outer != 1 and low <= t <= high

    def start(self, noise: Tensor) -> Tensor:
        """Compute the state at the first time from noise (B, C, ...) of unit variance."""
        if self.original is not None:
            return self.process.add_noise(self.original.x0.to(noise), noise, self.times[0])
        # Standard deviation of x_t for data of unit variance; it is 1 on variance-preserving processes, as in DiT.
        deviation = float(torch.hypot(self.process.alpha(self.times[0]), self.process.sigma(self.times[0])))
        return noise * deviation

    def run(self, denoise: Denoise, x: Tensor, noise: Noise) -> Iterator[Step]:
        """Run the sampler from the state x at the first time, and yield all steps."""
        if self.original is None:
            return self.sampler(denoise, self.process, x, self.times, noise)
        return self.original.walk(self.sampler, denoise, self.process, x, self.times, noise)

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values for records, without those that do not apply."""
        values = {key: value for key, value in asdict(self.options).items() if value is not None}
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return values | {"schedule": self.schedule}


def resolve(
    words: Mapping[str, Any],
    objective: Objective,
    *,
    defaults: Sample | None = None,
    conditional: bool = True,
    original: Original | None = None,
    tokens: int | None = None,
    size_shift: float = 1.0,
) -> Plan:
    """Compute the sampling plan of a model with this objective.

    Args:
        words: settings of `SamplingOptions` under any accepted name. In Python `sampler` may also be a sampler
            function, `schedule` the times (n + 1,), decreasing to 0, and `reuse` a `Reuse`.
        objective: objective of the model.
        defaults: default settings of the model.
        conditional: whether guidance is possible: the model is conditional, or there is a guide model.
        original: images to start from.
        tokens: number of image tokens, for schedules that depend on it.
        size_shift: shift of the schedule for images of another size than the model was trained on; 1 is none.

    Raises:
        InputError: a setting is unknown, out of range, or does not fit the model.
    """
    explicit = canonical(words, elsewhere=IN_CALLS)
    values = filled(explicit, defaults or Sample(), isinstance(objective.process, DDPM))
    # Defaults of a saved model must be imported already; names from the caller may be imported now.
    with nullcontext() if "sampler" in explicit else imported_parts_only():
        sampler, name = pick_sampler(values["sampler"], values.get("eta"))
    with nullcontext() if "schedule" in explicit else imported_parts_only():
        if isinstance(sampler, SchedulerSampler):
            sampler.check(explicit, from_noise=original is None)
            times, size_shift = sampler.times(objective.process, whole(values["steps"], "steps")), 1.0
            file, values = None, values | {"schedule": times, "shift": None}
        else:
            file = ScheduleFile.named(values["schedule"])
            times, size_shift = pick_times(values, explicit, objective, tokens, size_shift, file)
    scale, interval = number(values["guidance"], "guidance"), pair(values["guidance_interval"])
    if not conditional and explicit.get("guidance", 1.0) != 1.0:
        raise InputError(f"guidance {scale:g} on an unconditional model; leave it out or give a guide model")
    scale = scale if conditional else 1.0
    if (channels := values.get("guidance_channels")) is not None:
        channels = whole(channels, "guidance_channels")
    check_guidance(scale, interval, channels)
    check_guided(explicit, scale, conditional)
    outer = outer_scale(values, scale, objective)
    skip = pick_skip(values, explicit, times)
    cache = pick_cache(with_tuned_reuse(values, file), original, skip)
    check_fixed(objective, original, cache)
    settled = {"sampler": name, "guidance": scale, "guidance_interval": interval, "guidance_channels": channels}
    options = all_options(values, len(times) - 1, settled, skip, cache)
    check_ranges(options)
    if original is not None:
        times = original.times(times)
    objective.check_times(times, name)
    return Plan(
        options, sampler, times, objective.process, outer, interval, skip, cache, original, objective.learn_variance,
        size_shift=size_shift, file_times=None if file is None else file.times(options.steps or 0),
    )  # fmt: skip


def all_options(
    values: Mapping[str, Any],
    steps: int,
    settled: Mapping[str, Any],
    skip: SkipLayers | None,
    cache: FeatureCache | None,
) -> SamplingOptions:
    """Return all settings of a plan.

    Args:
        values: the settings, explicit or default.
        steps: number of steps.
        settled: settings that were checked already.
        skip, cache: skip-layer guidance and feature caching.
    """
    guided = settled["guidance"] != 1
    return SamplingOptions(
        **settled,
        steps=steps,
        guidance_rescale=optional(values, "guidance_rescale") if guided else None,
        skip_layers=None if skip is None else skip.layers,
        skip_guidance=None if skip is None else skip.scale,
        skip_interval=None if skip is None else pair(values.get("skip_interval") or SKIP_INTERVAL, "skip_interval"),
        schedule=values["schedule"] if isinstance(values["schedule"], str) else "custom",
        shift=optional(values, "shift"),
        eta=optional(values, "eta"),
        preset=values.get("preset"),
        **{} if cache is None else cache.settings,
    )


def check_ranges(options: SamplingOptions) -> None:
    """Check that all numbers are in the range of their setting.

    The guidance scale may be any finite number here: below 0 it leads away from the condition.

    Raises:
        InputError: a number is outside its range.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        rules = {} if option.name == "guidance" else option.metadata
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, int | float) and (allowed := outside(entry, rules)):
                raise InputError(f"{option.name} is {entry}; give {allowed}")


def check_channels(guided: Any, channels: int) -> None:
    """Check the number of guided channels that a caller gave; None is all.

    Raises:
        InputError: the model has fewer channels.
    """
    if guided is not None and whole(guided, "guidance_channels") > channels:
        raise InputError(f"guidance_channels is {guided}; give 1 to {channels}, the channels that this model generates")


def check_guided(explicit: Mapping[str, Any], scale: float, conditional: bool) -> None:
    """Check that settings of guidance have an effect.

    With an explicit scale of 1 they are accepted: a caller that compares scales may leave the other settings as they
    are.

    Raises:
        InputError: settings of guidance without a scale, and the model's scale of 1 disables guidance, or the model is
            unconditional.
    """
    for key in ("guidance_interval", "guidance_channels", "guidance_rescale"):
        value = explicit.get(key)
        restricts = value is not None and (key != "guidance_interval" or tuple(value) != (0.0, 1.0))
        if restricts and scale == 1 and "guidance" not in explicit:
            if not conditional:
                raise InputError(
                    f"{key} is {value}, but the model is unconditional; leave it out or give a guide model"
                )
            raise InputError(f"{key} is {value}, but guidance is 1, which disables it; leave {key} out or set guidance")


def outer_scale(values: Mapping[str, Any], scale: float, objective: Objective) -> float:
    """Return the guidance scale for which the model is evaluated twice: 1 if it has its guidance built in.

    Args:
        values: the settings, explicit or default.
        scale: the guidance scale.
        objective: objective of the model.

    Raises:
        InputError: a scale that the model does not have, or a setting that needs a second evaluation.
    """
    if objective.built_in is None:
        return scale
    objective.at_guidance(scale)
    for key in ("guidance_interval", "guidance_channels", "guidance_rescale"):
        value = values.get(key)
        if value is not None and (key != "guidance_interval" or tuple(value) != (0.0, 1.0)):
            raise InputError(f"{key} is {value}, but this model has its guidance built in; leave {key} out")
    return 1.0


def filled(explicit: dict[str, Any], defaults: Sample, chain: bool) -> dict[str, Any]:
    """Return all settings. Explicit settings take precedence over their preset, and that over the model's defaults."""
    base = Sample()
    model_settings = {name: value for name, value in defaults.given().items() if value != getattr(base, name)}
    values = base.given()
    preset = preset_options(explicit["preset"], chain=chain).given() if "preset" in explicit else {}
    if (preset | explicit).get("schedule", defaults.schedule) != defaults.schedule:
        model_settings.pop("shift", None)  # it belongs to the model's schedule
    if preset:
        return values | model_settings | preset | explicit
    if "preset" in model_settings:
        values |= preset_options(model_settings["preset"], chain=chain).given()
    return values | model_settings | explicit


def pick_sampler(chosen: Any, eta: float | None) -> tuple[Sampler, str]:
    """Return the sampler function and its name, for a name or a function."""
    if is_scheduler(chosen):
        sampler: Sampler = SchedulerSampler(chosen)
        name = type(chosen).__name__
    elif callable(chosen):
        name = str(getattr(getattr(chosen, "func", chosen), "__name__", "custom"))
        sampler = chosen
    else:
        name, sampler = str(chosen), SAMPLERS.find(str(chosen))
    if eta is None:
        return sampler, name
    if "eta" not in inspect.signature(sampler).parameters:
        raise InputError(f"sampler {name} has no eta; leave it out or use ddim")
    return partial(sampler, **{"eta": number(eta, "eta")}), name


def optional(values: Mapping[str, Any], name: str) -> float | None:
    """Return a setting as a float; None if it is not given."""
    return None if values.get(name) is None else number(values[name], name)


def pick_skip(values: Mapping[str, Any], explicit: Mapping[str, Any], times: Tensor) -> SkipLayers | None:
    """Return the skip-layer guidance of the settings; None without layers to skip.

    Raises:
        InputError: settings without layers, or an interval that contains no step.
    """
    layers = values.get("skip_layers")
    if not layers:
        for name in ("skip_guidance", "skip_interval"):
            if explicit.get(name) is not None:
                raise InputError(
                    f"{name} is {explicit[name]}, but there are no skip_layers; give them, or leave it out"
                )
        return None
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise InputError(f"skip_layers {layers!r}; give numbers of blocks, such as (7, 8, 9)")
    blocks = tuple(whole(layer, "skip_layers") for layer in layers)
    steps, (low, high) = len(times) - 1, pair(values.get("skip_interval") or SKIP_INTERVAL, "skip_interval")
    inside = [float(times[i]) for i in range(steps) if low * steps < i < high * steps]  # as in the published code
    if not inside:
        raise InputError(
            f"skip_interval {low:g} {high:g} contains none of {counted(steps, 'step')}; give a longer one, or leave "
            "skip_layers out"
        )
    scale = optional(values, "skip_guidance")
    return SkipLayers(blocks, SKIP_SCALE if scale is None else scale, (inside[-1], inside[0]))


def pick_times(
    values: dict[str, Any],
    explicit: Mapping[str, Any],
    objective: Objective,
    tokens: int | None,
    size_shift: float,
    file: ScheduleFile | None,
) -> tuple[Tensor, float]:
    """Return the times (n + 1,) of the schedule in the settings, and by which shift for the size they differ from it.

    An explicit shift, and schedules that depend on the number of tokens or are given as times, are not shifted. The
    shift of a schedule that has one is replaced in the settings.
    """
    schedule, shift = values["schedule"], optional(values, "shift")
    check_ranges(SamplingOptions(shift=shift))
    if isinstance(schedule, str):
        steps = whole(values["steps"], "steps")
        process, last = objective.process, objective.last_time()
        if file is not None:
            return time_grid(file, process, steps, last, shift=shift), 1.0
        if size_shift == 1 or "shift" in explicit or not shifts_with_size(schedule, process):
            return time_grid(schedule, process, steps, last, shift=shift, tokens=tokens), 1.0
        if (default := default_shift(schedule)) is not None:
            values["shift"] = (default if shift is None else shift) * size_shift
            return time_grid(schedule, process, steps, last, shift=values["shift"]), size_shift
        return shifted_times(process, time_grid(schedule, process, steps, last), size_shift), size_shift
    try:
        times = torch.as_tensor(schedule, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"schedule {schedule!r}; give its name, or falling times") from None
    if not falls(times):
        raise InputError("the times of a schedule must fall from at most 1 to 0; give one time more than steps")
    if "steps" in explicit and whole(explicit["steps"], "steps") != len(times) - 1:
        raise InputError(f"{explicit['steps']} steps with a schedule of {len(times) - 1}; leave steps out")
    return times, 1.0


def pair(value: Any, name: str = "guidance_interval") -> tuple[float, float]:
    """Convert an interval to two floats, or raise an `InputError`."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{name} {value!r}; give two times, such as (0.1, 0.8)")
    return number(value[0], name), number(value[1], name)
