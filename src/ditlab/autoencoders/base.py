"""The interface of autoencoders, which define the scale, shift, stride and channels of their latents."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from ditlab.core.types import Noise


class Autoencoder(nn.Module, ABC):
    """Converts images (B, C, H, W) or videos (B, C, T, H, W) to latents of about unit variance, and back."""

    config: dict[str, Any]
    """`kind` and the constructor arguments, from which a saved autoencoder is built again."""
    latent_channels: int | None = None
    """Channels of the latents; None is the number of channels of the images."""
    picture_channels: int | None = None
    """Channels of the images; None is the number of channels of the latents."""
    stride: int = 1
    """Down-sampling factor: side of the image / side of the latent."""

    @abstractmethod
    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Return channels and size of the latents of images or videos with these channels and size.

        Raises:
            InputError: the autoencoder cannot encode this size.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 images (B, C, H, W) as the moments of their posterior, which a latent cache stores."""

    @abstractmethod
    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        """Sample latents x0 (B, c, h, w), float32, from the posterior with these moments."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents x0 (B, c, h, w) to uint8 images (B, C, H, W)."""

    def tile(self, side: int) -> None:
        """Process images in tiles of `side` pixels from now on, for images that do not fit into memory."""
