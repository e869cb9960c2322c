"""The interface of autoencoders, which define the scale, shift, stride and channels of their latents."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.types import Noise
from ditlab.core.units import counted
from ditlab.core.values import PixelValues


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
    any_values: bool = False
    """Whether images may be other numbers than 8 bits: `encode` then takes float32 images in the scale of the network,
    and `decode_scaled` returns them."""

    @abstractmethod
    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Return channels and size of the latents of images or videos with these channels and size.

        Raises:
            InputError: the autoencoder cannot encode this size.
        """

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) as the moments of their posterior, which a latent cache stores.

        Images are uint8, or float32 in the scale of the network (-1..1) if `any_values` is true.
        """

    @abstractmethod
    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        """Sample latents x0 (B, c, h, w), float32, from the posterior with these moments."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents x0 (B, c, h, w) to uint8 images (B, C, H, W)."""

    def decode_scaled(self, x0: Tensor) -> Tensor:
        """Decode latents x0 (B, c, h, w) to float32 images (B, C, H, W) in the scale of the network, without rounding.

        Autoencoders with `any_values` override this.
        """
        raise InputError(f"an autoencoder of the kind {self.config['kind']} decodes to 8 bits only")

    def decode_as(self, x0: Tensor, values: PixelValues) -> Tensor:
        """Decode latents x0 (B, c, h, w) to images as a data set with these values holds them: uint8, or float32."""
        return self.decode(x0) if values.eight_bits else self.decode_scaled(x0)

    def decode_clips(self, x0: Tensor, values: PixelValues, most: int) -> Tensor:
        """Decode latents (B, c, T, h, w) to clips (B, C, T, H, W), with frames as separate images.

        Args:
            x0: the latents.
            values: the type and the range of the frames.
            most: frames of each clip that are decoded at a time, because each needs memory.
        """
        parts = []
        for part in torch.split(x0, most, dim=2):
            frames = self.decode_as(part.transpose(1, 2).flatten(0, 1), values)
            parts.append(frames.reshape(len(x0), part.shape[2], *frames.shape[1:]).transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def check_images(self, channels: int, values: PixelValues) -> None:
        """Check that this autoencoder can encode images with these channels and values.

        Raises:
            InputError: it cannot.
        """
        fits = self.picture_channels in (None, channels) or channels == 1
        if not fits or not (values.eight_bits or self.any_values):
            numbers = "any numbers" if self.any_values else "8 bits"
            raise InputError(
                f"images with {counted(channels, 'channel')} of {values.summary()}; this autoencoder encodes "
                f"{self.picture_channels or 'any'} channels of {numbers}; train one on these images, or use pixels"
            )

    def tile(self, side: int) -> None:
        """Process images in tiles of `side` pixels from now on, for images that do not fit into memory."""
