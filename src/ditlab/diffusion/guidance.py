"""Guidance wraps a denoiser; networks and samplers know nothing of it.

`cfg` is classifier-free guidance (Ho & Salimans 2022) with the interval of Kynkaanniemi et al. (2024),
`autoguidance` steers away from a weaker model (Karras et al. 2024). Scale 1 is the plain conditional model.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Prediction


class Conditional(Protocol):
    """A network seen through its objective, see `ditlab.diffusion.objective.Denoiser`."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Prediction:
        """x_t, its time, the time the solver goes to next, and the condition (B rows) -> x0 and eps."""


def plain(denoiser: Conditional, condition: Condition) -> Denoise:
    """The conditional model alone."""
    return lambda x, t, s: denoiser(x, t, s, condition)


def cfg(
    denoiser: Conditional,
    condition: Condition,
    null: Condition,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
) -> Denoise:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Args:
        denoiser: the model.
        condition: B rows.
        null: B rows of "no condition", or of a negative prompt.
        scale: 1 is the conditional model, 0 the unconditional one.
        interval: times t between which guidance acts; outside, the unconditional half is not computed.
        channels: guide the first channels only, this many (3 reproduces the published DiT figures); None is all.
    """
    both = condition.joined(null)

    def pair(x: Tensor, t: Tensor, s: Tensor) -> tuple[Prediction, Prediction]:
        joint = denoiser(torch.cat([x, x]), t, s, both)
        first, second = slice(len(x)), slice(len(x), None)
        return _part(joint, first), _part(joint, second)

    return _guided(pair, plain(denoiser, condition), scale, interval, channels)


def autoguidance(
    denoiser: Conditional,
    guide: Conditional,
    condition: Condition,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
    channels: int | None = None,
) -> Denoise:
    """guide + scale (model - guide), where the guide is a smaller or less trained model of the same task."""
    strong, weak = plain(denoiser, condition), plain(guide, condition)
    return _guided(lambda x, t, s: (strong(x, t, s), weak(x, t, s)), strong, scale, interval, channels)


def _guided(
    pair: Callable[[Tensor, Tensor, Tensor], tuple[Prediction, Prediction]],
    alone: Denoise,
    scale: float,
    interval: tuple[float, float],
    channels: int | None,
) -> Denoise:
    low, high = interval
    check_guidance(scale, interval, channels)
    if scale == 1:
        return alone

    def denoise(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
        if not low <= float(t) <= high:
            return alone(x, t, s)
        good, bad = pair(x, t, s)
        x0 = _blend(good.x0, bad.x0, scale, channels)
        eps = _blend(good.eps, bad.eps, scale, channels)
        return Prediction(x0, eps, good.variance_mix, guided=True)

    return denoise


def check_guidance(scale: float, interval: tuple[float, float], channels: int | None) -> None:
    """Refuse settings of guidance that cannot be used.

    Raises:
        InputError: an empty interval, a scale that is no number, or no channels.
    """
    low, high = interval
    if not low <= high:
        raise InputError(f"guidance interval {low} to {high} is empty; give the smaller time first")
    if not math.isfinite(scale):
        raise InputError(f"guidance {scale}; give a number (1 is none)")
    if channels is not None and channels < 1:
        raise InputError(f"guidance on {channels} channels; give 1 or more, or leave it out for all")


def _blend(good: Tensor, bad: Tensor, scale: float, channels: int | None) -> Tensor:
    guided = torch.lerp(bad, good, scale)
    return guided if channels is None else torch.cat([guided[:, :channels], good[:, channels:]], dim=1)


def _part(joint: Prediction, part: slice) -> Prediction:
    mix = joint.variance_mix
    return Prediction(joint.x0[part], joint.eps[part], None if mix is None else mix[part])
