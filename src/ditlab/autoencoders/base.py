"""The contract of an autoencoder, which owns every constant of its latents (scale, shift, stride, channels)."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ditlab.core.types import Noise


class Autoencoder(nn.Module, ABC):
    """Images (B, C, H, W), or videos (B, C, T, H, W), <-> latents of about unit variance."""

    config: dict[str, Any]
    """`kind` and the arguments that build it again."""
    latent_channels: int | None = None
    """Channels of its latents; None is the number of channels of the images."""
    picture_channels: int | None = None
    """Channels of its images; None is the number of channels of the latents."""
    stride: int = 1
    """Pixels along the height and width of one place of the latent."""

    @abstractmethod
    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Channels and size of the latents of images or videos with these channels and size.

        Raises:
            InputError: a size that this autoencoder cannot encode.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) -> posterior moments, which are what a latent cache holds."""

    @abstractmethod
    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        """Moments -> a sample x0 of the posterior (B, c, h, w), float32."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, c, h, w) -> uint8 images (B, C, H, W)."""

    def tile(self, side: int) -> None:
        """Work on tiles of `side` pixels from now on, for images that do not fit into memory whole."""
