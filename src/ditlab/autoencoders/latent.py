"""Base of autoencoders with a Gaussian posterior; only this file uses shift and scale.

x0 = (z - shift) scale, with one number for all channels or one for each channel.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.errors import InputError
from ditlab.core.types import Noise

SLICE = 2**22  # pixels that pass through the network at a time: 16 images of 512x512


class Latent(Autoencoder):
    """Images <-> latents at 1/stride of their side."""

    picture_channels: int

    def __init__(
        self,
        picture_channels: int,
        latent_channels: int,
        stride: int,
        shift: float | Sequence[float],
        scale: float | Sequence[float],
    ) -> None:
        super().__init__()
        self.picture_channels, self.latent_channels, self.stride = picture_channels, latent_channels, stride
        self.config = {"shift": plain(shift), "scale": plain(scale)}

    @abstractmethod
    def moments(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in -1..1 -> mean and log-variance of z (B, 2 c, h, w)."""

    @abstractmethod
    def pictures(self, z: Tensor) -> Tensor:
        """z (B, c, h, w) -> images (B, C, H, W), about in -1..1."""

    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        *frames, height, width = size
        if height % self.stride or width % self.stride:
            raise InputError(
                f"images of {height}x{width} with an autoencoder of stride {self.stride}; "
                f"give sides that are multiples of {self.stride}"
            )
        assert self.latent_channels is not None
        return self.latent_channels, (*frames, height // self.stride, width // self.stride)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, 2 c, h, w): mean and log-variance of the posterior. Gray is taken as RGB."""
        if images.shape[1] not in (1, self.picture_channels):
            raise InputError(f"images with {images.shape[1]} channels; this autoencoder takes {self.picture_channels}")
        images = images.expand(-1, self.picture_channels, *images.shape[2:])
        return torch.cat([self.moments(part.to(self._dtype) / 127.5 - 1).float() for part in slices(images, 1)])

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self.normalised(mean + (log_variance / 2).exp() * noise(mean))

    def normalised(self, z: Tensor) -> Tensor:
        """The autoencoder's latents z (B, c, h, w) -> x0, of about unit variance."""
        return (z - self._constant("shift", z)) * self._constant("scale", z)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.cat([self.decode_whole(part) for part in slices(x0, self.stride**2)])

    def decode_whole(self, x0: Tensor) -> Tensor:
        """`decode` with the whole batch in memory."""
        z = x0.to(self._dtype)
        z = z / self._constant("scale", z) + self._constant("shift", z)
        return to_uint8(self.pictures(z))

    def check_tile(self, side: int) -> None:
        """Reject sides of tiles that the stride does not divide."""
        if side < 2 * self.stride or side % self.stride:
            raise InputError(f"tiles of {side} pixels; give a multiple of {self.stride}, at least {2 * self.stride}")

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _constant(self, name: str, like: Tensor) -> Tensor:
        return torch.as_tensor(self.config[name], dtype=like.dtype, device=like.device).reshape(
            -1, *[1] * (like.ndim - 2)
        )


def to_uint8(pictures: Tensor) -> Tensor:
    """Images in -1..1 -> 0..255."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).byte()


def slices(batch: Tensor, pixels_each: int) -> Iterator[Tensor]:
    """The batch (B, C, ...) in parts of at most `SLICE` pixels, so that memory does not grow with the batch."""
    pixels = prod(batch.shape[2:]) * pixels_each
    return iter(torch.split(batch, max(1, SLICE // pixels)))


def plain(value: float | Sequence[float]) -> float | list[float]:
    """A number or a list of numbers, as JSON holds them."""
    return [float(v) for v in value] if isinstance(value, Sequence) else float(value)
