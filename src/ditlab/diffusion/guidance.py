"""Guidance: functions that wrap a denoiser, independent of network and sampler.

`cfg` is classifier-free guidance (Ho & Salimans 2022) with the guidance interval of Kynkaanniemi et al. (2024).
`autoguidance` extrapolates from a weaker model (Karras et al. 2024). Scale 1 is the conditional model without guidance.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Denoise, Prediction


class Conditional(Protocol):
    """A conditional model that predicts x0 and eps, such as `ditlab.diffusion.objective.Denoiser`."""

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Prediction:
        """Predict x0 and eps from x_t (B, C, ...), time t, next time s of the sampler, and the condition (B rows)."""


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
) -> Denoise:
    """Classifier-free guidance: unconditional + scale (conditional - unconditional).

    Args:
        denoiser: the model.
        condition: B rows.
        null: B rows of "no condition", or of a negative prompt.
        scale: guidance scale; 1 is the conditional model, 0 the unconditional one.
        interval: times t between which guidance is applied; outside, the unconditional half is not computed.
        channels: number of first channels to guide (3 reproduces the published DiT results); None is all.

    Raises:
        InputError: settings that `check_guidance` rejects.
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
    """Autoguidance: guide + scale (model - guide).

    Args:
        denoiser: the model.
        guide: a smaller or less trained model of the same task.
        condition, scale, interval, channels: as in `cfg`.

    Raises:
        InputError: settings that `check_guidance` rejects.
    """
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
