"""The contract of a feature network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Extracted:
    """Features of a batch of images, on the CPU."""

    features: Tensor  # (B, D) float32
    spatial: Tensor | None = None  # (B, S) float32, features with their position in the image
    probabilities: Tensor | None = None  # (B, K) float32, class probabilities


class Features(ABC):
    """A fixed network in whose features distances are measured."""

    name: str  # part of the names of distances: fd_NAME
    weights: str  # hash of the weights: the first 16 digits of their SHA-256
    dimension: int  # D
    classes: list[str] | None = None  # class names of its probabilities; None if they belong to no data set
    channels: int | None = None  # required number, 1 or 3; None accepts gray and RGB images
    size: tuple[int, int] | None = None  # required (height, width); None resizes images

    clips: bool = False  # whether it takes clips; the frames of clips are images for all other networks
    measures_motion: bool = False  # whether its features are those of `MOTION` in `ditlab.evaluation.metrics.motion`
    resize: str = ""  # how clips are resized, for the protocol

    @abstractmethod
    def __call__(self, images: Tensor) -> Extracted:
        """Features of uint8 images (B, C, H, W) or clips (B, C, T, H, W), gray or RGB.

        Of other images they are the shown channels.
        """

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return torch.device("cpu")
