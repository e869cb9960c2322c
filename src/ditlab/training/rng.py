"""Random values of a run as functions of (seed, images seen), which do not depend on the number of processes.

The noise of an image depends only on the position of the image in the run. Philox (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011) computes the values at any position directly.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditlab.core.types import Noise

EPS, POSTERIOR, ROUTE, CAPTION, GATES, PAIRS, RENOISED = range(7)
"""Streams of noise; parts from outside the package use numbers from 16."""


@dataclass(frozen=True)
class RunRandomness:
    """All random values of a run, which its seed determines."""

    seed: int
    several_sizes: bool = False  # whether images have several sizes, so that their values have streams of their own

    def normal(self, stream: int, first: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal values for B consecutive images of the run, float32 on the CPU.

        Args:
            stream: number of the purpose, such as `EPS`; streams are independent.
            first: position in the run of the first image, counted from 0.
            shape: shape of the result, (B, ...).
        """
        count, size = shape[0], math.prod(shape[1:])
        blocks = -(-size // 8)  # a block has four 64-bit words, each of which becomes two normal values
        stream += blocks << 32 if self.several_sizes else 0  # positions of images of other sizes would overlap
        bits = np.random.Philox(key=np.array([self.seed, stream], dtype=np.uint64)).advance(first * blocks)
        words = torch.from_numpy(bits.random_raw(count * blocks * 4).view(np.int32)).view(count, 2, blocks * 4)
        # Box and Muller (1958). The first half of the words gives radii, the other half angles.
        radius = (((words[:, 0] & 0x7FFFFFFF).float() + 0.5) * 2**-31).log_().mul_(-2).clamp_(min=0).sqrt_()
        angle = words[:, 1].float() * (math.pi * 2**-31)
        values = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)  # (B, 8 blocks)
        return values[:, :size].reshape(shape)

    def of_batch(self, seen: int) -> torch.Generator:
        """A generator for values of a whole batch, such as stratified times and dropped labels.

        Args:
            seen: number of images that the run saw before the batch.
        """
        return torch.Generator().manual_seed((self.seed * 1_000_000_007 + seen) % 2**63)


@dataclass
class Randomness:
    """The random values of a part of a batch, which one process computes at a time."""

    run: RunRandomness
    seen: int  # images that the run saw before the batch
    first: int  # position in the batch of the first image of this part
    count: int  # images in this part
    batch: int  # images in the batch
    times: Tensor | None = None  # (count,) float64: the sampled times, which an objective sets for the log

    def of_batch(self) -> torch.Generator:
        """A generator that is the same in all processes, for values that concern the whole batch."""
        return self.run.of_batch(self.seen)

    def part(self, values: Tensor) -> Tensor:
        """The values (count, ...) of this part, from the values (batch, ...) of the batch."""
        return values[self.first : self.first + self.count]

    def normal(self, stream: int, *shape: int) -> Tensor:
        """Standard normal values (count, *shape) float32 on the CPU."""
        return self.run.normal(stream, self.seen + self.first, (self.count, *shape))

    def noise(self, stream: int) -> Noise:
        """The same values as a function of a tensor (count, ...), which determines shape, precision and device."""
        return lambda like: self.normal(stream, *like.shape[1:]).to(like)
