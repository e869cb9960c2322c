"""The whole vocabulary that networks, objectives, guidance and samplers share.

One clock everywhere: t = 0 is data, t = 1 is noise, and x_t = alpha(t) x0 + sigma(t) eps. Times are float64
tensors on the CPU, a scalar or one for each image; images are float32 on the network's device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Pictures and their labels, as a data set hands them out."""

    images: Tensor  # (B, C, H, W) uint8, or moments (B, 2c, h, w) float32 from a latent cache
    labels: Tensor  # (B,) int64


@dataclass(frozen=True)
class Between:
    """A point on the way from one label, or one seed, to another."""

    first: Any
    second: Any
    weight: float  # 0 is the first, 1 the second


def between(first: Any, second: Any, count: int) -> list[Between]:
    """Evenly spaced points from one label, or seed, to another, both ends included."""
    return [Between(first, second, i / max(count - 1, 1)) for i in range(count)]


@dataclass(frozen=True)
class Prediction:
    """All that a sampler may know about a network."""

    x0: Tensor  # (B, C, H, W)  estimate of the data
    eps: Tensor  # (B, C, H, W)  estimate of the noise
    variance_mix: Tensor | None = None
    """(B, C, H, W), for learned reverse variances only: 0 is log beta_tilde, 1 is log beta (Nichol & Dhariwal
    2021, eq. 15). The mix is kept instead of a variance because the two ends depend on the sampler's grid."""
    guided: bool = False
    """Whether guidance acted. Predictions with it and without it belong to two fields, between which the way of a
    sample has a kink."""


@dataclass(frozen=True)
class Step:
    """The state of a sampler after one step."""

    i: int  # number of the step, from 0
    t: float  # time of `x`; 0 after the last step
    x: Tensor  # (B, C, H, W)  the sample at time t
    x0: Tensor  # (B, C, H, W)  the estimate of the data that led there


Denoise = Callable[[Tensor, Tensor], Prediction]
"""(x_t, t) -> Prediction, with condition and guidance inside."""

Noise = Callable[[Tensor], Tensor]
"""Like `torch.randn_like`, with one generator for each image."""


Label = int | str | Between | None


Seed = int | Between
