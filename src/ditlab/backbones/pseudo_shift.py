"""Attention in windows with a bridge between them (Wu et al., "Swin DiT: Diffusion Transformer using Pseudo Shifted
Windows", arXiv 2505.13219).

No code is published. This is ditlab's reading of the paper: windows are not shifted; a depth-wise convolution of the
values, which crosses the borders of windows, takes the place of shifted windows and adds what is local. All channels
take part in all blocks; the paper's allocation of channels by depth is left out.

In shapes, B is the batch, N = h w tokens, D the width, d the width of a head, and n the positions in a window.
"""

import torch
from torch import Tensor, nn

from ditlab.backbones.depthwise import depthwise_conv
from ditlab.backbones.layers import Attention, Where, attend
from ditlab.core.errors import InputError

KERNEL = 3  # side of the kernel of the bridge


class PseudoShiftedAttention(Attention):
    """Self-attention in windows of a grid of tokens, plus a convolution of the values; see `Attention`.

    Args:
        width, heads, qk_norm, rotation: as for `Attention`.
        grid: rows and columns of the tokens.
        window: side of a window.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: bool, rotation: Tensor | None, grid: tuple[int, int], window: int
    ) -> None:
        super().__init__(width, heads, qk_norm, rotation=rotation)
        self.grid, self.window = grid, window
        self.bridge = nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        nn.init.zeros_(self.bridge.weight)
        nn.init.zeros_(self.bridge.bias)  # type: ignore[arg-type]

    def mix(self, qkv: Tensor, where: Tensor | Where | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(qkv, where)  # (B, heads, N, d)
        # fmt: off
        q, k, parts = (self.windows(x) for x in (q, k, v))          # (B, heads W, n, d)
        x = self.merged(attend(q, k, parts))                        # (B, N, heads, d)
        local = torch.unflatten(v.mT.flatten(1, 2), 2, self.grid)   # (B, D, h, w)
        local = depthwise_conv(local, self.bridge.weight, self.bridge.bias).flatten(2).mT  # (B, N, D)
        # fmt: on
        return x + torch.unflatten(local, 2, (-1, self.head))

    def windows(self, x: Tensor) -> Tensor:
        """Split tokens (B, heads, N, d) into windows (B, heads W, n, d)."""
        (h, w), side = self.grid, self.window
        x = torch.unflatten(x, 2, (h // side, side, w // side, side))  # (B, heads, rows, side, columns, side, d)
        return x.transpose(3, 4).flatten(4, 5).flatten(1, 3)

    def merged(self, x: Tensor) -> Tensor:
        """Join windows (B, heads W, n, d) to tokens (B, N, heads, d), the inverse of `windows`."""
        (h, w), side = self.grid, self.window
        x = torch.unflatten(torch.unflatten(x, 2, (side, side)), 1, (-1, h // side, w // side))
        return x.transpose(3, 4).flatten(2, 5).transpose(1, 2)


def check_windows(grid: tuple[int, int], window: int, condition: str) -> tuple[tuple[int, int], int]:
    """Check that windows divide a grid of tokens, and that there are no other tokens; returns grid and window.

    Raises:
        InputError: they do not, or there are.
    """
    if window == 0:
        return grid, window
    if window < 2:
        raise InputError(f"window {window}; give 2 or more, or 0 for attention to all tokens")
    if any(side % window for side in grid):
        raise InputError(
            f"window {window} does not divide the grid of {grid[0]}x{grid[1]} patches; choose another window, patch or "
            "size"
        )
    if condition == "in-context":
        raise InputError(
            f"window {window} with condition in-context, whose tokens have no place on the grid; choose adaln-zero, "
            "adaln or cross-attention"
        )
    return grid, window
