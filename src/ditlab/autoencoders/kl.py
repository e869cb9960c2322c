"""The KL autoencoder of latent diffusion and Stable Diffusion (Rombach et al. 2022).

The network is diffusers' AutoencoderKL (extra `vae`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.autoencoders.latent import Latent
from ditlab.core.errors import InputError


class KL(Latent):
    """diffusers' AutoencoderKL: images to latents of 1/stride of their side, and back."""

    def __init__(
        self,
        architecture: dict[str, Any],
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        """Build the network with freshly initialized weights.

        Args:
            architecture: arguments of diffusers' AutoencoderKL.
            shift, scale: x0 = (z - shift) scale; each a number or one number per channel.
        """
        stride = 2 ** (len(architecture["block_out_channels"]) - 1)
        super().__init__(architecture["in_channels"], architecture["latent_channels"], stride, shift, scale)
        self.net: nn.Module = autoencoder_class()(**architecture)
        self.config = {"kind": "kl", "architecture": architecture, **self.config}

    def moments(self, x: Tensor) -> Tensor:
        posterior = self.net.encode(channels_last(x)).latent_dist  # type: ignore[operator]
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    def pictures(self, z: Tensor) -> Tensor:
        images: Tensor = self.net.decode(channels_last(z)).sample  # type: ignore[operator]
        return images

    def tile(self, side: int) -> None:
        """Process images in overlapping tiles of `side` pixels from now on, for images that do not fit into memory.

        Raises:
            InputError: tiles overlap by a quarter, which must be a whole number of latents, or the image has another
                size.
        """
        self.check_tile(side)
        if side % (4 * self.stride):
            raise InputError(f"tiles of {side} pixels; give a multiple of {4 * self.stride} for this autoencoder")
        self.net.enable_tiling()  # type: ignore[operator]
        self.net.tile_sample_min_size = side  # type: ignore[assignment]
        self.net.tile_latent_min_size = side // self.stride  # type: ignore[assignment]


def channels_last(x: Tensor) -> Tensor:
    """Return a tensor in channels-last memory layout, in which convolutions are faster; results keep the layout."""
    return x.to(memory_format=torch.channels_last)


def autoencoder_class() -> Any:
    """Import diffusers' AutoencoderKL.

    Raises:
        InputError: diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise InputError("KL autoencoders need diffusers; pip install 'ditlab[vae]'") from None
    return AutoencoderKL
