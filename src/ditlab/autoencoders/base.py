"""The contract of an autoencoder; it owns every constant of its latents (scale, shift, stride, channels)."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ditlab.core.types import Noise


class Autoencoder(nn.Module, ABC):
    """Pictures <-> latents of about unit variance."""

    config: dict[str, Any]
    """`kind` and the arguments that build it again."""
    latent_channels: int | None = None
    """Channels of its latents; None: as many as the pictures have."""
    picture_channels: int | None = None
    """Channels of its pictures; None: as many as the latents have."""
    stride: int = 1
    """Pixels along each side of a latent's place."""

    @abstractmethod
    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Channels and (height, width) of the latents of pictures with these channels and size."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 pictures (B, C, H, W) -> posterior moments, which is what a cache holds."""

    @abstractmethod
    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        """Moments -> a sample x0 of the posterior (B, c, h, w), float32."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, c, h, w) -> uint8 pictures (B, C, H, W)."""

    def tile(self, side: int) -> None:
        """Work on tiles of `side` pixels from now on, where pictures are too large for memory."""
