"""Layers that backbones share. B images, N tokens, D width, p patch, h x w tokens.

Attribute names follow the official DiT checkpoints (`qkv`, `proj`, `fc1`, ...), so that state dicts need no map.
"""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.positions import rotated

FREQUENCIES = 256  # of the timestep's sinusoids, half cosines and half sines
LONGEST = 1024  # tokens whose table of weights is kept for the backward pass


def precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32: what half-precision values are computed in where they should be rounded only once."""
    return torch.promote_types(dtype, torch.float32)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, D) scaled and shifted by the condition's (B, D)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def norm(width: int, affine: bool, rms: bool = False) -> nn.Module:
    """Layer norm over the width, or RMS norm; without affine weights where the condition supplies them."""
    return (RMSNorm if rms else nn.LayerNorm)(width, eps=1e-6, elementwise_affine=affine)


class RMSNorm(nn.RMSNorm):
    """RMS norm (Zhang & Sennrich 2019) in the precision of its input, the only case for which PyTorch has a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to q, k, v.

    On request q and k are RMS-normalized, and rotated by `rotation` (2, N, D / heads), see `rotations`.
    """

    def __init__(
        self, width: int, heads: int, qk_norm: bool = False, qkv_bias: bool = True, rotation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.rotation: Tensor | None
        self.register_buffer("rotation", rotation, persistent=False)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        head = width // heads
        self.q_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D); `where` (B, N) gives their places if some of the image's tokens are missing."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotation is not None:
            turn = self.rotation if where is None else self.rotation[:, where][:, :, None]  # (2, [B, 1,] N, D / heads)
            q, k = rotated(q, turn.to(q.dtype)), rotated(k, turn.to(k.dtype))
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))  # (B, N, D)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attention of queries (B, heads, N, d) to keys and values (B, heads, M, d): (B, heads, N, d).

    The weights are the softmax of the products times `scale`, which is 1 / sqrt(d) by default.
    """
    slow = q.device.type == "cpu" and q.dtype is torch.bfloat16 and k.shape[2] <= LONGEST
    if slow and q.requires_grad and torch.is_grad_enabled():
        # The fused kernel's backward pass takes two to seven times as long as plain products, see docs/benchmarks.md.
        weights = torch.softmax(q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(2, 3), dim=-1)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens (B, N, D) to a condition sequence (B, M, D)."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        head = width // heads
        self.q_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2))  # (B, N, D)


class Mlp(nn.Module):
    """D -> 4D -> D with GELU; DiT has its tanh form, U-ViT the exact one ("none")."""

    def __init__(self, width: int, ratio: int = 4, approximate: str = "tanh") -> None:
        super().__init__()
        self.fc1 = LinearGELU(width, ratio * width, approximate)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class LinearGELU(nn.Linear):
    """A linear layer and GELU, which `ditlab.inference.optimize.packing` computes in one pass."""

    def __init__(self, width: int, out: int, approximate: str) -> None:
        super().__init__(width, out)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.approximate == "tanh" and torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            # The same function: (1 + tanh u) / 2 = sigmoid 2u. Compiled for a CPU, exp takes 0.4 of the time of tanh.
            return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))
        return F.gelu(x, approximate=self.approximate)


class SwiGLU(nn.Module):
    """D -> two of 8/3 D, one the gate of the other -> D, with about the weights of `Mlp` (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = -(-8 * width // (3 * 32)) * 32
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class PatchEmbed(nn.Module):
    """Cut the image into p x p patches and project each to a token; rows first."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous: otherwise sums would keep this memory layout, and all blocks would work on columns of channels.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # (B, N, D)


def unpatchify(x: Tensor, h: int, w: int, patch: int) -> Tensor:
    """Tokens (B, h w, p p C), channels fastest -> image (B, C, h p, w p)."""
    x = torch.unflatten(torch.unflatten(x, 2, (patch, patch, -1)), 1, (h, w))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sinusoids(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """[cos | sin] of the timestep (B,) at width / 2 frequencies: (B, width), float32.

    Frequency i of n is 10000^(-i / (n - shift)); DiT has shift 0, diffusers computes with shift 1.
    """
    # Computed, not stored: a half-precision copy of the frequencies would blur the timestep.
    steps = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(steps * (-math.log(10000) / (width // 2 - shift)))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedder(nn.Module):
    """Sinusoids of the timestep, then a two-layer MLP."""

    def __init__(self, width: int, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        waves = sinusoids(t, FREQUENCIES, self.shift)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))  # (B, D)


def last_linear(modulation: nn.Module) -> nn.Linear:
    """The layer after the activation; low-rank updates may wrap it, and have its sizes too."""
    *_, layer = modulation.children()
    return cast(nn.Linear, layer)


class LabelEmbedder(nn.Module):
    """Class-embedding table: one row for each class, and a last one for the null class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)  # (B, D)
