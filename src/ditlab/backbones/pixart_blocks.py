"""The layers of PixArt-alpha. In shapes, B is the batch, N image tokens, L text tokens and D width."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.layers import FREQUENCIES, Attention, LinearGELU, Mlp, attend, modulate, norm, sinusoids
from ditlab.backbones.text import Context, TextShape


class Given(NamedTuple):
    """What every block receives besides the image tokens."""

    modulation: Tensor  # (B, 6, D), shift, scale and gate of attention, then of the MLP
    text: Context


class CaptionProjection(nn.Module):
    """Two layers from the states of a text encoder (B, L, E) to the width of the network."""

    def __init__(self, shape: TextShape, width: int, null_caption: bool) -> None:
        super().__init__()
        self.y_proj = Projection(shape.width, width)
        null = torch.zeros(shape.length, shape.width) if null_caption else None
        self.register_buffer("y_embedding", null)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.y_proj(states)  # (B, L, D)
        return out


class Projection(nn.Module):
    """E -> D -> D with tanh-GELU."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = LinearGELU(inner, width, "tanh"), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class SizeEmbedder(nn.Module):
    """Embeds numbers (B, K) as (B, K D): sinusoids, then a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sides: Tensor) -> Tensor:
        waves = sinusoids(sides.flatten(), FREQUENCIES).to(next(self.mlp.parameters()).dtype)
        return self.mlp(waves).view(sides.shape[0], -1)


class TextAttention(nn.Module):
    """Multi-head attention from image tokens (B, N, D) to text tokens (B, L, D), some of which may not count."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Context) -> Tensor:
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv_linear(text.tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, mask=text.keys).transpose(1, 2).flatten(2))  # (B, N, D)


class PixArtBlock(nn.Module):
    """Self-attention and MLP with shift, scale and gate, and between them cross-attention to the text without them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, affine=False), norm(width, affine=False)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.cross_attn = TextAttention(width, heads)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, given: Given, where: Tensor | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.scale_shift_table + given.modulation).unbind(1)
        x = torch.addcmul(x, gate_a[:, None], self.attn(modulate(self.norm1(x), shift_a, scale_a), where))
        x = x + self.cross_attn(x, given.text)
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


class FinalLayer(nn.Module):
    """Layer norm with shift and scale, and the projection to the pixels of a patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = norm(width, affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + c[:, None]).unbind(1)  # (B, D) each
        return self.linear(modulate(self.norm_final(x), shift, scale))
