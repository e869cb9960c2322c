"""The base class of autoencoders with a Gaussian posterior.

It alone applies shift and scale: x0 = (z - shift) scale, with one number for all channels or one per channel.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.errors import InputError
from ditlab.core.types import Noise
from ditlab.core.units import counted
from ditlab.core.values import check_finite, network_scale

SLICE = 2**22  # pixels in a call of the network: 16 images of 512x512


class Latent(Autoencoder):
    """Converts images to latents of 1/stride of their side, and back.

    Args:
        picture_channels: channels of the images.
        latent_channels: channels of the latents.
        stride: down-sampling factor.
        shift, scale: x0 = (z - shift) scale; each a number or one number per channel.
    """

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
        """Encode images (B, C, H, W) in -1..1 as mean and log-variance of z (B, 2 c, h, w)."""

    @abstractmethod
    def pictures(self, z: Tensor) -> Tensor:
        """Decode z (B, c, h, w) to images (B, C, H, W), approximately in -1..1."""

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
        """Encode images (B, C, H, W) as mean and log-variance of the posterior (B, 2 c, h, w).

        Videos (B, C, T, H, W) are encoded frame by frame, as (B, 2 c, T, h, w). Gray images are converted to the
        channels of the autoencoder.
        """
        if images.dtype != torch.uint8 and not self.any_values:
            raise InputError(f"images of {images.dtype}; this autoencoder takes 8 bits (torch.uint8)")
        if images.shape[1] not in (1, self.picture_channels):
            raise InputError(
                f"images with {counted(images.shape[1], 'channel')}; this autoencoder takes {self.picture_channels}"
            )
        if images.ndim == 5:
            return frame_by_frame(self.encode, images)
        images = images.expand(-1, self.picture_channels, *images.shape[2:])
        return torch.cat([self.moments(network_scale(part).to(self._dtype)).float() for part in slices(images, 1)])

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self.normalised(mean + (log_variance / 2).exp() * noise(mean))

    def normalised(self, z: Tensor) -> Tensor:
        """Normalize latents z (B, c, h, w) to x0 of about unit variance."""
        return (z - self._constant("shift", z)) * self._constant("scale", z)

    def decode(self, x0: Tensor) -> Tensor:
        if x0.ndim == 5:
            return frame_by_frame(self.decode, x0)
        return torch.cat([to_uint8(self._decoded(part)) for part in slices(x0, self.stride**2)])

    def decode_scaled(self, x0: Tensor) -> Tensor:
        if not self.any_values:
            return super().decode_scaled(x0)
        return torch.cat([self._decoded(part).float() for part in slices(x0, self.stride**2)])

    def _decoded(self, x0: Tensor) -> Tensor:
        """Decode x0 and check that the images are finite."""
        images = self.decode_whole(x0)
        check_finite(
            images,
            lambda i: (
                f"the {self.config['kind']} autoencoder decoded latents to "
                "values that are not finite; use another checkpoint of it, or float32"
            ),
        )
        return images

    def decode_whole(self, x0: Tensor) -> Tensor:
        """Decode x0 to images, approximately in -1..1, in a single call of the network."""
        z = x0.to(self._dtype)
        z = z / self._constant("scale", z) + self._constant("shift", z)
        return self.pictures(z)

    def check_tile(self, side: int) -> None:
        """Check the side of tiles.

        Raises:
            InputError: it is no multiple of the stride, or too small.
        """
        if side < 2 * self.stride or side % self.stride:
            raise InputError(f"tiles of {side} pixels; give a multiple of {self.stride}, at least {2 * self.stride}")

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _constant(self, name: str, like: Tensor) -> Tensor:
        return torch.as_tensor(self.config[name], dtype=like.dtype, device=like.device).reshape(
            -1, *[1] * (like.ndim - 2)
        )


def frame_by_frame(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of images (B, C, ...) to the frames of videos (B, C, T, ...)."""
    frames = function(x.transpose(1, 2).flatten(0, 1))
    return frames.reshape(len(x), x.shape[2], *frames.shape[1:]).transpose(1, 2)


def to_uint8(images: Tensor) -> Tensor:
    """Convert images in -1..1 to uint8."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()


def slices(batch: Tensor, pixels_per_position: int) -> Iterator[Tensor]:
    """Split a batch (B, C, ...) into parts of at most `SLICE` pixels, so that memory does not grow with the batch."""
    pixels = prod(batch.shape[2:]) * pixels_per_position
    return iter(torch.split(batch, max(1, SLICE // pixels)))


def plain(value: float | Sequence[float]) -> float | list[float]:
    """Convert a number or a sequence of numbers to plain values for JSON."""
    return [float(v) for v in value] if isinstance(value, Sequence) else float(value)
