"""Feature caching: at most steps the inner part of a network is not computed but carried on from earlier steps.

What `Backbone.inner` adds to its input changes smoothly along the way of a picture, so between full computations it is
continued as a Taylor polynomial in time (Liu et al., "From Reusable to Forecasting: TaylorSeers", 2025). Networks with
long skips still compute their first and last blocks (Ma et al., "DeepCache", CVPR 2024). Good solvers at few steps gain
more; this is for long schedules.
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
    """In the place of a network's `inner`: computed at every `interval`-th call, continued between.

    A call of another shape (guidance that begins or ends) is computed, and what came before is forgotten.
    """

    def __init__(self, interval: int, order: int = 1) -> None:
        """Not yet in any network.

        Args:
            interval: every so many calls the network is computed in full.
            order: of the polynomial.

        Raises:
            InputError: an interval below 2.
        """
        if interval < 2:
            raise InputError(f"reuse {interval}; give 2 or more: every so many steps the network is computed in full")
        self.interval, self.order = interval, order
        self.inner: Callable[..., Tensor] | None = None
        self.time = 0.0
        self.values: list[Tensor] = []  # newest first: what `inner` added
        self.times: list[float] = []
        self.calls = 0

    def on(self, net: Backbone) -> Backbone:
        """A network that shares all weights with this one, with this in the place of its inner part.

        Raises:
            InputError: a family that has no inner part.
        """
        if type(net).inner is Backbone.inner:
            raise InputError(f"{net.config['name']} has no inner part that could be used again; leave reuse out")
        self.inner = net.inner
        self.values, self.times, self.calls = [], [], 0  # other pictures begin
        own = copy.copy(net)  # which shares the parts themselves: what was compiled stays so
        own.inner = self  # type: ignore[method-assign]
        return own

    def timed(self, denoise: Denoise) -> Denoise:
        """A denoiser around that network, which tells the time of each call."""

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
        """Remember a value; of two at the same time (Heun's second call, and the next step's first) the later."""
        again = int(bool(self.times) and self.times[0] == self.time)
        self.values = [value, *self.values[again:]][: self.order + 1]
        self.times = [self.time, *self.times[again:]][: self.order + 1]

    def continued(self) -> Tensor:
        """The polynomial through the kept values (Lagrange's form), at the present time."""
        result = torch.zeros_like(self.values[0])
        for i, value in enumerate(self.values):
            others = [time for j, time in enumerate(self.times) if j != i]
            weight = math.prod((self.time - time) / (self.times[i] - time) for time in others)
            result = result.add(value, alpha=weight)
        return result
