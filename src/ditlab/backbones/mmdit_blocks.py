"""The blocks of MM-DiT: two streams with weights of their own, and one attention over both.

In shapes, B is the batch, N the number of image tokens, L that of text tokens and D the width.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.layers import Mlp, RMSNorm, attend, modulate, norm
from ditlab.backbones.positions import rotated
from ditlab.backbones.token_share import TokenShare


class Context(NamedTuple):
    """What every block receives in addition to the tokens."""

    vector: Tensor  # (B, D): timestep and pooled text
    length: int  # number of text tokens, which come after the image tokens
    mask: Tensor | None  # (B, L), true for text tokens that count; None if all do
    rotation: Tensor | None = None  # (2, N + L, D / heads), rotary positions of image and text; None is none
    share: TokenShare | None = None  # the part of the image tokens that this process computes; None is all

    def attend(self, q: Tensor, k: Tensor, v: Tensor, where: Tensor | None = None) -> Tensor:
        """Attention over image and text, with queries, keys and values (B, heads, N + L, D / heads) -> (B, N + L, D).

        `where` (B, N + L) has the positions of the tokens if some are missing. There are fewer queries than keys if the
        text ends.
        """
        if self.rotation is not None:
            table = self.rotation if where is None else self.rotation[:, where][:, :, None]
            q, k = rotated(q, table.to(q.dtype)), rotated(k, table.to(k.dtype))
        mask = None if self.mask is None else F.pad(self.mask, (k.shape[2] - self.length, 0), value=True)[:, None, None]
        compute = attend if self.share is None else self.share.attend
        return compute(q, k, v, mask=mask).transpose(1, 2).flatten(2)


class UnusedNorm(nn.Module):
    """Keeps the gain of a norm that the published state dict has and no output depends on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.ones(width))


class StreamAttention(nn.Module):
    """The projections of one stream; attention itself is computed over both streams.

    Args:
        width: channels of a token.
        heads: number of attention heads.
        qk_norm: RMS-normalize queries and keys.
        last: whether the stream ends here, so that its queries and outputs are not needed.
    """

    token_share: TokenShare | None = None
    """The part of the tokens that this process computes; None is all."""

    def __init__(self, width: int, heads: int, qk_norm: bool, last: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = None if last else nn.Linear(width, width)
        gain = UnusedNorm if last else partial(RMSNorm, eps=1e-6)
        self.ln_q = gain(width // heads) if qk_norm else nn.Identity()
        self.ln_k = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens (B, N, D) to queries, keys and values (B, heads, N, D / heads); no queries if it ends here."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q[:, :, :0] if self.proj is None else self.ln_q(q), self.ln_k(k), v

    def forward(self, x: Tensor) -> Tensor:
        """Attend among the tokens (B, N, D) of this stream only."""
        compute = attend if self.token_share is None else self.token_share.attend
        return self.output(compute(*self.split(x)).transpose(1, 2).flatten(2))

    def output(self, attended: Tensor) -> Tensor:
        """Project what attention found (B, N, D)."""
        assert self.proj is not None
        return self.proj(attended)


class Stream(nn.Module):
    """The weights of one stream in a block.

    Args:
        width, heads, qk_norm, last: as in `StreamAttention`.
        dual: add a second attention among the tokens of this stream.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool, *, dual: bool = False, last: bool = False) -> None:
        super().__init__()
        self.norm = norm(width, affine=False)
        self.attn = StreamAttention(width, heads, qk_norm, last)
        self.attn2 = StreamAttention(width, heads, qk_norm) if dual else None
        self.mlp = None if last else Mlp(width)
        self.parts = 2 if last else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.parts * width))

    def modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        """Compute shift and scale, and the further parts, (B, D) each."""
        return self.adaLN_modulation(c).chunk(self.parts, dim=1)

    def split(self, x: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the queries, keys and values of tokens (B, N, D)."""
        return self.attn.split(modulate(self.norm(x), parts[0], parts[1]))

    def update(self, x: Tensor, attended: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Add the outputs of attention and MLP to the tokens (B, N, D); a stream that ends stays as it is."""
        if self.mlp is None:
            return x
        gate_a, shift_m, scale_m, gate_m, *second = parts[2:]
        out = torch.addcmul(x, gate_a[:, None], self.attn.output(attended))
        if self.attn2 is not None:
            shift, scale, gate = second
            out = torch.addcmul(out, gate[:, None], self.attn2(modulate(self.norm(x), shift, scale)))
        return torch.addcmul(out, gate_m[:, None], self.mlp(modulate(self.norm(out), shift_m, scale_m)))


class JointBlock(nn.Module):
    """Joint attention of image and text tokens, and an MLP for each stream; the identity at initialization.

    Args:
        width, heads, qk_norm: as in `StreamAttention`.
        dual: add a second attention among the image tokens.
        last: leave the text as it is, because no block reads it afterwards.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool, *, dual: bool, last: bool) -> None:
        super().__init__()
        self.context_block = Stream(width, heads, qk_norm, last=last)
        self.x_block = Stream(width, heads, qk_norm, dual=dual)

    def forward(self, x: Tensor, c: Context, where: Tensor | None = None) -> Tensor:
        """Update the tokens (B, N + L, D) of image and text."""
        count = x.shape[1] - c.length
        image, text = x[:, :count], x[:, count:]
        image_parts, text_parts = self.x_block.modulation(c.vector), self.context_block.modulation(c.vector)
        streams = self.x_block.split(image, image_parts), self.context_block.split(text, text_parts)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*streams, strict=True))  # (B, heads, N + L, D / heads)
        attended = c.attend(q, k, v, where)  # (B, N + L, D), or N if the text ends
        image = self.x_block.update(image, attended[:, :count], image_parts)
        text = self.context_block.update(text, attended[:, count:], text_parts)
        return torch.cat([image, text], dim=1)


class VectorEmbedder(nn.Module):
    """Embeds a pooled vector (B, P) as (B, D) with a two-layer MLP."""

    def __init__(self, pooled: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, vector: Tensor) -> Tensor:
        return self.mlp(vector.to(next(self.mlp.parameters()).dtype))
