"""The contract of a data set of trajectories, whose items are pairs of consecutive states."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ditlab.core.types import Batch
from ditlab.core.units import counted
from ditlab.data.base import Dataset

NEXT = "next"  # name, in `Batch.extra`, of the states that follow those of `Batch.x`


class Trajectories(Dataset):
    """Pairs of consecutive states of fields (C, H, W): `Batch.x` has the first ones, `Batch.extra["next"]` the others.

    The items of a trajectory of T states are its T - 1 pairs, one trajectory after the other. All states are float32 in
    the scale of the network.
    """

    @property
    def noun(self) -> str:
        return "pair"

    def divide(self, lengths: Sequence[int], labels: Tensor) -> None:
        """Set what follows from the trajectories: the labels of all pairs, and a note about their number.

        Args:
            lengths: number of states of each trajectory.
            labels: class of each trajectory, int64.
        """
        self.lengths, self.kinds = list(lengths), labels
        self.starts = np.cumsum([0, *(length - 1 for length in lengths)])
        self.labels = labels.repeat_interleave(torch.tensor(lengths) - 1)
        states = counted(lengths[0], "state") if len({*lengths}) == 1 else f"{min(lengths)} to {max(lengths)} states"
        what = "trajectory" if len(lengths) == 1 else "trajectories"
        self.reading.notes.append(
            f"pairs of a state and the next one, of {len(lengths):,} {what} of {states}; settings in images count pairs"
        )

    @abstractmethod
    def states(self, trajectory: int, start: int, stop: int) -> Tensor:
        """The states (stop - start, C, H, W) of a trajectory, float32 in the numbers of the data."""

    def fetch(self, indices: Tensor) -> Batch:
        places = [self.place(i) for i in indices.tolist()]
        pairs = torch.stack([self.states(trajectory, first, first + 2) for trajectory, first in places])
        present, following = self.values.normalized(pairs.transpose(0, 1).flatten(0, 1)).chunk(2)
        return Batch(present, self.condition(indices), {NEXT: following}, index=indices)

    def place(self, i: int) -> tuple[int, int]:
        """The trajectory of pair i, and its first state there."""
        trajectory = int(np.searchsorted(self.starts, i, side="right")) - 1
        return trajectory, i - int(self.starts[trajectory])
