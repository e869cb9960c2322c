"""Feature caching with a bound on its error: the inner layers are computed where their extrapolation would exceed it.

Between full computations the residual of `Backbone.inner` is extrapolated linearly in time, as in `Reuse`. The error of
that grows as C |(t - a)(t - b)|, where a and b are the times of the last two computations and C is half of the second
derivative, relative to the residual. Each computation shows the error that the extrapolation would have had there, and
with it C, so that the error of the following evaluations is known in advance, without another evaluation of the
network. (TeaCache, Liu et al., CVPR 2025, accumulates the change of the network's modulated input instead.)

Each row of a call decides for itself, so that an image does not depend on the others of its batch.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.inference.optimize.reuse import FeatureCache

GROWTH = 2.0  # of the distance between two computations, at most, as in the control of step sizes


class ErrorReuse(FeatureCache):
    """Computes `inner` for the rows whose extrapolation would have a larger relative error."""

    def __init__(self, error: float) -> None:
        """Create a cache; `on` connects it with a network.

        Args:
            error: largest expected error of the residual, relative to its norm.

        Raises:
            InputError: an error that is not above 0 and below 1.
        """
        if not 0 < error < 1:
            raise InputError(f"reuse_error {error:g}; give a number above 0 and below 1, such as 0.1")
        super().__init__()
        self.error = error
        self.computing, self.rows = True, torch.empty(0, dtype=torch.long)  # of the present call of `inner`
        self.forget(())

    @property
    def settings(self) -> dict[str, Any]:
        return {"reuse_error": self.error}

    def on(self, net: Backbone) -> Backbone:
        cached = super().on(net)
        self.forward: Callable[..., Tensor] = MethodType(type(net).forward, cached)
        cached.forward = self.call  # type: ignore[method-assign]
        self.forget(())
        return cached

    def forget(self, shape: tuple[int, ...]) -> None:
        """Remove what is stored, and expect inputs of a shape (B, ...)."""
        rows = shape[0] if shape else 0
        self.shape = shape
        self.residuals: list[Tensor] = []  # of the last two computations of each row, (B, ...) each, newest first
        self.nodes = torch.full((2, rows), torch.nan, dtype=torch.float64)  # their times
        self.bend = torch.full((rows,), torch.inf, dtype=torch.float64)  # C of each row; infinite before it is known

    def call(self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None) -> Tensor:
        """Compute the output of the network (B, ...), in up to two parts: rows that compute, and that extrapolate."""
        if tuple(x.shape) != self.shape:
            self.forget(tuple(x.shape))
        due = self.due()
        self.computed, self.asked = self.computed + int(due.sum()), self.asked + len(due)
        outputs: list[Tensor] = []
        parts = [rows for kind in (due, ~due) if len(rows := kind.nonzero()[:, 0])]
        for rows in parts:
            self.computing, self.rows = bool(due[rows[0]]), rows
            if len(parts) == 1:
                return self.forward(x, timestep, condition)
            here = rows.to(x.device)
            outputs.append(self.forward(x[here], timestep[here], condition[here]))
        return torch.cat(outputs)[torch.cat(parts).argsort().to(x.device)]

    def due(self) -> Tensor:
        """Whether each row is computed at the present time (B,)."""
        newest, older = (self.time - self.nodes).abs().unbind(0)
        far = newest > GROWTH * (self.nodes[0] - self.nodes[1]).abs()
        return ~(self.bend * newest * older <= self.error) | far

    def __call__(self, x: Tensor, *context: Any) -> Tensor:
        assert self.inner is not None
        if not self.computing:
            return x + self.extrapolated(self.rows)
        out = self.inner(x, *context)
        self.store(self.rows, out - x)
        return out

    def extrapolated(self, rows: Tensor) -> Tensor:
        """Continue the residuals of some rows linearly to the present time; (R, ...)."""
        newest, older = (residual[rows.to(residual.device)] for residual in self.residuals)
        first, second = self.nodes[:, rows].unbind(0)
        share = ((self.time - first) / (first - second)).to(newest)
        return newest + (newest - older) * share.reshape(-1, *[1] * (newest.ndim - 1))

    def store(self, rows: Tensor, residual: Tensor) -> None:
        """Store the computed residuals (R, ...) of some rows, and what their extrapolation would have missed.

        Values of the same time are replaced (Heun evaluates a time twice, for two steps).
        """
        if not self.residuals:
            self.residuals = [residual.new_zeros(self.shape[0], *residual.shape[1:]) for _ in range(2)]
        distances = (self.time - self.nodes[:, rows]).abs()
        new = distances[0] != 0  # also if there is none yet
        known = ~distances[1].isnan() & new
        if known.any():
            missed = (residual - self.extrapolated(rows)).flatten(1).norm(dim=1) / residual.flatten(1).norm(dim=1)
            self.bend[rows[known]] = (missed.double().cpu() / distances.prod(0))[known]
        moved, places = rows[new], rows.to(residual.device)
        self.residuals[1][moved.to(residual.device)] = self.residuals[0][moved.to(residual.device)]
        self.residuals[0][places] = residual
        self.nodes[1, moved] = self.nodes[0, moved]
        self.nodes[0, rows] = self.time
