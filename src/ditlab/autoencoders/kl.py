"""The KL autoencoder of latent diffusion (Rombach et al. 2022): Stable Diffusion's family and one's own.

The network is diffusers' AutoencoderKL (extra `vae`). Shift and scale of the latents are owned here and nowhere else:
x0 = (z - shift) scale, for all channels or for each.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.autoencoders.base import Autoencoder
from ditlab.errors import InputError
from ditlab.types import Noise

SLICE = 2**22  # pixels that pass through the network at a time: 16 pictures of 512x512


class KL(Autoencoder):
    """Pictures <-> latents at 1/stride of their side."""

    def __init__(
        self,
        architecture: dict[str, Any],
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        """`architecture`: what diffusers' AutoencoderKL takes; `shift`, `scale`: a number or one for each channel."""
        super().__init__()
        self.net: nn.Module = autoencoder_class()(**architecture)
        self.latent_channels: int = architecture["latent_channels"]
        self.picture_channels: int = architecture["in_channels"]
        self.stride = 2 ** (len(architecture["block_out_channels"]) - 1)
        self.config = {"kind": "kl", "architecture": architecture, "shift": plain(shift), "scale": plain(scale)}

    def latent_shape(self, channels: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        height, width = size
        if height % self.stride or width % self.stride:
            raise InputError(
                f"pictures of {height}x{width} with an autoencoder of stride {self.stride}; "
                f"give sides that are multiples of {self.stride}"
            )
        return self.latent_channels, (height // self.stride, width // self.stride)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> (B, 2 c, h, w): mean and log-variance of the posterior. Grey is taken as RGB."""
        if images.shape[1] not in (1, self.picture_channels):
            raise InputError(
                f"pictures with {images.shape[1]} channels; this autoencoder takes {self.picture_channels}"
            )
        images = images.expand(-1, self.picture_channels, -1, -1)
        return torch.cat([self._moments(part) for part in slices(images, 1)])

    def _moments(self, images: Tensor) -> Tensor:
        posterior = self.net.encode(images.to(self._dtype) / 127.5 - 1).latent_dist  # type: ignore[operator]
        return torch.cat([posterior.mean, posterior.logvar], dim=1).float()

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        mean, log_variance = moments.float().chunk(2, dim=1)
        return self.normalised(mean + (log_variance / 2).exp() * noise(mean))

    def normalised(self, z: Tensor) -> Tensor:
        """The autoencoder's latents z (B, c, h, w) -> x0, of about unit variance."""
        return (z - self._constant("shift", z)) * self._constant("scale", z)

    def decode(self, x0: Tensor) -> Tensor:
        z = x0.to(self._dtype)
        z = z / self._constant("scale", z) + self._constant("shift", z)
        return torch.cat([self._pictures(part) for part in slices(z, self.stride**2)])

    def _pictures(self, z: Tensor) -> Tensor:
        pictures = self.net.decode(z).sample  # type: ignore[operator]
        return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).byte()

    def tile(self, side: int) -> None:
        """Work on overlapping tiles of `side` pixels from now on, for pictures that do not fit into memory whole."""
        if side < 2 * self.stride or side % self.stride:
            raise InputError(f"tiles of {side} pixels; give a multiple of {self.stride}, at least {2 * self.stride}")
        self.net.enable_tiling()  # type: ignore[operator]
        self.net.tile_sample_min_size = side  # type: ignore[assignment]
        self.net.tile_latent_min_size = side // self.stride

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _constant(self, name: str, like: Tensor) -> Tensor:
        return torch.as_tensor(self.config[name], dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def slices(batch: Tensor, pixels_each: int) -> Iterator[Tensor]:
    """The batch in parts of at most `SLICE` pixels of pictures, so that memory does not grow with the batch."""
    pixels = batch.shape[-2] * batch.shape[-1] * pixels_each
    return iter(torch.split(batch, max(1, SLICE // pixels)))


def plain(value: float | Sequence[float]) -> float | list[float]:
    """A number or a list of numbers, as JSON holds them."""
    return [float(v) for v in value] if isinstance(value, Sequence) else float(value)


def autoencoder_class() -> Any:
    """diffusers' AutoencoderKL, or the line that says how to get it."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise InputError("KL autoencoders need diffusers; pip install 'ditlab[vae]'") from None
    return AutoencoderKL
