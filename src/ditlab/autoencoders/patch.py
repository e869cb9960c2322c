"""A small autoencoder that is trained in minutes: principal components of patches plus a convolutional network.

A patch of stride x stride pixels becomes one position of the latent. The linear part is initialized with the principal
components, the best linear code, and the network with zero output, so that training starts from the best linear code.
All layers work at the resolution of the latent; the receptive field is `Body.reach` positions on each side.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.autoencoders.latent import Latent
from ditlab.core.errors import InputError
from ditlab.core.values import network_scale

LOG_VARIANCE = -6.0  # log-variance of the posterior before training; the latents have unit variance


class Patch(Latent):
    """A small autoencoder: images to latents of 1/stride of their side, and back.

    Args:
        picture_channels: channels of the images.
        latent_channels: channels of the latents.
        stride: side of a patch in pixels.
        width: channels of the network.
        depth: number of residual blocks of the encoder, and of the decoder.
        shift, scale: x0 = (z - shift) scale; each a number or one number per channel.
    """

    any_values = True

    def __init__(
        self,
        picture_channels: int,
        latent_channels: int,
        stride: int,
        width: int,
        depth: int,
        shift: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(picture_channels, latent_channels, stride, shift, scale)
        values = picture_channels * stride**2
        if min(picture_channels, stride, width, depth) < 1 or not 1 <= latent_channels <= values:
            raise InputError(
                f"an autoencoder of stride {stride}, {latent_channels} latent channels, width {width} and depth "
                f"{depth}; give 1 or more of each, and at most {values} latent channels"
            )
        self.analysis, self.synthesis = nn.Conv2d(values, latent_channels, 1), nn.Conv2d(latent_channels, values, 1)
        self.encoder = Body(values, 2 * latent_channels, width, depth)
        self.decoder = Body(latent_channels, values, width, depth)
        with torch.no_grad():
            self.encoder.head.get_parameter("bias")[latent_channels:] = LOG_VARIANCE
        self.config = {
            "kind": "patch",
            "picture_channels": picture_channels,
            "latent_channels": latent_channels,
            "stride": stride,
            "width": width,
            "depth": depth,
            **self.config,
        }
        self.tiles = 0  # side of a tile in positions of the latent; 0 disables tiles

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Set the linear part to the principal components of images (B, C, H, W)."""
        x = network_scale(images.to(self.analysis.weight.device)).to(self.analysis.weight)
        patches = F.pixel_unshuffle(x, self.stride).movedim(1, -1).flatten(0, 2)
        patches = patches.cpu().double()  # some devices have no float64
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
        order = torch.arange(len(variances)).flip(0)[: self.config["latent_channels"]]  # largest first
        spread, directions = variances[order].clamp(min=1e-8).sqrt(), directions[:, order]
        for parameter, value in (
            (self.analysis.weight, (directions / spread).T[:, :, None, None]),
            (self.analysis.get_parameter("bias"), -mean @ (directions / spread)),
            (self.synthesis.weight, (directions * spread)[:, :, None, None]),
            (self.synthesis.get_parameter("bias"), mean),
        ):
            parameter.copy_(value.to(parameter.dtype))

    def moments(self, x: Tensor) -> Tensor:
        return self._tiled(self._moments, F.pixel_unshuffle(x, self.stride))

    def _moments(self, patches: Tensor) -> Tensor:
        mean, log_variance = self.encoder(patches).chunk(2, dim=1)
        return torch.cat([self.analysis(patches) + mean, log_variance.clamp(-30, 20)], dim=1)

    def pictures(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self._tiled(lambda z: self.synthesis(z) + self.decoder(z), z), self.stride)

    def tile(self, side: int) -> None:
        """Process images in tiles of `side` pixels from now on, for images that do not fit into memory.

        The result is the same as without tiles, because each tile includes the receptive field of its positions.
        """
        self.check_tile(side)
        self.tiles = side // self.stride

    def _tiled(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if not self.tiles or max(height, width) <= self.tiles:
            return run(x)
        reach = self.encoder.reach
        rows = []
        for top in range(0, height, self.tiles):
            row = []
            for left in range(0, width, self.tiles):
                y, x0 = max(top - reach, 0), max(left - reach, 0)
                part = run(x[..., y : top + self.tiles + reach, x0 : left + self.tiles + reach])
                row.append(part[..., top - y :, left - x0 :][..., : self.tiles, : self.tiles])
            rows.append(torch.cat(row, dim=-1))
        return torch.cat(rows, dim=-2)


class Body(nn.Module):
    """A residual convolutional network whose output is zero at initialization."""

    def __init__(self, channels: int, out: int, width: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Conv2d(width, out, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.reach = 2 * depth + 2  # radius of the receptive field

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)))
        return out


class Block(nn.Module):
    """Layer norm over channels and two convolutions; the identity at initialization.

    Norms over positions are not used, because they would remove the mean color of the image.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return x + self.conv2(F.silu(self.conv1(h)))
