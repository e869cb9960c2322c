"""The chance of a run, as functions of (seed, images seen): whoever asks, and for whichever part of a batch.

A picture's noise depends on its place in the run alone, so any number of processes draw what one alone would. Philox
(Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) begins at any place without what came before.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS, POSTERIOR, ROUTE = 0, 1, 2  # streams of noise


@dataclass(frozen=True)
class Chance:
    """All chance of a run."""

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
        """A generator for what is drawn for a whole batch: times, which are spread over it, and dropped labels."""
        return torch.Generator().manual_seed((self.seed * 1_000_000_007 + seen) % 2**63)
