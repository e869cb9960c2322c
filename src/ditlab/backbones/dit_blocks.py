"""The blocks of DiT, one class for each conditioning mechanism. In shapes, B is the batch, N tokens and D width."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.layers import Attention, CrossAttention, Mlp, SwiGLU, Where, modulate, norm, present
from ditlab.backbones.pseudo_shift import PseudoShiftedAttention
from ditlab.backbones.text import Context


class Style(NamedTuple):
    """Settings that all blocks of a network share."""

    width: int
    heads: int
    qk_norm: bool
    rms_norm: bool
    swiglu: bool
    rotation: Tensor | None
    norm_weights: bool = False
    gated_width: int = 0
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the tokens, for attention in windows."""
    window: int = 0
    """Side of a window; 0 is attention to all tokens."""

    def norm(self, affine: bool) -> nn.Module:
        """A layer norm or RMS norm."""
        return norm(self.width, affine or self.norm_weights, self.rms_norm)

    def attention(self) -> Attention:
        """A self-attention layer."""
        if self.window:
            sizes = (self.grid, self.window)
            return PseudoShiftedAttention(self.width, self.heads, self.qk_norm, self.rotation, *sizes)
        return Attention(self.width, self.heads, self.qk_norm, rotation=self.rotation)

    def mlp(self) -> nn.Module:
        """A feed-forward layer."""
        return SwiGLU(self.width, self.gated_width) if self.swiglu else Mlp(self.width)


class AdaLNZeroBlock(nn.Module):
    """Attention and MLP, each with shift, scale and gate from the condition; the identity at initialization."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2 = style.norm(affine=False), style.norm(affine=False)
        self.attn, self.mlp = style.attention(), style.mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(style.width, 6 * style.width))

    def forward(self, x: Tensor, c: Tensor, where: Tensor | Where | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, D) each
        x = torch.addcmul(x, gate_a[:, None], self.attn(modulate(self.norm1(x), shift_a, scale_a), where))
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


class AdaLNBlock(nn.Module):
    """Attention and MLP, each with shift and scale from the condition."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2 = style.norm(affine=False), style.norm(affine=False)
        self.attn, self.mlp = style.attention(), style.mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(style.width, 4 * style.width))

    def forward(self, x: Tensor, c: Tensor, where: Tensor | Where | None = None) -> Tensor:
        shift_a, scale_a, shift_m, scale_m = self.adaLN_modulation(c).chunk(4, dim=1)  # (B, D) each
        x = x + self.attn(modulate(self.norm1(x), shift_a, scale_a), where)
        return x + self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class CrossAttentionBlock(nn.Module):
    """Self-attention, cross-attention to the condition tokens, and MLP."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (style.norm(affine=True) for _ in range(3))
        self.attn, self.mlp = style.attention(), style.mlp()
        self.cross = CrossAttention(style.width, style.heads, style.qk_norm)

    def forward(self, x: Tensor, c: Tensor | Context, where: Tensor | Where | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), where)
        x = x + self.cross(self.norm2(x), *(c if isinstance(c, Context) else (c,)))
        return x + self.mlp(self.norm3(x))


class InContextBlock(nn.Module):
    """A plain ViT block; the condition is part of the token sequence."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2 = style.norm(affine=True), style.norm(affine=True)
        self.attn, self.mlp = style.attention(), style.mlp()

    def forward(self, x: Tensor, c: Tensor | Context, where: Tensor | Where | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), where, c.keys_at(present(where)) if isinstance(c, Context) else None)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Layer norm, adaptive if the blocks are, and the projection to the pixels of a patch."""

    def __init__(self, style: Style, out: int, adaptive: bool) -> None:
        super().__init__()
        width = style.width
        self.norm_final = style.norm(affine=not adaptive)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)) if adaptive else None

    def forward(self, x: Tensor, c: Any) -> Tensor:
        x = self.norm_final(x)
        if self.adaLN_modulation is not None:
            x = modulate(x, *self.adaLN_modulation(c).chunk(2, dim=1))
        return self.linear(x)


def projector(width: int, inner: int, out: int) -> nn.Module:
    """Return REPA's projector of tokens (B, N, D) to features (B, N, out); it is not trained unless an aid uses it."""
    layers = (nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, out))
    return nn.Sequential(*layers).requires_grad_(False)


BLOCKS: dict[str, type[nn.Module]] = {
    "in-context": InContextBlock,
    "cross-attention": CrossAttentionBlock,
    "adaln": AdaLNBlock,
    "adaln-zero": AdaLNZeroBlock,
}
