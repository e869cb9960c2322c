"""Layers that backbones share. In shapes, B is the batch, N tokens, D width, p patch and h x w the token grid.

Attributes are named as in the official DiT checkpoints (`qkv`, `proj`, `fc1`, ...), so that keys need no conversion.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.positions import rotated
from ditlab.core.errors import InputError

if TYPE_CHECKING:  # it calls `attend`
    from ditlab.backbones.token_share import TokenShare

FREQUENCIES = 256  # width of the sinusoidal timestep embedding, half cosines and half sines
LONGEST = 1024  # largest number of keys for which attention weights are stored for the backward pass


def check_positive(**sizes: int) -> None:
    """Check that sizes of a network are positive.

    Raises:
        InputError: one is not.
    """
    for what, value in sizes.items():
        if value < 1:
            raise InputError(f"{what} {value}; give 1 or more")


def initialize_linears(net: nn.Module) -> None:
    """Set the weights of all linear layers as published for DiT: Xavier uniform, with biases of zero."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def set_to_zero(modules: Iterable[nn.Module]) -> None:
    """Set all parameters of some modules to zero."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def precise(dtype: torch.dtype) -> torch.dtype:
    """Return a precision of at least float32, for values of half precision that should be rounded only once."""
    return torch.promote_types(dtype, torch.float32)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift x (B, N, D) by the condition's scale and shift (B, D)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def norm(width: int, affine: bool, rms: bool = False) -> nn.Module:
    """Return a layer norm or RMS norm over the width; without affine weights if the condition supplies them."""
    return (RMSNorm if rms else nn.LayerNorm)(width, eps=1e-6, elementwise_affine=affine)


class RMSNorm(nn.RMSNorm):
    """RMS norm (Zhang & Sennrich 2019) in the precision of its input, for which PyTorch has a fast kernel."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class Where(NamedTuple):
    """The places of the tokens that a block receives, on a grid that the network was not made for."""

    rotation: Tensor  # (2, N, D / heads), the rotary positions of this grid
    tokens: Tensor | None = None  # (B, K), the positions of the tokens if some are missing


def present(where: Tensor | Where | None) -> Tensor | None:
    """Return the positions (B, K) of the tokens that are not missing; None is all."""
    return where.tokens if isinstance(where, Where) else where


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to q, k, v.

    Args:
        width: channels of a token.
        heads: number of heads.
        qk_norm: RMS-normalize queries and keys.
        qkv_bias: whether the projection to q, k, v has a bias.
        rotation: rotary positions (2, N, D / heads), see `rotations`; None is none.
    """

    token_share: "TokenShare | None" = None
    """The part of the tokens that this process computes; None is all."""

    def __init__(
        self, width: int, heads: int, qk_norm: bool = False, qkv_bias: bool = True, rotation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.rotation: Tensor | None
        self.register_buffer("rotation", rotation, persistent=False)
        self.heads = heads
        self.head = head = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.q_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, where: Tensor | Where | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply attention to tokens (B, N, D).

        Args:
            x: the tokens.
            where: (B, N), their positions if some tokens are missing; and the rotary positions of another grid.
            mask: (B, 1, 1, N) bool, true for tokens that count; None is all.
        """
        return self.proj(self.mix(self.qkv(x), where, mask).flatten(2))  # (B, N, D)

    def mix(self, qkv: Tensor, where: Tensor | Where | None = None, mask: Tensor | None = None) -> Tensor:
        """Compute the outputs (B, N, heads, d) of all or some heads, from their q, k and v (B, N, 3 heads d)."""
        q, k, v = self.queries_keys_values(qkv, where)
        if self.token_share is not None:
            return self.token_share.attend(q, k, v, mask).transpose(1, 2)
        return attend(q, k, v, mask=mask).transpose(1, 2)

    def queries_keys_values(self, qkv: Tensor, where: Tensor | Where | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v (B, heads, N, d), normalized and rotated, from one tensor (B, N, 3 heads d)."""
        q, k, v = torch.unflatten(qkv, -1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        rotation, tokens = (where.rotation if isinstance(where, Where) else self.rotation), present(where)
        if rotation is not None:
            table = rotation if tokens is None else rotation[:, tokens][:, :, None]  # (2, [B, 1,] N, D / heads)
            q, k = rotated(q, table.to(q.dtype)), rotated(k, table.to(k.dtype))
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Compute the attention of queries (B, heads, N, d) to keys and values (B, heads, M, d) -> (B, heads, N, d).

    The weights are softmax(scale q k^T), with scale = 1 / sqrt(d) by default. `mask` (B, 1, 1 or N, M) bool is true for
    keys that count, at least one for each query; None is all.
    """
    if q.requires_grad and torch.is_grad_enabled() and stores_attention(q.device.type, q.dtype, k.shape[2]):
        return stored_attention(q, k, v, scale, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def stores_attention(kind: str, dtype: torch.dtype, keys: int) -> bool:
    """Whether training on a type of device stores attention weights instead of using the fused kernel.

    On a CPU in bfloat16 the backward pass of that kernel takes two to seven times as long, see docs/benchmarks.md.
    """
    return kind == "cpu" and dtype is torch.bfloat16 and keys <= LONGEST


def stored_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Compute attention as `attend` does, with attention weights that are stored for the backward pass."""
    scores = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(2, 3)
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -math.inf), dim=-1)
    return weights.to(v.dtype) @ v


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

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from x (B, N, D) to the context; `mask` (B, M) is true for its tokens that count; None is all."""
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        keys = None if mask is None else mask[:, None, None]
        out = attend(self.q_norm(q), self.k_norm(k), v, mask=keys)  # (B, heads, N, D / heads)
        return self.proj(out.transpose(1, 2).flatten(2))  # (B, N, D)


class Mlp(nn.Module):
    """D -> 4 D -> D with GELU: the tanh approximation (DiT) or the exact function ("none", U-ViT)."""

    def __init__(self, width: int, ratio: int = 4, approximate: str = "tanh") -> None:
        super().__init__()
        self.fc1 = LinearGELU(width, ratio * width, approximate)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class LinearGELU(nn.Linear):
    """A linear layer with GELU, which `ditlab.inference.optimize.packing` computes in one pass."""

    def __init__(self, width: int, out: int, approximate: str) -> None:
        super().__init__(width, out)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(super().forward(x))

    def activate(self, x: Tensor) -> Tensor:
        """Apply GELU."""
        if self.approximate == "tanh" and torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            # The same function, since (1 + tanh u) / 2 = sigmoid 2u. Compiled for a CPU, exp takes 40 % of the time of
            # tanh.
            return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))
        return F.gelu(x, approximate=self.approximate)


