"""Models that are read in another way than `Objective`: with guidance built in, and flow maps.

A flow map u(x_t, t, s) is the mean velocity from time t to a lower time s, in straight coordinates
(`Process.straight`): x_s = x_t - (t - s) u on the linear path (Geng et al., "Mean Flows for One-step Generative
Modeling", 2025; Frans et al., "One Step Diffusion via Shortcut Models", 2024). One evaluation makes a step of any
length, which costs an ordinary model many. The output of the network means what it does in `Objective`, so that a flow
map starts from a trained model: x0 and eps are such that u = eps - x0.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ditlab.backbones.inputs import GUIDANCE, INTERVAL, SCALE
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective

SAMPLER = "map"
CLOSE = 1e-9  # times that differ by less are equal
SAFE_TARGET = 0.1  # least determinant at which the first step of a flow map may read the output


@dataclass(frozen=True)
class Guided(Objective):
    """A model whose output includes classifier-free guidance, so that sampling needs one evaluation for each step.

    If `guidance` is a range, the scale is a further input of the network (Chen et al., "Visual Generation Without
    Guidance", 2025, use 1 / scale); otherwise the model has one scale (Tang et al., "Diffusion Models without
    Classifier-free Guidance", 2025).
    """

    guidance: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest scale."""
    scale: float | None = None
    """The scale with which the model predicts, if it has a range; None is the lowest one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance", (float(self.guidance[0]), float(self.guidance[1])))  # JSON has lists
        super().__post_init__()
        low, high = self.guidance
        if not 0 < low <= high:
            raise InputError(f"built-in guidance from {low:g} to {high:g}; give numbers above 0, the lower one first")

    @property
    def inputs(self) -> tuple[str, ...]:
        return (GUIDANCE,) if self.guidance[0] < self.guidance[1] else ()

    @property
    def built_in(self) -> tuple[float, float]:
        return self.guidance

    def at_guidance(self, scale: float) -> Self:
        low, high = self.guidance
        if not low <= scale <= high:
            allowed = f"has guidance {low:g} built in" if low == high else f"takes guidance {low:g} to {high:g}"
            raise InputError(f"guidance is {scale:g}, but this model {allowed}; give {min(max(scale, low), high):g}")
        return replace(self, scale=scale)

    def timesteps(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        return self.timesteps_at(t, s, torch.tensor(self.scale or self.guidance[0]), x)

    def timesteps_at(self, t: Tensor, s: Tensor, scale: Tensor, x: Tensor) -> Tensor:
        """Return `timesteps` for a guidance scale, () or (B,), of each image."""
        values = self.further(t, s, scale)
        columns = [values[name].float().to(x.device).expand(len(x)) for name in self.inputs]
        clock = self.clock(t, x)
        return torch.stack([clock, *columns], dim=1) if columns else clock

    def further(self, t: Tensor, s: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Return the further inputs of the network by name, () or (B,)."""
        return {GUIDANCE: 1 / scale}


@dataclass(frozen=True)
class GuidanceInput(Guided):
    """A model that reads the guidance scale itself in place of 1 / scale, as Flux.1 dev does."""

    guidance: tuple[float, float] = (1.0, 100.0)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (SCALE,)

    def further(self, t: Tensor, s: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {SCALE: scale}


@dataclass(frozen=True)
class FlowMap(Guided):
    """A model that predicts the mean velocity of a step, for which the end of the step is a further input."""

    steps: tuple[int, ...] = (1,)
    """Numbers of steps for which the model is made, in uniform schedules."""
    interval_rate: float = 1.0
    """Factor of the length of the step, as an input of the network."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(int(count) for count in self.steps))
        super().__post_init__()
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"a flow map of {', '.join(map(str, self.steps)) or 'no'} steps; give 1 or more")
        if self.learn_variance:
            raise InputError("a flow map has no reverse variance; set diffusion.learn_variance to false")
        if float(self.determinant(torch.ones(1, dtype=torch.float64)).abs()) < SAFE_TARGET:
            raise InputError(
                f'the target "{self.target}" does not determine the data at t = 1, where a flow map begins; v and x0 do'
            )

    @property
    def inputs(self) -> tuple[str, ...]:
        return (INTERVAL, *super().inputs)

    @property
    def fixed_times(self) -> str:
        return "it is a flow map"

    def further(self, t: Tensor, s: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return super().further(t, s, scale) | {INTERVAL: self.interval_rate * (t - s)}

    def times(self, count: int) -> Tensor:
        """Return the times (count + 1,) of the steps for which the model is made."""
        return self.process.uniform(count)

    def check_times(self, times: Tensor, sampler: str) -> None:
        """Check that a schedule is one for which the model is made.

        Raises:
            InputError: another sampler, number of steps or schedule.
        """
        count = len(times) - 1
        if sampler != SAMPLER:
            raise InputError(
                f'sampler is {sampler}, but this model is a flow map; give the sampler "{SAMPLER}", and no preset'
            )
        if count not in self.steps:
            nearest = min(self.steps, key=lambda made: (abs(made - count), made))
            made = " or ".join(map(str, self.steps))
            raise InputError(
                f"steps is {count}, but this model is a flow map for {made} "
                f"{'step' if made == '1' else 'steps'}; the nearest is {nearest}"
            )
        if not torch.allclose(times, self.times(count), rtol=0, atol=CLOSE):
            raise InputError(
                "this model is a flow map, which has the times of the uniform schedule from noise to data only; leave "
                "the schedule out"
            )
