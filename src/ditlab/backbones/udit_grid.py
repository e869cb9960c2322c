"""Operations of U-DiT on grids (B, h, w, D), channels last."""

import torch
from torch import Tensor, nn

from ditlab.backbones.depthwise import depthwise_conv


class Conv(nn.Conv2d):
    """A convolution on grids (B, h, w, D) that keeps height and width."""

    def __init__(self, width: int, out: int, kernel: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(width, out, kernel, padding=kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        x = super().forward(x) if self.groups == 1 else depthwise_conv(x, self.weight, self.bias)
        return x.movedim(1, -1)


def split(x: Tensor) -> Tensor:
    """Split a grid (B, h, w, D) into the sub-grids of even and odd rows and columns (4 B, h / 2, w / 2, D)."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, 2)), 1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, D)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def interleave(x: Tensor) -> Tensor:
    """Join sub-grids to a grid, the inverse of `split`."""
    x = torch.unflatten(x, 0, (-1, 2, 2))  # (B, 2, 2, h / 2, w / 2, D)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


def unshuffle(x: Tensor) -> Tensor:
    """Move blocks of 2 x 2 positions into channels: (B, h, w, D) -> (B, h / 2, w / 2, 4 D), positions fastest."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, 2)), 1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, D)
    return x.permute(0, 1, 3, 5, 2, 4).flatten(3)


def shuffle(x: Tensor) -> Tensor:
    """Move channels into blocks of 2 x 2 positions, the inverse of `unshuffle`."""
    x = torch.unflatten(x, 3, (-1, 2, 2))  # (B, h, w, D / 4, 2, 2)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)


def unit(x: Tensor) -> Tensor:
    """Compute 1 / |x| over the last dimension, the factor that normalizes x."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12).reciprocal()
