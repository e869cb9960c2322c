"""Images between two labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Prediction
from ditlab.diffusion.guidance import Conditional

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


@dataclass(frozen=True)
class Mixed:
    """A denoiser that knows labels between two: `base` + k stands for weights[k] of the way from first[k] to second[k].

    The predictions of both are mixed, which is what the network would say for the product of the two distributions,
    each to the power of its weight (Liu et al., "Compositional Visual Generation", ECCV 2022).
    """

    denoiser: Conditional
    base: int
    first: Tensor  # (K,)
    second: Tensor  # (K,)
    weights: Tensor  # (K,)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Prediction:
        """As any denoiser; pictures between two labels take a row for each."""
        mixed = (y >= self.base).nonzero()[:, 0]
        places = y[mixed] - self.base
        ends = torch.cat([y.index_copy(0, mixed, self.first[places]), self.second[places]])
        both = self.denoiser(torch.cat([x, x[mixed]]), t, ends)

        def mix(values: Tensor) -> Tensor:
            one, other = values[: len(x)], values[len(x) :]
            return one.index_copy(0, mixed, torch.lerp(one[mixed], other, self.weights[places][:, None, None, None]))

        variance = both.variance_mix
        return Prediction(mix(both.x0), mix(both.eps), None if variance is None else mix(variance))

    def null(self, y: Tensor) -> Tensor:
        """The labels that mean "no condition" for this batch."""
        return self.denoiser.null(y)


@dataclass(frozen=True)
class Ends:
    """The labels of a batch, some of which may be between two."""

    y: Tensor  # (B,) what the denoiser is asked for
    every: Tensor  # all that the network may be asked for, but the null label
    mixed: Callable[[Conditional], Conditional]

    @classmethod
    def of(cls, pipe: "Pipeline", names: Sequence[Label]) -> "Ends":
        """Those behind these names."""
        device, between = pipe.net.device, [name for name in names if isinstance(name, Between)]
        if not between:
            y = pipe.labels(names).to(device)
            return cls(y, y, lambda denoiser: denoiser)
        first, second = (
            pipe.labels([getattr(each, end) for each in between]).to(device) for end in ("first", "second")
        )
        weights = torch.tensor([each.weight for each in between], device=device)
        base = pipe.net.classes + 1  # behind the null label
        plain = pipe.labels([None if isinstance(name, Between) else name for name in names]).to(device)
        places = torch.tensor([i for i, name in enumerate(names) if isinstance(name, Between)], device=device)
        y = plain.index_copy(0, places, base + torch.arange(len(between), device=device))
        every = torch.cat([plain, first, second])
        return cls(y, every, lambda denoiser: Mixed(denoiser, base, first, second, weights))


def settled(value: Any) -> Any:
    """A point at the end of its way is the end itself."""
    if not isinstance(value, Between):
        return value
    if not 0 <= value.weight <= 1:
        raise InputError(f"{value.weight} of the way; give 0 to 1")
    if value.weight == 0 or value.first == value.second:
        return value.first
    return value.second if value.weight == 1 else value
