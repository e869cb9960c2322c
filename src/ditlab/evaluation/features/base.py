"""What a feature network gives for pictures."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extracted:
    """Of a batch of pictures, on the CPU."""

    features: Tensor  # (B, D) float32
    spatial: Tensor | None = None  # (B, S) float32, features that still know their place in the picture
    probabilities: Tensor | None = None  # (B, K) float32, of classes


class Features(ABC):
    """A fixed network whose features distances are measured in."""

    name: str  # distances are called fd_NAME
    weights: str  # identity of the weights: the first 16 digits of their SHA-256
    dimension: int  # D
    reads: list[str] | None = None  # classes of its probabilities, where they are those of a data set
    channels: int | None = None  # that pictures must have; None takes grey and RGB
    size: tuple[int, int] | None = None  # that pictures must have; None resizes them

    @abstractmethod
    def __call__(self, images: Tensor) -> Extracted:
        """Features of uint8 pictures (B, C, H, W)."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return torch.device("cpu")
