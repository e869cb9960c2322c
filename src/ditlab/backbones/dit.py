"""DiT (Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023): a ViT on patches of the latent.

The class has the paper's four conditioning mechanisms for timestep and label: two extra tokens (in-context),
cross-attention, and adaptive layer norm without gates (adaln) or with zero-initialized gates (adaln-zero). The state
dict of adaln-zero has the official keys. In shapes, B is the batch, N tokens, D width and p patch.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.layers import (
    Attention,
    CrossAttention,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    SwiGLU,
    TimestepEmbedder,
    check_positive,
    initialize_linears,
    last_linear,
    modulate,
    norm,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.positions import rotations, sincos_positions
from ditlab.backbones.published import count_of
from ditlab.backbones.routing import check_exits, depth_at, record, routed, through
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace
from ditlab.core.units import counted


class Size(NamedTuple):
    """One row of the size table."""

    depth: int
    width: int
    heads: int


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}  # Table 1
PATCHES = (2, 4, 8)


class DiT(Backbone):
    """The diffusion transformer, initialized as published: before training, its output is exactly zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        condition: conditioning mechanism for timestep and label.
        qk_norm: RMS-normalize queries and keys.
        frequency_shift: timestep frequencies as in DiT (0) or as in diffusers (1).
        exits: early exit: shares of the blocks that run, for equal intervals of the timestep from data to noise.
        rms_norm: use RMS norm instead of layer norm.
        swiglu: use gated feed-forward layers (SwiGLU).
        rope: use rotary positions.
        projectors: inner width and output widths of the projectors with which REPA aligns tokens to features of
            encoders; only training uses them.
    """

    label_tables = ("y_embedder.embedding_table.weight",)
    changeable: tuple[str, ...] = ("exits",)
    norm_weights = False
    """Whether norms that the condition scales also have weights of their own."""
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    marks: tuple[str, ...] = (
        "x_embedder.proj.weight",
        "pos_embed",
        "y_embedder.embedding_table.weight",
        *heads_out,
    )
    published: Mapping[str, Any] = MappingProxyType(
        {"condition": "adaln-zero"} | dict.fromkeys(("qk_norm", "rms_norm", "swiglu", "rope", "exits"), False)
    )

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        condition: Literal["in-context", "cross-attention", "adaln", "adaln-zero"] = "adaln-zero",
        qk_norm: bool = False,
        frequency_shift: int = 0,
        exits: Sequence[float] = (),
        rms_norm: bool = False,
        swiglu: bool = False,
        rope: bool = False,
        projectors: Sequence[int] = (),
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_exits(exits)
        check_positive(depth=depth, width=width, heads=heads, patch=patch)
        height, breadth = size
        if height % patch or breadth % patch:
            raise InputError(f"size {height}x{breadth} is not divisible by patch {patch}; choose another size or patch")
        if width % heads or width % 4:
            raise InputError(f"width {width} must be divisible by heads {heads} and by 4 (positions in two dimensions)")
        if rope and width // heads % 4:
            raise InputError(
                f"rope with {counted(width // heads, 'channel')} for each head; choose width and heads so that this "
                "is a multiple of 4 (positions in two dimensions)"
            )
        block = lookup(BLOCKS, condition, "condition")
        self.patch, self.exits = patch, exits
        self.sequence = condition in ("in-context", "cross-attention")  # condition as tokens [t, y], not as their sum
        self.joined = 2 if condition == "in-context" else 0
        turn = self.rotation(height // patch, breadth // patch, width // heads, self.joined) if rope else None
        style = Style(width, heads, qk_norm, rms_norm, swiglu, turn, self.norm_weights, self.gated_width(width))

        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbedder(width, frequency_shift)
        self.y_embedder = LabelEmbedder(classes, width)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(height // patch, breadth // patch, width))
        self.blocks = nn.ModuleList([block(style) for _ in range(depth)])
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=not self.sequence)
        if projectors:
            inner, *out = projectors
            self.projectors = nn.ModuleList([projector(width, inner, features) for features in out])
        self.initialize(zero_gates=condition == "adaln-zero")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            f"{name}/{patch}": size._asdict() | {"patch": patch} for name, size in SIZES.items() for patch in PATCHES
        }

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The number of heads is only known for published sizes.
        """
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        depth = 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")), default=-1)
        side = round(tensors["pos_embed"].shape[1] ** 0.5) * patch  # assumes a square; callers can override the size
        modulation = tensors.get("blocks.0.adaLN_modulation.1.weight")
        heads = {(row.depth, row.width): {"heads": row.heads} for row in SIZES.values()}
        first = tensors.get("projectors.0.0.weight")
        out = [len(tensors[f"projectors.{i}.4.weight"]) for i in range(count_of(tensors, "projectors."))]
        projectors = {} if first is None else {"projectors": [len(first), *out]}
        return (
            {
                "size": (side, side),
                "channels": channels,
                "classes": cls.count_classes(len(tensors["y_embedder.embedding_table.weight"])),
                "learn_variance": len(tensors[cls.heads_out[0]]) == 2 * channels * patch**2,
                "condition": "adaln" if modulation is not None and len(modulation) == 4 * width else "adaln-zero",
                "width": width,
                "depth": depth,
                "patch": patch,
            }
            | heads.get((depth, width), {})
            | projectors
        )

    @staticmethod
    def rotation(h: int, w: int, width: int, more: int = 0) -> Tensor:
        """Compute the rotary positions of `rope`, see `rotations`."""
        return rotations(h, w, width, more)

    @staticmethod
    def gated_width(width: int) -> int:
        """Return the inner width of SwiGLU layers; 0 is its default."""
        return 0

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1] + self.joined

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    @property
    def routable(self) -> list[nn.Module]:
        return [] if self.exits else [*self.blocks]

    @property
    def dynamic_depth(self) -> bool:
        return bool(self.exits)

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [] if self.sequence else [self.condition(self.t_embedder(timestep), self.y_embedder(label))]

    def modulations(self) -> list[Modulation]:
        if self.sequence:
            return []
        layers = [block.get_submodule("adaLN_modulation") for block in self.repeated]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [self.y_embedder])

    def initialize(self, zero_gates: bool) -> None:
        """Set initial weights: Xavier for linear layers, N(0, 0.02) for embedders, zero for the head.

        Args:
            zero_gates: set the modulations of the blocks to zero too (adaln-zero).
        """
        initialize_linears(self)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        for weight in (self.y_embedder.embedding_table.weight, *self.t_embedder.mlp.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        zero: list[nn.Module] = [self.final_layer.linear]
        if self.final_layer.adaLN_modulation is not None:
            zero.append(self.final_layer.adaLN_modulation)
        if zero_gates:
            zero += [block.get_submodule("adaLN_modulation") for block in self.blocks]
        set_to_zero(zero)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 for DiT, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        h, w = self.grid
        # fmt: off
        c = self.condition(self.t_embedder(timestep), self.y_embedder(y))  # (B, D) or (B, 2, D)
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed             # (B, N, D)   N = h w
        if self.joined:
            x = torch.cat([x, c], dim=1)                                   # (B, N + 2, D)
        x = self.through_blocks(x, c, timestep, trace)                     # (B, N, D)
        x = self.final_layer(x[:, : h * w], c)                             # (B, N, p p C)
        record(trace, len(self.blocks), x)
        return unpatchify(x, h, w, self.patch)                             # (B, C, H, W)
        # fmt: on

    def through_blocks(self, x: Tensor, c: Tensor, timestep: Tensor, trace: Trace | None) -> Tensor:
        """Pass tokens (B, N, D) through all blocks; feature caching skips those in `inner`."""
        return self.inner(x, c, timestep, trace)

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks, or up to the early exit of each image."""
        c, timestep, trace = context
        if self.exits and not timestep.is_meta:
            return through(self.blocks, x, c, depth_at(timestep, self.exits, len(self.blocks)), trace)
        if trace is not None and trace.kept is not None:
            return routed(self.blocks, x, c, trace.kept, trace)
        for i, block in enumerate(self.blocks):
            x = block(x, c)  # (B, N, D)
            record(trace, i, x)
        return x

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """Combine the embeddings of timestep and label, (B, D) each: their sum, or a sequence of two tokens."""
        return torch.stack([t, y], dim=1) if self.sequence else t + y


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

    def norm(self, affine: bool) -> nn.Module:
        """A layer norm or RMS norm."""
        return norm(self.width, affine or self.norm_weights, self.rms_norm)

    def attention(self) -> Attention:
        """A self-attention layer."""
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

    def forward(self, x: Tensor, c: Tensor, where: Tensor | None = None) -> Tensor:
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

    def forward(self, x: Tensor, c: Tensor, where: Tensor | None = None) -> Tensor:
        shift_a, scale_a, shift_m, scale_m = self.adaLN_modulation(c).chunk(4, dim=1)  # (B, D) each
        x = x + self.attn(modulate(self.norm1(x), shift_a, scale_a), where)
        return x + self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class CrossAttentionBlock(nn.Module):
    """Self-attention, cross-attention to the two condition tokens, and MLP."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (style.norm(affine=True) for _ in range(3))
        self.attn, self.mlp = style.attention(), style.mlp()
        self.cross = CrossAttention(style.width, style.heads, style.qk_norm)

    def forward(self, x: Tensor, c: Tensor, where: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), where)
        x = x + self.cross(self.norm2(x), c)
        return x + self.mlp(self.norm3(x))


class InContextBlock(nn.Module):
    """A plain ViT block; the condition is part of the token sequence."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2 = style.norm(affine=True), style.norm(affine=True)
        self.attn, self.mlp = style.attention(), style.mlp()

    def forward(self, x: Tensor, c: Tensor, where: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), where)
        return x + self.mlp(self.norm2(x))


class FinalLayer(nn.Module):
    """Layer norm, adaptive if the blocks are, and the projection to the pixels of a patch."""

    def __init__(self, style: Style, out: int, adaptive: bool) -> None:
        super().__init__()
        width = style.width
        self.norm_final = style.norm(affine=not adaptive)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width)) if adaptive else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
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
