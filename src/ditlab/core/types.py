"""Types that networks, conditioners, objectives, guidance and samplers share.

Time t runs from 0 (data) to 1 (noise), and x_t = alpha(t) x0 + sigma(t) eps. Times are float64 tensors on the CPU:
a scalar, or one time per image. Images and videos are float32 tensors on the network's device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the network receives in addition to x and the timestep, such as class labels or encoded text.

    The first dimension of every tensor is the batch. To interpolate between two conditions, `other` holds the second
    condition and `weight` its share.
    """

    label: Tensor | None = None  # (B,) int64, class index
    tokens: Tensor | None = None  # (B, L, E) float, states of a text encoder; or (B, L) int64, numbers of words
    mask: Tensor | None = None  # (B, L) bool, true for tokens that the network uses
    pooled: Tensor | None = None  # (B, P), one vector for the whole text
    layer_keys: Tensor | None = (
        None  # (B, layers, L, heads, d), keys of a language model's layers, with their positions
    )
    layer_values: Tensor | None = None  # (B, layers, L, heads, d), their values
    embedded: Tensor | None = None  # (B, L, D), tokens as the network has embedded them, see `Backbone.encoded`
    vector: Tensor | None = None  # (B, D), the vector of the whole text that belongs to `embedded`
    resolution: Tensor | None = None  # (B, 2) float, height and width in pixels of the image to be generated
    fps: Tensor | None = None  # (B,) float, frames per second of the clip to be generated
    given: Tensor | None = None  # (B, T) bool, true for frames that the network receives without noise
    other: "Condition | None" = None  # B rows
    weight: Tensor | None = None  # (B,) float, 0 is this condition and 1 the other one

    def __len__(self) -> int:
        """The number of rows; 0 for an empty condition."""
        return next((len(value) for value in self.parts().values()), 0)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the rows."""
        return self.apply(lambda value: value[rows])

    def parts(self) -> dict[str, "Tensor | Condition"]:
        """The fields that are not None."""
        return {part.name: value for part in fields(self) if (value := getattr(self, part.name)) is not None}

    def apply(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the condition with a function applied to every tensor."""
        changed: dict[str, Any] = {
            name: value.apply(change) if isinstance(value, Condition) else change(value)
            for name, value in self.parts().items()
        }
        return replace(self, **changed)

    def with_given(self, given: Tensor) -> Self:
        """Return the condition for clips of which the frames `given` (B, T) are given."""
        return replace(self, given=given, other=None if self.other is None else self.other.with_given(given))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """Return the condition on a device; floating-point tensors are converted to `dtype` if it is given."""
        return self.apply(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def joined(self, other: "Condition") -> "Condition":
        """Return the rows of this condition, followed by the rows of another condition of the same kind."""
        return Condition.cat([self, other])

    @staticmethod
    def cat(conditions: "Sequence[Condition]") -> "Condition":
        """Concatenate conditions of one kind along the batch.

        Raises:
            ValueError: the conditions have different fields.
        """
        if any(condition.other is not None for condition in conditions):
            conditions = [condition.as_between() for condition in conditions]
        names = [condition.parts().keys() for condition in conditions]
        if any(others != names[0] for others in names):
            raise ValueError(f"conditions of different kinds cannot be joined: {[sorted(others) for others in names]}")
        values = {name: [getattr(condition, name) for condition in conditions] for name in names[0]}
        joined: dict[str, Any] = {
            name: Condition.cat(parts) if name == "other" else torch.cat(parts) for name, parts in values.items()
        }
        return Condition(**joined)

    def as_between(self) -> "Condition":
        """Return the rows as interpolations between two conditions, all at the first (weight 0)."""
        if self.other is not None:
            return self
        device = next(value.device for value in self.parts().values() if isinstance(value, Tensor))
        return replace(self, other=self, weight=torch.zeros(len(self), device=device))

    def where(self, rows: Tensor, other: "Condition") -> "Condition":
        """Return the rows of `other` where `rows` (B,) is true, and the rows of this condition elsewhere.

        Both conditions must have the same fields and length.

        Raises:
            ValueError: a condition holds interpolated rows.
        """
        replacements = other.parts()
        selected: dict[str, Any] = {}
        for name, value in self.parts().items():
            replacement = replacements[name]
            if isinstance(value, Condition) or isinstance(replacement, Condition):
                raise ValueError("rows between two conditions cannot be replaced")
            selected[name] = torch.where(rows.reshape(-1, *[1] * (value.ndim - 1)), replacement, value)
        return Condition(**selected)


class TextShape(NamedTuple):
    """The text condition that a network is made for."""

    length: int
    """Largest number of tokens, L."""
    width: int = 0
    """Width of the token states, E; 0 if tokens are numbers of words."""
    vocabulary: int = 0
    """Number of words, for tokens (B, L) that are numbers of words; 0 for tokens (B, L, E) that are states. Number 0 is
    padding."""
    pooled: int = 0
    """Width of the pooled vector, P; 0 if there is none."""
    layers: int = 0
    """Layers of a language model whose keys and values are the condition, instead of tokens; 0 is none."""
    heads: int = 0
    """Key and value heads of each of these layers."""
    head_width: int = 0
    """Channels of each of these heads."""

    def __bool__(self) -> bool:
        return self.length > 0

    def summary(self) -> str:
        """The size of an encoded text, in words."""
        return f"{self.length} tokens of {self.width or 2 * self.layers * self.heads * self.head_width:,} values"

    def example(self, batch: int, device: torch.device, generator: torch.Generator | None = None) -> Condition:
        """A condition of this shape for a trial call: random values with a generator, zeros without."""

        def values(*shape: int) -> Tensor:
            if generator is None:
                return torch.zeros(shape, device=device)
            return torch.randn(shape, generator=generator).to(device)

        mask = torch.ones(batch, self.length, dtype=torch.bool, device=device)
        pooled = values(batch, self.pooled) if self.pooled else None
        if self.layers:
            shape = (batch, self.layers, self.length, self.heads, self.head_width)
            return Condition(mask=mask, pooled=pooled, layer_keys=values(*shape), layer_values=values(*shape))
        if not self.vocabulary:
            return Condition(tokens=values(batch, self.length, self.width), mask=mask, pooled=pooled)
        numbers = torch.ones(batch, self.length, dtype=torch.long)
        if generator is not None:
            numbers = torch.randint(1, self.vocabulary, numbers.shape, generator=generator)
        return Condition(tokens=numbers.to(device), mask=mask, pooled=pooled)


@dataclass(frozen=True)
class Batch:
    """Images or videos with their conditions, as a data set returns them; can be sliced and moved as a whole."""

    x: Tensor
    """Images (B, C, H, W) or videos (B, C, T, H, W): uint8, or float32 in the scale of the network if the values of the
    data set are not those of 8 bits. Or moments (B, 2 c, h, w) float32 from a latent cache."""
    condition: Condition
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # (B, ...) each: features, original sizes, frame rates
    encoded: bool = False  # whether x holds the moments of latents instead of images
    index: Tensor | None = None  # (B,) int64, positions of the images in the data set; None if it does not say

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        """Some of the rows."""
        extra = {name: value[rows] for name, value in self.extra.items()}
        index = None if self.index is None else self.index[rows]
        return replace(self, x=self.x[rows], condition=self.condition[rows], extra=extra, index=index)

    @property
    def labels(self) -> Tensor:
        """The class labels (B,).

        Raises:
            ValueError: the batch has another kind of condition.
        """
        if self.condition.label is None:
            raise ValueError(f"no class labels in a batch with {', '.join(self.condition.parts()) or 'no condition'}")
        return self.condition.label

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on a device."""
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return replace(self, x=self.x.to(device), condition=self.condition.to(device), extra=extra)


@dataclass(frozen=True)
class Between:
    """A point of the interpolation between two conditions, or between two seeds."""

    first: Any
    second: Any
    weight: float  # 0 is the first, 1 the second


def between(first: Any, second: Any, count: int) -> list[Between]:
    """Return evenly spaced points from one condition (or seed) to another, including both ends.

    Args:
        first: label or seed at the start.
        second: label or seed at the end.
        count: number of points.
    """
    return [Between(first, second, i / max(count - 1, 1)) for i in range(count)]


Label = int | str | Between | None
Seed = int | Between


@dataclass(frozen=True)
class Prediction:
    """The output of a model at one time, in the form that samplers use: estimates of the data and of the noise."""

    x0: Tensor  # (B, C, H, W) or (B, C, T, H, W): estimate of the data
    eps: Tensor  # same shape: estimate of the noise
    variance_mix: Tensor | None = None
    """Same shape, for learned reverse variances only: 0 is log beta_tilde, 1 is log beta (Nichol & Dhariwal 2021,
    eq. 15). It is not a variance yet because beta and beta_tilde depend on the sampler's timestep schedule."""
    guided: int = 0
    """Which kinds of guidance were applied, 0 for none. The trajectory is not smooth where one begins or ends."""


@dataclass(frozen=True)
class Step:
    """The state of a sampler after one step."""

    i: int  # number of the step, from 0
    t: float  # time of `x`; 0 after the last step
    x: Tensor  # (B, C, H, W) or (B, C, T, H, W): the sample at time t
    x0: Tensor  # same shape: the estimate of the data that the step used


class Trace:
    """Records intermediate values and auxiliary losses of a forward pass, for training aids.

    Args:
        taps: names of the values to record: "blocks.3" is the output of the fourth block.
        kept: positions (B, K) of the tokens that pass through the middle blocks; None is all tokens.
        noise: standard normal values (B, `Backbone.gates`) for random decisions of the network; None is no randomness.
    """

    def __init__(self, taps: Sequence[str] = (), kept: Tensor | None = None, noise: Tensor | None = None) -> None:
        self.wanted = frozenset(taps)
        self.kept = kept
        self.noise = noise
        self.taps: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}

    def tap(self, name: str, value: Tensor) -> None:
        """Record a value if its name is one of `taps`."""
        if name in self.wanted:
            self.taps[name] = value

    def add(self, name: str, value: Tensor) -> None:
        """Add a value to a recorded sum, such as the compute of all blocks, if its name is one of `taps`."""
        if name in self.wanted:
            self.taps[name] = self.taps[name] + value if name in self.taps else value

    def loss(self, name: str, value: Tensor) -> None:
        """Add a value (B,) to an auxiliary loss of the network, such as the load balance of a router."""
        self.losses[name] = self.losses[name] + value if name in self.losses else value


Denoise = Callable[[Tensor, Tensor, Tensor], Prediction]
"""(x_t, t, s) -> Prediction, with the condition and guidance already applied. s is the next time of the sampler: flow
maps (shortcut models, MeanFlow) need it, other models ignore it."""

Noise = Callable[[Tensor], Tensor]
"""Gaussian noise of the shape of a tensor, like `torch.randn_like` with one generator per image."""
