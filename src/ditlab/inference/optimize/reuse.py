"""Feature caching: at most steps the inner part of a network is not computed but extrapolated from earlier steps.

What `Backbone.inner` adds to its input changes smoothly along the trajectory of an image, so between full computations
it is continued as a Taylor polynomial in time (Liu et al., "From Reusable to Forecasting: TaylorSeers", 2025). Networks
with long skips still compute their first and last blocks (Ma et al., "DeepCache", CVPR 2024). It is meant for long
schedules; a good solver with few steps saves more.
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


class Reuse:
    """Replaces a network's `inner`: computed at every `interval`-th call, extrapolated between.

    At a call of another shape (when guidance begins or ends) it is computed, and earlier values are dropped.
    """

    def __init__(self, interval: int, order: int = 1) -> None:
        """Prepare feature caching, for no network yet.

        Args:
            interval: number of calls after which the network is computed in full again.
            order: order of the polynomial.

        Raises:
            InputError: an interval below 2.
        """
        if interval < 2:
            raise InputError(f"reuse {interval}; give 2 or more steps from one full computation to the next")
        self.interval, self.order = interval, order
        self.inner: Callable[..., Tensor] | None = None
        self.time = 0.0
        self.values: list[Tensor] = []  # newest first: what `inner` added
        self.times: list[float] = []
        self.calls = 0

    def on(self, net: Backbone) -> Backbone:
        """A network that shares all weights with the given one, and has this as its inner part.

        Raises:
            InputError: a family that has no inner part.
        """
        if type(net).inner is Backbone.inner:
            raise InputError(f"{net.config['name']} has no inner part that can be cached; leave reuse out")
        self.inner = net.inner
        self.values, self.times, self.calls = [], [], 0  # new images begin
        own = copy.copy(net)  # shares the submodules, so that compiled blocks stay compiled
        own.inner = self  # type: ignore[method-assign]
        return own

    def timed(self, denoise: Denoise) -> Denoise:
        """A denoiser around that network, which passes on the time of each call."""

        def at(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
            self.time = float(t)
            return denoise(x, t, s)

        return at

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        assert self.inner is not None
        if self.values and self.values[0].shape != x.shape:
            self.values, self.times, self.calls = [], [], 0
        due = self.calls % self.interval == 0
        self.calls += 1
        if not due:
            return x + self.continued()
        out = self.inner(x, *rest)
        self.keep(out - x)
        return out

    def keep(self, value: Tensor) -> None:
        """Store a value; of two at the same time (Heun's second call and the next step's first) the later one."""
        again = int(bool(self.times) and self.times[0] == self.time)
        self.values = [value, *self.values[again:]][: self.order + 1]
        self.times = [self.time, *self.times[again:]][: self.order + 1]

    def continued(self) -> Tensor:
        """The polynomial through the stored values (Lagrange's form), at the current time."""
        result = torch.zeros_like(self.values[0])
        for i, value in enumerate(self.values):
            others = [time for j, time in enumerate(self.times) if j != i]
            weight = math.prod((self.time - time) / (self.times[i] - time) for time in others)
            result = result.add(value, alpha=weight)
        return result
