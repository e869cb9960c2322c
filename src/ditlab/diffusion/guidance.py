"""Guidance: functions that wrap a denoiser, independent of network and sampler.

`cfg` is classifier-free guidance (Ho & Salimans 2022) with the guidance interval of Kynkaanniemi et al. (2024).
`autoguidance` extrapolates from a weaker model (Karras et al. 2024). Scale 1 is the conditional model without guidance.
Both may be combined with skip-layer guidance, which leads away from the model without some of its blocks (Stable
Diffusion 3.5), and with the rescaling of Lin et al. ("Common Diffusion Noise Schedules and Sample Steps are Flawed",
2024), which gives the guided output the standard deviation of the output without guidance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Prediction
from ditlab.diffusion.objective import Objective


class Conditional(Protocol):
    """A conditional model that predicts x0 and eps, such as `ditlab.diffusion.objective.Denoiser`."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Prediction:
        """Predict x0 and eps from x_t (B, C, ...), time t, next time s of the sampler, and the condition (B rows)."""


@dataclass(frozen=True)
class SkipLayers:
    """Skip-layer guidance: adds scale (model - model without some blocks).

    Its interval is a part of the steps, because that is how the published code defines it.
    """

    layers: tuple[int, ...]
    scale: float
    interval: tuple[float, float]  # times

    def acts(self, t: float) -> bool:
        """Whether it is applied at time t."""
        return self.interval[0] <= t <= self.interval[1]


@dataclass(frozen=True)
class Rescale:
    """Multiplies the guided output by (1 - share) + share (deviation without guidance / deviation with guidance)."""

    objective: Objective
    share: float

    def __call__(self, guided: Prediction, good: Prediction, x: Tensor, t: Tensor) -> Prediction:
        """Rescale a guided prediction at x_t (B, C, ...), compared with the one without guidance."""
        output, plain = self.objective.output(guided, t), self.objective.output(good, t)
        each = [1] * (x.ndim - 1)
        ratio = (plain.flatten(1).std(1) / output.flatten(1).std(1)).reshape(-1, *each)
        return self.objective.predict(output * torch.lerp(torch.ones_like(ratio), ratio, self.share), x, t)


@dataclass(frozen=True)
class Further:
    """What is added to guidance."""

    skip: SkipLayers | None = None
    without: Denoise | None = None  # the conditional model without the blocks of `skip`
    rescale: Rescale | None = None


NOTHING = Further()


@dataclass(frozen=True)
class Elsewhere:
    """The same model on another device, which evaluates the null condition at the same time."""

    denoiser: Conditional
    device: torch.device


def plain(denoiser: Conditional, condition: Condition) -> Denoise:
    """Return the conditional model without guidance as a function of (x, t, s)."""
    return lambda x, t, s: denoiser(x, t, s, condition)


