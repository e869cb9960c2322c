"""A small text tower with the structure of a language model: what it computes for the image are its keys and values.

In shapes, B is the batch, L text tokens, D width, d width of a head.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.layers import RMSNorm, SwiGLU
from ditlab.backbones.positions import rotated


class TowerSizes(NamedTuple):
    """The sizes of a text tower."""

    width: int
    heads: int
    kv_heads: int
    head_width: int
    depth: int
    words: int  # number of words; 0 for states
    states: int  # width of the states of a text encoder; 0 for numbers of words


class TextTower(nn.Module):
    """Causal layers with grouped heads and rotary positions; they do not see the image or the timestep."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.head_width = sizes.head_width
        self.embed: nn.Module
        if sizes.words:
            self.embed = nn.Embedding(sizes.words, sizes.width)
        else:
            self.embed = nn.Linear(sizes.states, sizes.width)
        self.layers = nn.ModuleList([TowerLayer(sizes, last=i == sizes.depth - 1) for i in range(sizes.depth)])

    def initialize(self) -> None:
        """Set initial weights: words N(0, 0.5), which a short training reads sooner than N(0, 0.02)."""
        if isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read numbers of words (B, L) or states (B, L, E); padding must come last.

        Returns:
            Keys, with their positions, and values of all layers: (B, layers, L, kv_heads, d) each.
        """
        x = self.embed(tokens)
        table = positions(x.shape[1], self.head_width, x.device).to(x.dtype)
        keys, values = [], []
        for layer in self.layers:
            x, k, v = layer(x, table)
            keys.append(k)
            values.append(v)
        return torch.stack(keys, 1).transpose(2, 3), torch.stack(values, 1).transpose(2, 3)


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Compute 1-D rotary positions as cosines and sines (2, L, d), with neighboring channels as pairs."""
    frequencies = 10000 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = (torch.arange(length, device=device)[:, None] * frequencies).repeat_interleave(2, dim=1)
    return torch.stack([angles.cos(), angles.sin()])


class TowerLayer(nn.Module):
    """Causal attention and a gated MLP; of the last layer only keys and values are needed."""

    def __init__(self, sizes: TowerSizes, last: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.last = sizes.heads, sizes.kv_heads, last
        self.norm1 = RMSNorm(sizes.width, eps=1e-6)
        self.kv = nn.Linear(sizes.width, 2 * sizes.kv_heads * sizes.head_width, bias=False)
        self.k_norm = RMSNorm(sizes.head_width, eps=1e-6)
        if last:
            return
        self.q = nn.Linear(sizes.width, sizes.heads * sizes.head_width, bias=False)
        self.q_norm = RMSNorm(sizes.head_width, eps=1e-6)
        self.proj = nn.Linear(sizes.heads * sizes.head_width, sizes.width, bias=False)
        self.norm2, self.mlp = RMSNorm(sizes.width, eps=1e-6), SwiGLU(sizes.width)

    def forward(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, L, D), and keys and values (B, kv_heads, L, d)."""
        y = self.norm1(x)
        k, v = self.kv(y).unflatten(-1, (2, self.kv_heads, -1)).permute(2, 0, 3, 1, 4)
        k = rotated(self.k_norm(k), table)
        if self.last:
            return x, k, v
        q = rotated(self.q_norm(self.q(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)), table)
        groups = self.heads // self.kv_heads
        keys, values = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        out = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), k, v
