"""Feature caching: in most steps, the inner layers of a network are not computed, but extrapolated from earlier steps.

The residual that `Backbone.inner` adds to its input changes smoothly along the sampling trajectory. Between full
computations it is extrapolated as a Taylor polynomial in time (Liu et al., "From Reusable to Forecasting:
TaylorSeers", 2025). Networks with long skip connections still compute their first and last blocks (Ma et al.,
"DeepCache", CVPR 2024). Feature caching is for schedules with many steps; a sampler with few steps saves more time.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.core.types import Denoise, Prediction


class FeatureCache:
    """Replaces `inner` of a network for one batch at a time; subclasses decide when it is computed.

    `computed` and `asked` count the rows of network calls: those in which the inner layers were computed, and all.
    """

    def __init__(self) -> None:
        self.inner: Callable[..., Tensor] | None = None
        self.time = 0.0
        self.computed = self.asked = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling setting of this cache, by name."""
        raise NotImplementedError

    def on(self, net: Backbone) -> Backbone:
        """Return a network whose inner layers are cached; it shares all weights with the given network.

        Raises:
            InputError: the family does not support feature caching.
        """
        if type(net).inner is Backbone.inner:
            name = next(iter(self.settings))
            raise InputError(f"{net.config['name']} does not support feature caching; leave {name} out")
        self.inner = net.inner
        cached = copy.copy(net)  # shares the submodules, so that compiled blocks stay compiled
        cached.inner = self  # type: ignore[method-assign]
        return cached

    def timed(self, denoise: Denoise) -> Denoise:
        """Return a denoiser that sets the time of the cache before each call."""

        def at(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            self.time = float(t)
            return denoise(x, t, s)

        return at

    def __call__(self, x: Tensor, *context: Any) -> Tensor:
        """Compute what `inner` computes, or continue it."""
        raise NotImplementedError


class Reuse(FeatureCache):
    """Computes `inner` at every `interval`-th call, and extrapolates it in between.

    If the shape of the input changes, because guidance begins or ends, it is computed and earlier values are removed.
    """

    def __init__(self, interval: int, order: int = 1) -> None:
        """Create a cache; `on` connects it with a network.

        Args:
            interval: number of calls from one full computation to the next.
            order: order of the polynomial.

        Raises:
            InputError: an interval below 2.
        """
        if interval < 2:
            raise InputError(f"reuse {interval}; give 2 or more steps from one full computation to the next")
        super().__init__()
        self.interval, self.order = interval, order
        self.values: list[Tensor] = []  # residuals of `inner`, newest first
        self.times: list[float] = []
        self.calls = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"reuse": self.interval}

    def on(self, net: Backbone) -> Backbone:
        self.values, self.times, self.calls = [], [], 0  # values of earlier images are invalid
        return super().on(net)

    def __call__(self, x: Tensor, *context: Any) -> Tensor:
        assert self.inner is not None
        if self.values and self.values[0].shape != x.shape:
            self.values, self.times, self.calls = [], [], 0
        due = self.calls % self.interval == 0
        self.calls += 1
        self.computed, self.asked = self.computed + due * len(x), self.asked + len(x)
        if not due:
            return x + self.continued()
        out = self.inner(x, *context)
        self.keep(out - x)
        return out

    def keep(self, value: Tensor) -> None:
        """Store a value, which replaces a value of the same time (Heun evaluates it twice, for two steps)."""
        replaced = int(bool(self.times) and self.times[0] == self.time)
        self.values = [value, *self.values[replaced:]][: self.order + 1]
        self.times = [self.time, *self.times[replaced:]][: self.order + 1]

    def continued(self) -> Tensor:
        """Evaluate the polynomial through the stored values (Lagrange's form) at the current time."""
        result = torch.zeros_like(self.values[0])
        for i, value in enumerate(self.values):
            others = [time for j, time in enumerate(self.times) if j != i]
            weight = math.prod((self.time - time) / (self.times[i] - time) for time in others)
            result = result.add(value, alpha=weight)
        return result