def cfg(
    denoiser: Conditional,
    condition: Condition,
    null: Condition,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    further: Further = NOTHING,
    elsewhere: Elsewhere | None = None,
) -> Denoise:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Args:
        denoiser: the model.
        condition: B rows.
        null: B rows of "no condition", or of a negative prompt.
        scale: guidance scale; 1 is the conditional model, 0 the unconditional one.
        interval: times t between which guidance is applied; outside, the unconditional half is not computed.
        channels: number of first channels to guide (3 reproduces the published DiT results); None is all.
        further: skip-layer guidance and rescaling.
        elsewhere: the model on another device, for the null condition (default: `denoiser`, in one batch with the other
            half).

    Raises:
        InputError: settings that `check_guidance` rejects.
    """
    if elsewhere is not None:
        halves = _halves(denoiser, condition, elsewhere, null.to(elsewhere.device))
        return _guided(halves, plain(denoiser, condition), scale, interval, channels, further)
    both = condition.joined(null)

    def pair(x: Tensor, t: Tensor, s: Tensor) -> tuple[Prediction, Prediction]:
        joint = denoiser(torch.cat([x, x]), t, s, both)
        first, second = slice(len(x)), slice(len(x), None)
        return _part(joint, first), _part(joint, second)

    return _guided(pair, plain(denoiser, condition), scale, interval, channels, further)


def _halves(
    denoiser: Conditional, condition: Condition, elsewhere: Elsewhere, null: Condition
) -> Callable[[Tensor, Tensor, Tensor], tuple[Prediction, Prediction]]:
    def pair(x: Tensor, t: Tensor, s: Tensor) -> tuple[Prediction, Prediction]:
        copied = x.to(elsewhere.device)  # first, because copies wait for the kernels before them
        good, bad = denoiser(x, t, s, condition), elsewhere.denoiser(copied, t, s, null)
        return good, Prediction(bad.x0.to(x.device), bad.eps.to(x.device))

    return pair


def autoguidance(
    denoiser: Conditional,
    guide: Conditional,
    condition: Condition,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
    further: Further = NOTHING,
) -> Denoise:
    """Autoguidance: guide + scale (model - guide).

    Args:
        denoiser: the model.
        guide: a smaller or less trained model of the same task.
        condition, scale, interval, channels, further: as in `cfg`.

    Raises:
        InputError: settings that `check_guidance` rejects.
    """
    strong, weak = plain(denoiser, condition), plain(guide, condition)
    return _guided(lambda x, t, s: (strong(x, t, s), weak(x, t, s)), strong, scale, interval, channels, further)


def _guided(
    pair: Callable[[Tensor, Tensor, Tensor], tuple[Prediction, Prediction]],
    alone: Denoise,
    scale: float,
    interval: tuple[float, float],
    channels: int | None,
    further: Further,
) -> Denoise:
    low, high = interval
    check_guidance(scale, interval, channels)
    skip = further.skip
    if scale == 1 and skip is None:
        return alone

    def denoise(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
        guides = scale != 1 and low <= float(t) <= high
        skips = skip is not None and skip.acts(float(t))
        if not guides:
            good = guided = alone(x, t, s)
        else:
            good, bad = pair(x, t, s)
            x0, eps = _blend(good.x0, bad.x0, scale, channels), _blend(good.eps, bad.eps, scale, channels)
            guided = Prediction(x0, eps, good.variance_mix)
        if skips:
            assert skip is not None
            assert further.without is not None
            guided = _away(guided, good, further.without(x, t, s), skip.scale)
        if guides and further.rescale is not None:
            guided = replace(further.rescale(guided, good, x, t), variance_mix=good.variance_mix)
        return replace(guided, guided=guides + 2 * skips)

    return denoise


def _away(guided: Prediction, good: Prediction, bad: Prediction, scale: float) -> Prediction:
    """Add scale (good - bad) to a prediction."""
    x0, eps = guided.x0 + scale * (good.x0 - bad.x0), guided.eps + scale * (good.eps - bad.eps)
    return Prediction(x0, eps, guided.variance_mix)


def check_guidance(scale: float, interval: tuple[float, float], channels: int | None) -> None:
    """Check the settings of guidance.

    Raises:
        InputError: the interval is empty, the scale is not finite, or there are no channels.
    """
    low, high = interval
    if not low <= high:
        raise InputError(f"guidance interval {low} to {high} is empty; give the smaller time first")
    if not math.isfinite(scale):
        raise InputError(f"guidance {scale}; give a finite number (1 disables guidance)")
    if channels is not None and channels < 1:
        raise InputError(f"guidance on {channels} channels; give 1 or more, or leave it out for all")


def _blend(good: Tensor, bad: Tensor, scale: float, channels: int | None) -> Tensor:
    guided = torch.lerp(bad, good, scale)
    return guided if channels is None else torch.cat([guided[:, :channels], good[:, channels:]], dim=1)


def _part(joint: Prediction, part: slice) -> Prediction:
    mix = joint.variance_mix
    return Prediction(joint.x0[part], joint.eps[part], None if mix is None else mix[part])
