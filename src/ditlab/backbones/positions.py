"""Positions of tokens on a grid: fixed sinusoids, and two published forms of rotary positions (Su et al. 2021).

The two rotary forms differ in the order of the channels and in the frequencies, so that neither can replace the other
in a trained model. h x w is the grid, D the width.
"""

import torch
from torch import Tensor


def rotations(h: int, w: int, width: int, more: int = 0) -> Tensor:
    """Rotary positions of h w tokens in two dimensions, as cosines and sines (2, h w + more, width) (Su et al. 2021).

    Half of the pairs of channels turn with the column, half with the row; `more` tokens at the end do not turn.
    """
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    angles = torch.cat([places.flatten()[:, None] * frequencies for places in (columns, rows)], dim=1)
    angles = torch.cat([angles, angles.new_zeros(more, width // 2)]).repeat_interleave(2, dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair of neighboring channels of x (..., N, D) turned by its angle."""
    across = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * turn[0] + across * turn[1]


def sincos_positions(h: int, w: int, width: int) -> Tensor:
    """Fixed 2-D positions (1, h w, D): the first half encodes the column, the second the row, each [sin | cos]."""
    frequencies = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(position: Tensor) -> Tensor:
        angles = position.flatten()[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    return torch.cat([encode(columns), encode(rows)], dim=1).float()[None]


def pair_rotations(h: int, w: int, d: int, device: torch.device) -> Tensor:
    """RoPE2D: cosine and sine (h, w, 1, d / 2, 2), for each pair of neighboring channels.

    In turns, a pair is turned by its column and by its row, at d / 4 frequencies.
    """
    frequencies = 10000 ** (-torch.arange(0, d, 4, device=device) / d)
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    places = torch.stack([columns, rows], dim=-1)[:, :, None, None]  # (h, w, 1, 1, 2)
    angles = (places * frequencies[:, None]).flatten(3)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotated_pairs(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of channels of (B, h, w, heads, d) by the angles of its place; at least float32."""
    pairs = torch.unflatten(x.to(torch.promote_types(x.dtype, torch.float32)), -1, (-1, 2))
    if torch.compiler.is_compiling():  # a compiler fuses this; other runtimes know no complex numbers
        (a, b), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)
