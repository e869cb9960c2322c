"""The blocks of deep fusion. In shapes, B is the batch, N image tokens, L text tokens, D width, d width of a head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.layers import RMSNorm, SwiGLU, attend, modulate
from ditlab.backbones.positions import rotated, rotations


class Text(NamedTuple):
    """What a block receives of the text."""

    keys: Tensor  # (B, kv_heads, L, d), with their positions
    values: Tensor  # (B, kv_heads, L, d)
    mask: Tensor | None  # (B, L), true for tokens that count


class Sizes(NamedTuple):
    """The sizes of a block."""

    width: int
    heads: int
    kv_heads: int
    head_width: int


class FusedAttention(nn.Module):
    """Attention from image tokens to one sequence of text keys and image keys, with grouped heads.

    Args:
        sizes: the sizes of the block.
        positions: rotary positions (2, N, d) of the image tokens.
        grid: rows and columns of the image tokens.
        shorter: replace each 2x2 image keys and values by their mean, at the mean position.
    """

    def __init__(self, sizes: Sizes, positions: Tensor, grid: tuple[int, int], shorter: bool) -> None:
        super().__init__()
        self.sizes, self.grid, self.shorter = sizes, grid, shorter
        self.qkv = nn.Linear(sizes.width, (sizes.heads + 2 * sizes.kv_heads) * sizes.head_width, bias=False)
        self.proj = nn.Linear(sizes.heads * sizes.head_width, sizes.width, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(sizes.head_width, eps=1e-6) for _ in range(2))
        self.rotation: Tensor
        self.register_buffer("rotation", positions, persistent=False)
        self.key_rotation: Tensor | None
        h, w = grid
        means = rotations(h // 2, w // 2, sizes.head_width, spacing=2.0, first=0.5) if shorter else None
        self.register_buffer("key_rotation", means, persistent=False)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """Attend from image tokens (B, N, D) -> (B, N, D)."""
        heads, kv_heads = self.sizes.heads, self.sizes.kv_heads
        q, k, v = (
            self.qkv(x).unflatten(-1, (heads + 2 * kv_heads, -1)).transpose(1, 2).split([heads, *2 * [kv_heads]], 1)
        )
        q, k = self.q_norm(q), self.k_norm(k)  # (B, heads, N, d), (B, kv_heads, N, d)
        table = self.rotation if self.key_rotation is None else self.key_rotation
        if self.shorter:
            k, v = self.means(k), self.means(v)  # (B, kv_heads, N / 4, d)
        q, k = rotated(q, self.rotation.to(q.dtype)), rotated(k, table.to(k.dtype))
        return self.proj(joint_attention(q, k, v, text).transpose(1, 2).flatten(2))

    def means(self, x: Tensor) -> Tensor:
        """Return the 2x2 means of values (B, kv_heads, N, d) on the grid."""
        h, w = self.grid
        return torch.unflatten(x, 2, (h // 2, 2, w // 2, 2)).mean((3, 5)).flatten(2, 3)


def joint_attention(q: Tensor, k: Tensor, v: Tensor, text: Text) -> Tensor:
    """Compute attention of image queries to text keys and image keys, in one softmax.

    Args:
        q: queries (B, heads, N, d).
        k, v: keys and values (B, kv_heads, M, d) of the image; each serves heads / kv_heads heads.
        text: keys and values of the text, which come first.

    Returns:
        (B, heads, N, d).
    """
    groups = q.shape[1] // k.shape[1]
    keys, values = torch.cat([text.keys.to(k.dtype), k], dim=2), torch.cat([text.values.to(v.dtype), v], dim=2)
    mask = None
    if text.mask is not None:
        mask = torch.cat([text.mask, text.mask.new_ones(k.shape[0], k.shape[2])], dim=1)[:, None, None]
    return attend(q, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), mask=mask)


class Join(nn.Module):
    """The skip connection from a mirrored block: a linear layer that starts by ignoring it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def initialize(self) -> None:
        """Set the weights of the tokens to the identity, and those of the skip to zero."""
        width = self.linear.out_features
        nn.init.zeros_(self.linear.weight)
        nn.init.eye_(self.linear.weight[:, :width].data)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.linear(torch.cat([x, skip], dim=-1))


class Block(nn.Module):
    """Attention to text and image, and a gated MLP, each between two norms; the time gives shift, scale and gate."""

    def __init__(self, sizes: Sizes, positions: Tensor, grid: tuple[int, int], shorter: bool, joins: bool) -> None:
        super().__init__()
        self.join = Join(sizes.width) if joins else None
        self.norm1, self.norm2, self.norm3, self.norm4 = (RMSNorm(sizes.width, eps=1e-6) for _ in range(4))
        self.attn, self.mlp = FusedAttention(sizes, positions, grid, shorter), SwiGLU(sizes.width)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, sizes.width))

    def forward(self, x: Tensor, modulation: Tensor, text: Text, skip: Tensor | None) -> Tensor:
        if self.join is not None and skip is not None:
            x = self.join(x, skip)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.scale_shift_table + modulation).unbind(1)
        out = self.norm2(self.attn(modulate(self.norm1(x), shift_a, scale_a), text))
        x = torch.addcmul(x, gate_a[:, None], out)
        return torch.addcmul(x, gate_m[:, None], self.norm4(self.mlp(modulate(self.norm3(x), shift_m, scale_m))))


class FinalLayer(nn.Module):
    """RMS norm with shift and scale, and the projection to the pixels of a patch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + c[:, None]).unbind(1)  # (B, D) each
        return self.linear(modulate(self.norm_final(x), shift, scale))
