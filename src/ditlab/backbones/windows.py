"""Attention in windows of a grid.

In shapes, B is the batch, h x w the grid, D the width, d the width of a head, W the number of windows, and N the number
of positions in a window; channels are the last dimension.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.udit import LARGEST_SCALE
from ditlab.backbones.udit_grid import unit

WALL = -200.0  # added to the logits of positions on different sides of a wall; twice -100 in the published code
HIDDEN = 512  # of the MLP from relative positions to attention biases
LARGEST_BIAS = 16.0


class WindowAttention(nn.Module):
    """Cosine attention in windows of a grid, with a learned bias for relative positions (Liu et al., "Swin Transformer
    V2", CVPR 2022), and without an output projection.

    Args:
        width: channels of a token.
        heads: number of heads.
        window: side of a window.
        shift: number of rows and columns by which the windows are shifted.
        periodic: shifted windows continue at the opposite side of the grid.
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, periodic: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shift, self.periodic = heads, window, shift, periodic
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.positions = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, heads, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        x = windows(torch.roll(x, (-self.shift, -self.shift), dims=(1, 2)), self.window)  # (B, W, N, D)
        count = x.shape[1]
        q, k, v = torch.unflatten(self.qkv(x), -1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp().repeat(count, 1, 1)  # (W heads, 1, 1)
        q, k = (q * (scale * unit(q))).to(v.dtype), (k * unit(k)).to(v.dtype)  # (B, W heads, N, d)
        bias = self.bias(h, w).to(v.dtype).expand(count, -1, -1, -1).flatten(0, 1)  # (W heads, N, N)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = torch.unflatten(x, 1, (count, self.heads)).transpose(2, 3).flatten(3)  # (B, W, N, D)
        return torch.roll(merged(x, h, w), (self.shift, self.shift), dims=(1, 2))

    def bias(self, h: int, w: int) -> Tensor:
        """Compute what is added to the logits: (1 or W, heads, N, N)."""
        side, device = self.window, self.logit_scale.device
        distance = torch.arange(1 - side, side, device=device, dtype=torch.float32) * (8 / (side - 1))
        distance = distance.sign() * torch.log2(distance.abs() + 1) / 3  # log2(8) = 3
        table = torch.stack(torch.meshgrid(distance, distance, indexing="ij"), dim=-1)  # (2 side - 1, 2 side - 1, 2)
        table = self.positions(table.to(self.logit_scale.dtype))  # (..., heads)
        place = torch.arange(side, device=device)
        away = place[:, None] - place + side - 1  # (side, side)
        table = table[away[:, None, :, None], away[None, :, None, :]].flatten(2, 3).flatten(0, 1)  # (N, N, heads)
        bias = LARGEST_BIAS * torch.sigmoid(table.permute(2, 0, 1))
        if self.periodic or not self.shift:
            return bias[None]
        return bias + self.walls(h, w, bias.device)[:, None].to(bias.dtype)

    def walls(self, h: int, w: int, device: torch.device) -> Tensor:
        """Return what is added to logits of shifted windows so that attention does not pass the borders: (W, N, N)."""
        rows, columns = (torch.arange(side, device=device) >= side - self.shift for side in (h, w))
        region = 2 * rows.long()[:, None] + columns.long()  # (h, w): on which side of the borders a position lies
        region = windows(region[None, :, :, None], self.window)[0, :, :, 0]  # (W, N)
        return WALL * (region[:, :, None] != region[:, None]).float()


def windows(x: Tensor, side: int) -> Tensor:
    """Split a grid (B, h, w, D) into windows (B, W, side side, D)."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, side)), 1, (-1, side))  # (B, h / side, side, w / side, side, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merged(x: Tensor, h: int, w: int) -> Tensor:
    """Join windows to a grid, the inverse of `windows`."""
    side = math.isqrt(x.shape[2])
    x = torch.unflatten(torch.unflatten(x, 2, (side, side)), 1, (h // side, w // side))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