class SwiGLU(nn.Module):
    """Gated feed-forward layer with about as many weights as `Mlp`: D -> 2 x 8/3 D -> D (Shazeer 2020).

    Args:
        width: D.
        inner: the inner width; 0 is 8/3 D, rounded up to a multiple of 32.
    """

    def __init__(self, width: int, inner: int = 0) -> None:
        super().__init__()
        inner = inner or -(-8 * width // (3 * 32)) * 32
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.activate(self.w12(x)))

    def activate(self, x: Tensor) -> Tensor:
        """Multiply the second half of the channels by the activated first half."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class PatchEmbed(nn.Module):
    """Project the p x p patches of an image (B, C, H, W) to tokens (B, N, D), in row-major order."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous, because sums keep the memory layout, and the blocks are slow if channels are not contiguous.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()  # (B, N, D)


def unpatchify(x: Tensor, h: int, w: int, patch: int) -> Tensor:
    """Assemble tokens (B, h w, p p C), channels fastest, to an image (B, C, h p, w p)."""
    x = torch.unflatten(torch.unflatten(x, 2, (patch, patch, -1)), 1, (h, w))  # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def sinusoids(t: Tensor, width: int, shift: int = 0) -> Tensor:
    """Embed the timestep (B,) as [cos | sin] at width / 2 frequencies: (B, width), float32.

    Frequency i of n is 10000^(-i / (n - shift)); the shift is 0 in DiT and 1 in diffusers.
    """
    # Computed at each call, because stored frequencies would be rounded when the network is cast to half precision.
    steps = torch.arange(width // 2, device=t.device, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(steps * (-math.log(10000) / (width // 2 - shift)))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedder(nn.Module):
    """Embeds the timestep (B,) as (B, D); with n further inputs, (B, 1 + n), the sum of the embeddings of both."""

    rate = 1
    """Factor of the timestep before it is embedded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.further: nn.Module | None = None  # embeds the further inputs (B, n), see `ditlab.backbones.inputs`

    def embed(self, t: Tensor) -> Tensor:
        """Embed the timestep (B,) as (B, D)."""
        raise NotImplementedError

    def forward(self, t: Tensor) -> Tensor:
        if self.further is None:
            return self.embed(self.rate * t)
        return self.embed(self.rate * t[:, 0]) + self.further(t[:, 1:])


class SinusoidEmbedder(TimeEmbedder):
    """Embeds the timestep as sinusoids of the width D, without weights."""

    def embed(self, t: Tensor) -> Tensor:
        return sinusoids(t, self.width)


class TimestepEmbedder(TimeEmbedder):
    """Embeds the timestep (B,) as (B, D): sinusoids, then a two-layer MLP."""

    def __init__(self, width: int, shift: int = 0) -> None:
        super().__init__(width)
        self.shift = shift
        self.mlp = embedding_mlp(FREQUENCIES, width)

    def embed(self, t: Tensor) -> Tensor:
        waves = sinusoids(t, FREQUENCIES, self.shift)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))  # (B, D)


def embedding_mlp(inputs: int, width: int) -> nn.Sequential:
    """Return the MLP of two layers that embeds sinusoids (B, inputs) as (B, width)."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


def last_linear(modulation: nn.Module) -> nn.Linear:
    """Return the linear layer of a modulation, or the low-rank adapter around it, which has the same sizes."""
    *_, layer = modulation.children()
    return cast(nn.Linear, layer)


class LabelEmbedder(nn.Module):
    """Class-embedding table with one row per class; the last row is the null class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)  # (B, D)
