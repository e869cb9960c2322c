"""The randomness of a run, as functions of (seed, images seen): the same for any number of processes.

The noise of an image depends on its place in the run alone, so any number of processes use the values that one process
alone would. Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) starts at any place without
the values before it.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditlab.core.types import Noise

EPS, POSTERIOR, ROUTE = 0, 1, 2  # streams of noise; parts from outside the package use numbers from 16


@dataclass(frozen=True)
class Chance:
    """All randomness of a run."""

    seed: int

    def normal(self, stream: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values for images `first` and on of the run, float32 on the CPU.

        Args:
            stream: what they are for; streams are independent.
            first: place in the run of the first image, counted from 0.
            shape: (B, ...).
        """
        count, each = shape[0], math.prod(shape[1:])
        blocks = -(-each // 8)  # of four 64-bit words, each of which becomes two normal values
        bits = np.random.Philox(key=np.array([self.seed, stream], dtype=np.uint64)).advance(first * blocks)
        words = torch.from_numpy(bits.random_raw(count * blocks * 4).view(np.int32)).view(count, 2, blocks * 4)
        # Box and Muller (1958). 31 bits make a number above 0 whose logarithm exists, the others an angle.
        radius = (((words[:, 0] & 0x7FFFFFFF).float() + 0.5) * 2**-31).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = words[:, 1].float() * (math.pi * 2**-31)
        values = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)  # (B, 8 blocks)
        return values[:, :each].reshape(shape)

    def of_batch(self, seen: int) -> torch.Generator:
        """A generator for values that concern a whole batch: times, which are spread over it, and dropped labels."""
        return torch.Generator().manual_seed((self.seed * 1_000_000_007 + seen) % 2**63)


@dataclass
class Randomness:
    """The randomness of the images that a process takes at a time from one batch."""

    chance: Chance
    seen: int  # images before the batch
    first: int  # place of the first of these images in the batch
    count: int  # number of these images
    batch: int  # images in the batch
    times: Tensor | None = None  # (count,) float64: an objective sets the times that it sampled, for the log

    def of_batch(self) -> torch.Generator:
        """A generator that is the same in all processes, for values that concern the whole batch."""
        return self.chance.of_batch(self.seen)

    def part(self, values: Tensor) -> Tensor:
        """The values (count, ...) of these images, of those (batch, ...) of the batch."""
        return values[self.first : self.first + self.count]

    def normal(self, stream: int, *shape: int) -> Tensor:
        """Standard normal values (count, *shape) float32 on the CPU."""
        return self.chance.normal(stream, self.seen + self.first, (self.count, *shape))

    def noise(self, stream: int) -> Noise:
        """The same as a function of a tensor, which gives shape, precision and device."""
        return lambda like: self.normal(stream, *like.shape[1:]).to(like)
