"""Positions of tokens on a grid: fixed sinusoids, and two published forms of rotary positions (Su et al. 2021).

The two rotary forms differ in channel order and frequencies, so that a trained model needs the form that it was trained
with. In shapes, h x w is the grid and D the width.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

KEPT = 64  # tables of other sizes that are kept


@lru_cache(KEPT)
def table_of(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    """Return `make(*arguments)` on a device, for a grid that a network was not made for; it is kept for later calls."""
    with torch.inference_mode(False):  # a table that is made for inference could not be used in training
        return make(*arguments).to(device)


def rotations(h: int, w: int, width: int, more: int = 0, *, spacing: float = 1.0, first: float = 0.0) -> Tensor:
    """Compute 2-D rotary positions as cosines and sines (2, h w + more, width) (Su et al. 2021).

    The first half of the channel pairs is rotated by the column, the second half by the row. The last `more` tokens are
    not rotated. Rows and columns begin at `first`, and are `spacing` apart.
    """
    table = torch.empty(2, h * w + more, width // 4 * 4, dtype=torch.float32)  # first, so that `skip_init` can bound it
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64) * spacing + first,
        torch.arange(w, dtype=torch.float64) * spacing + first,
        indexing="ij",
    )
    angles = torch.cat([positions.flatten()[:, None] * frequencies for positions in (columns, rows)], dim=1)
    angles = torch.cat([angles, angles.new_zeros(more, width // 2)]).repeat_interleave(2, dim=1)
    table[0], table[1] = angles.cos(), angles.sin()
    return table


def frame_rotations(frames: int, width: int) -> Tensor:
    """Compute rotary positions of frames as cosines and sines (2, T, width)."""
    table = torch.empty(2, frames, width // 2 * 2, dtype=torch.float32)  # first, so that `skip_init` can bound it
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = (torch.arange(frames, dtype=torch.float64)[:, None] * frequencies).repeat_interleave(2, dim=1)
    table[0], table[1] = angles.cos(), angles.sin()
    return table


def clip_rotations(frames: int, h: int, w: int, width: int, by_frame: int = 0) -> Tensor:
    """Compute 3-D rotary positions as cosines and sines (2, T h w, width).

    `by_frame` channels are rotated by the frame, and half of the others each by the column and the row. By default it
    is about a quarter, as in CogVideoX (Yang et al. 2024) and its successors: 16, 24 and 24 of 64.
    """
    side = (width - by_frame) // 2 if by_frame else 3 * width // 8 // 2 * 2
    axes = [frame_rotations(count, part) for count, part in ((frames, width - 2 * side), (w, side), (h, side))]
    views = [axes[0][:, :, None, None], axes[1][:, None, None], axes[2][:, None, :, None]]
    return torch.cat([view.expand(2, frames, h, w, -1) for view in views], dim=-1).flatten(1, 3)


def axis_rotations(h: int, w: int, axes: tuple[int, int, int]) -> Tensor:
    """Compute rotary positions of Flux as cosines and sines (2, h w, sum of axes).

    The first channels are not rotated (their axis, the frame, is 0), the next ones by the row, and the last by the
    column.
    """
    still, row, column = axes
    rows, columns = frame_rotations(h, row), frame_rotations(w, column)
    fixed = frame_rotations(1, still)[:, :, None].expand(2, h, w, -1)
    parts = [fixed, rows[:, :, None].expand(2, h, w, -1), columns[:, None].expand(2, h, w, -1)]
    return torch.cat(parts, dim=-1).flatten(1, 2)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of neighboring channels of x (..., N, D); table (2, ..., N, D) has cosines and sines."""
    orthogonal = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * table[0] + orthogonal * table[1]


def sincos_positions(h: int, w: int, width: int, spacing: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Compute fixed 2-D positions (1, h w, D): first half column, second half row, each as [sin | cos].

    Neighboring rows and columns differ by `spacing`.
    """
    table = torch.empty(1, h * w, width // 4 * 4, dtype=torch.float32)  # first, so that `skip_init` can bound it
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(position: Tensor) -> Tensor:
        angles = position.flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64) * spacing[0],
        torch.arange(w, dtype=torch.float64) * spacing[1],
        indexing="ij",
    )
    table[0, :, : width // 4 * 2], table[0, :, width // 4 * 2 :] = encode(columns), encode(rows)
    return table


def sincos_frames(frames: int, width: int) -> Tensor:
    """Compute fixed positions of frames (1, T, D), each as [sin | cos]."""
    table = torch.empty(1, frames, width // 2 * 2, dtype=torch.float32)  # first, so that `skip_init` can bound it
    frequencies = 10000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * frequencies
    table[0, :, : width // 2], table[0, :, width // 2 :] = angles.sin(), angles.cos()
    return table


def sincos_table(side: int, width: int, spacing: float = 1.0) -> Tensor:
    """Compute the positions of `sincos_positions` for a square (1, side side, D), `spacing` apart.

    Only one side is computed in float64, because such a table may have 147,456 positions.
    """
    table = torch.empty(side, side, width // 4 * 4, dtype=torch.float32)  # first, so that `skip_init` can bound it
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = (torch.arange(side, dtype=torch.float64) * spacing)[:, None] * frequencies
    values = torch.cat([angles.sin(), angles.cos()], dim=1).float()  # (side, D / 2)
    half = values.shape[1]
    table[..., :half], table[..., half:] = values[None], values[:, None]
    return table.flatten(0, 1)[None]


def pair_rotations(h: int, w: int, d: int, device: torch.device) -> Tensor:
    """Compute RoPE2D of U-DiT: cosine and sine (h, w, 1, d / 2, 2) for each pair of neighboring channels.

    Even pairs are rotated by the column, odd pairs by the row, at d / 4 frequencies.
    """
    frequencies = 10000 ** (-torch.arange(0, d, 4, device=device) / d)
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    positions = torch.stack([columns, rows], dim=-1)[:, :, None, None]  # (h, w, 1, 1, 2)
    angles = (positions * frequencies[:, None]).flatten(3)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotated_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of channels of x (B, h, w, heads, d) by the angle of its position, in at least float32."""
    pairs = torch.unflatten(x.to(torch.promote_types(x.dtype, torch.float32)), -1, (-1, 2))
    if torch.compiler.is_compiling():  # a compiler fuses this, and other runtimes have no complex numbers
        (a, b), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)
