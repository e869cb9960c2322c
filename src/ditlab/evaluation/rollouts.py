"""Relative error of rolled-out predictions of fields, against the baseline that nothing changes."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.trajectories.base import Trajectories
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.rollout import rollout

BATCH = 16  # trajectories that are predicted at a time


@dataclass(frozen=True)
class RolloutError:
    """Relative L2 errors of each step, mean over the trajectories.

    The error of a state is |prediction - truth| / |truth|, where |.| is over all channels and positions, in the scale
    of the network (so that channels count alike if they are standardized).
    """

    trajectories: int
    error: list[float]
    """Of the predictions after 1, 2, ... steps."""
    spread: list[float]
    """Standard error of the mean."""
    persistence: list[float]
    """Of the first state, as a prediction of all others."""

    @classmethod
    def of(cls, truth: Tensor, predicted: Tensor) -> Self:
        """Compute the errors of states (N, T + 1, C, H, W), whose first states are given."""
        error = relative(predicted[:, 1:], truth[:, 1:])
        still = relative(truth[:, :1], truth[:, 1:])
        spread = error.std(0, correction=0) / len(error) ** 0.5
        return cls(len(truth), error.mean(0).tolist(), spread.tolist(), still.mean(0).tolist())

    def lines(self) -> list[str]:
        """The table for the terminal."""
        head = f"relative L2 error over {self.trajectories} trajectories (persistence: the first state is kept)"
        rows = zip(self.error, self.spread, self.persistence, strict=True)
        return [head] + [
            f"  step {i + 1:3}: {error:.4f} ± {spread:.4f}, persistence {still:.4f}"
            for i, (error, spread, still) in enumerate(rows)
        ]

    def as_json(self) -> dict[str, Any]:
        """The errors as plain values."""
        return asdict(self)


def relative(prediction: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 errors (N, T) of states (N, T, C, H, W)."""
    return (prediction - truth).flatten(2).norm(dim=2) / truth.flatten(2).norm(dim=2).clamp(min=1e-12)


def rolled_out(pipe: Pipeline, data: Trajectories, count: int, steps: int | None = None) -> tuple[Tensor, Tensor]:
    """The true and the predicted states of trajectories, (N, T + 1, C, H, W) each, in the scale of the network.

    Args:
        pipe: the model.
        data: the trajectories; the model continues their first states.
        count: largest number of them, from the first.
        steps: states to predict; None is all of the shortest one.

    Raises:
        InputError: the trajectories are shorter, or the classes of the model are others.
    """
    numbers, longest = range(min(count, len(data.lengths))), min(data.lengths) - 1
    if steps is not None and not 1 <= steps <= longest:
        raise InputError(f"{steps} steps of trajectories with {counted(longest + 1, 'state')}; give 1 to {longest}")
    if data.classes and pipe.classes and data.classes != pipe.classes:
        raise InputError(
            f"the data have the classes {', '.join(data.classes)}, but the model has {', '.join(pipe.classes)}; give "
            "data with the same ones"
        )
    steps = steps or longest
    truth = torch.stack([data.states(i, 0, steps + 1) for i in numbers])
    kinds = data.kinds[list(numbers)].tolist() if data.classes and pipe.classes else [None] * len(truth)
    predicted = torch.cat(
        [
            rollout(pipe, truth[first : first + BATCH, 0], steps, kinds[first : first + BATCH])
            for first in range(0, len(truth), BATCH)
        ]
    )
    both = (
        torch.unflatten(pipe.values.normalized(part.flatten(0, 1)), 0, part.shape[:2]) for part in (truth, predicted)
    )
    first, second = both
    return first, second
