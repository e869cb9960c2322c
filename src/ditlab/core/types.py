"""The vocabulary that networks, conditioners, objectives, guidance and samplers share.

Time runs from t = 0 (data) to t = 1 (noise), and x_t = alpha(t) x0 + sigma(t) eps. Times are float64 tensors on the
CPU, a scalar or one for each image; images and videos are float32 on the network's device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the network receives beside x and the timestep. Every tensor has the batch as its first dimension.

    A row may lie between two conditions: `other` is then the second one, and `weight` its share.
    """

    label: Tensor | None = None  # (B,) int64, class index
    tokens: Tensor | None = None  # (B, L, E), states of a text encoder
    mask: Tensor | None = None  # (B, L) bool, true where a token counts
    pooled: Tensor | None = None  # (B, P), one vector for the whole text
    other: "Condition | None" = None  # B rows
    weight: Tensor | None = None  # (B,) float, 0 is this condition and 1 the other one

    def __len__(self) -> int:
        """The number of rows; 0 for a condition that holds nothing."""
        return next((len(value) for value in self.parts().values()), 0)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the rows."""
        return self.apply(lambda value: value[rows])

    def parts(self) -> dict[str, "Tensor | Condition"]:
        """The fields that are not None."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def apply(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same condition with every tensor changed."""
        changed: dict[str, Any] = {
            name: value.apply(change) if isinstance(value, Condition) else change(value)
            for name, value in self.parts().items()
        }
        return replace(self, **changed)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same condition on a device; floating-point tensors get the precision `dtype` if it is given."""
        return self.apply(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def joined(self, other: "Condition") -> "Condition":
        """The rows of this condition, followed by those of another one of the same kind."""
        return Condition.cat([self, other])

    @staticmethod
    def cat(conditions: "Sequence[Condition]") -> "Condition":
        """Conditions of one kind, one after the other.

        Raises:
            ValueError: conditions of different kinds.
        """
        if any(each.other is not None for each in conditions):
            conditions = [each.as_between() for each in conditions]
        kinds = [each.parts().keys() for each in conditions]
        if any(kind != kinds[0] for kind in kinds):
            raise ValueError(f"conditions of different kinds cannot be joined: {[sorted(kind) for kind in kinds]}")
        values = {name: [getattr(each, name) for each in conditions] for name in kinds[0]}
        joined: dict[str, Any] = {
            name: Condition.cat(parts) if name == "other" else torch.cat(parts) for name, parts in values.items()
        }
        return Condition(**joined)

    def as_between(self) -> "Condition":
        """The same rows written as if each were between two conditions, all at the first."""
        if self.other is not None:
            return self
        device = next(value.device for value in self.parts().values() if isinstance(value, Tensor))
        return replace(self, other=self, weight=torch.zeros(len(self), device=device))

    def where(self, rows: Tensor, other: "Condition") -> "Condition":
        """The rows of `other` where `rows` (B,) is true, these elsewhere; both of one kind and length."""
        mine, theirs = self.parts(), other.parts()
        chosen: dict[str, Any] = {}
        for name, value in mine.items():
            instead = theirs[name]
            if isinstance(value, Condition) or isinstance(instead, Condition):
                raise ValueError("rows between two conditions cannot be replaced")
            chosen[name] = torch.where(rows.reshape(-1, *[1] * (value.ndim - 1)), instead, value)
        return Condition(**chosen)


@dataclass(frozen=True)
class Batch:
    """What a data set returns: it can be sliced and moved as one."""

    x: Tensor  # (B, C, H, W) or (B, C, T, H, W) uint8, or moments (B, 2 c, h, w) float32 from a latent cache
    condition: Condition
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # (B, ...) each: features, original sizes, frame rates
    encoded: bool = False  # whether x holds moments of an autoencoder already

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """Some of the rows."""
        extra = {name: value[rows] for name, value in self.extra.items()}
        return replace(self, x=self.x[rows], condition=self.condition[rows], extra=extra)

    @property
    def labels(self) -> Tensor:
        """The class labels (B,) of a batch that has some.

        Raises:
            ValueError: a batch with another kind of condition.
        """
        if self.condition.label is None:
            raise ValueError(f"no class labels in a batch with {', '.join(self.condition.parts()) or 'no condition'}")
        return self.condition.label

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return replace(self, x=self.x.to(device), condition=self.condition.to(device), extra=extra)


@dataclass(frozen=True)
class Between:
    """A point between two conditions, or between two seeds."""

    first: Any
    second: Any
    weight: float  # 0 is the first, 1 the second


def between(first: Any, second: Any, count: int) -> list[Between]:
    """Evenly spaced points from one condition (or seed) to another, both ends included."""
    return [Between(first, second, i / max(count - 1, 1)) for i in range(count)]


Label = int | str | Between | None
Seed = int | Between


@dataclass(frozen=True)
class Prediction:
    """All that a sampler may know about a network."""

    x0: Tensor  # (B, C, H, W) or (B, C, T, H, W): estimate of the data
    eps: Tensor  # of the same shape: estimate of the noise
    variance_mix: Tensor | None = None
    """Of the same shape, for learned reverse variances only: 0 is log beta_tilde, 1 is log beta (Nichol & Dhariwal
    2021, eq. 15). The mix is kept instead of a variance because the two ends depend on the sampler's schedule."""
    guided: bool = False
    """Whether guidance acted. The trajectory of a sample is not smooth where guidance begins or ends."""


@dataclass(frozen=True)
class Step:
    """The state of a sampler after one step."""

    i: int  # number of the step, from 0
    t: float  # time of `x`; 0 after the last step
    x: Tensor  # (B, C, H, W) or (B, C, T, H, W): the sample at time t
    x0: Tensor  # of the same shape: the estimate of the data that led there


class Trace:
    """What a training aid asks of a forward pass, and what it finds afterwards.

    Args:
        taps: names of values to record: "blocks.3" is the output of the fourth block.
        kept: places (B, K) of the tokens that pass the middle blocks; None is all.
    """

    def __init__(self, taps: Sequence[str] = (), kept: Tensor | None = None) -> None:
        self.wanted = frozenset(taps)
        self.kept = kept
        self.taps: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}

    def tap(self, name: str, value: Tensor) -> None:
        """Record a value if it was asked for."""
        if name in self.wanted:
            self.taps[name] = value

    def loss(self, name: str, value: Tensor) -> None:
        """Add to a loss (B,) that the network itself proposes, such as the balance of a router."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value


Denoise = Callable[[Tensor, Tensor, Tensor], Prediction]
"""(x_t, t, s) -> Prediction, with condition and guidance inside. s is the time the solver goes to next; most models
ignore it, flow maps (shortcut models, MeanFlow) need it."""

Noise = Callable[[Tensor], Tensor]
"""Like `torch.randn_like`, with one generator for each image."""
