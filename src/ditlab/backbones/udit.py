"""U-DiT (Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers", NeurIPS 2024).

A U-Net of DiT blocks in which every pixel of the latent is a token. Attention runs separately in the four sub-grids of
a level (even and odd rows and columns) with shared weights. Every ablation of the paper is an option, see `LADDER`. In
shapes, B is the batch, h x w the grid of a level, D its width and d the width of a head; channels are the last
dimension inside the network.
"""

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones import udit_published
from ditlab.backbones.layers import Mlp, attend, check_positive, norm
from ditlab.backbones.levels import LevelCondition, LevelNetwork
from ditlab.backbones.positions import pair_rotations, rotated_pairs
from ditlab.backbones.routing import Level, number
from ditlab.backbones.udit_grid import Conv, interleave, shuffle, split, unit, unshuffle
from ditlab.backbones.udit_reparam import Branches, Chain, FeedForward
from ditlab.core.errors import InputError, lookup
from ditlab.core.modules import with_modules
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table: width of the first level, heads of all levels, depths of all levels."""

    width: int
    heads: int
    depths: tuple[int, ...] = (2, 5, 8, 5, 2)


SIZES = {"S": Size(96, 4), "B": Size(192, 8), "L": Size(384, 16)}

_PLAIN = {"cosine": False, "rope": False, "feed_forward": "plain"}
# The ablations in tables 1, 7 and 9. The sizes of U-DiT-T are not published; width 48, 2 heads and depths
# (1, 2, 4, 2, 1) give the costs in the paper. "Slim" is full attention at width 36.
LADDER: dict[str, dict[str, Any]] = {
    "full attention": {"attention": "full", **_PLAIN},
    "key-value down-sampling": {"attention": "key-value", **_PLAIN},
    "token down-sampling, unshuffle only": {"downsampler": "unshuffle", **_PLAIN},
    "token down-sampling, depth-wise": {"downsampler": "depthwise", **_PLAIN},
    "token down-sampling": _PLAIN,
    "cosine attention": _PLAIN | {"cosine": True},
    "RoPE2D": _PLAIN | {"cosine": True, "rope": True},
    "depth-wise feed-forward": {"feed_forward": "depthwise"},
    "re-parametrisation": {},
}
LARGEST_SCALE = math.log(100)  # log of the largest scale of logits in cosine attention


class Style(NamedTuple):
    """Settings that all blocks of a network share."""

    heads: int
    attention: str
    downsampler: str
    cosine: bool
    rope: bool
    feed_forward: str


class UDiT(LevelNetwork):
    """The U-shaped transformer, initialized as published: before training, its output is exactly zero.

    Args:
        width: channels of the first level; each following level doubles them.
        heads: number of attention heads of every level.
        depths: numbers of blocks of the levels: encoder, middle, decoder; an odd count. A block of the paper has
            attention and MLP twice.
        attention: "full"; "key-value" (keys and values are down-sampled to every other row and column); or "token"
            (queries, keys and values are down-sampled into sub-grids).
        downsampler: layer before down-sampling: a "depthwise" convolution, one with a "shortcut", or none
            ("unshuffle").
        cosine: use cosine attention, on normalized queries and keys with a learned scale.
        rope: use rotary positions.
        feed_forward: "plain" MLP, MLP with a "depthwise" convolution, or the latter "reparametrised".
    """

    final_layer: "FinalLayer"
    heads_out = ("final_layer.out_proj.weight", "final_layer.out_proj.bias")
    decayed = ("logit_scale",)
    marks = (
        "x_embedder.proj.weight",
        "down1_2.body.0.weight",
        "latent.0.attn1.logit_scale",
        "final_layer.out_proj.weight",
    )
    published = MappingProxyType(
        {
            "attention": "token",
            "downsampler": "shortcut",
            "cosine": True,
            "rope": True,
            "feed_forward": "reparametrised",
        }
    )

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        width: int,
        heads: int,
        depths: Sequence[int] = Size.depths,
        attention: Literal["token", "key-value", "full"] = "token",
        downsampler: Literal["shortcut", "depthwise", "unshuffle"] = "shortcut",
        cosine: bool = True,
        rope: bool = True,
        feed_forward: Literal["reparametrised", "depthwise", "plain"] = "reparametrised",
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        style = self.style = Style(heads, attention, downsampler, cosine, rope, feed_forward)
        check_sizes(size, width, depths, style)
        levels = len(depths) // 2  # without the middle
        widths = self.widths = [width * 2**i for i in range(levels + 1)]

        self.x_embedder = Conv(channels, width, 3)
        self.conditions = nn.ModuleList([LevelCondition(classes, level_width) for level_width in widths])
        down, (middle, *up) = depths[:levels], depths[levels:]
        self.encoders = nn.ModuleList([Encoder(*sizes, style) for sizes in zip(widths[:-1], down, strict=True)])
        self.middle = Blocks(widths[-1], middle, style)
        out = [*widths[-2:0:-1], widths[1]]  # at full resolution the decoder is twice as wide as the encoder
        self.decoders = nn.ModuleList([Decoder(*sizes, style) for sizes in zip(widths[-2::-1], out, up, strict=True)])
        self.output = Conv(widths[1], widths[1], 3)
        self.final_layer = FinalLayer(widths[1], self.out_channels)
        self.label_tables = tuple(
            f"conditions.{i}.y_embedder.embedding_table.weight" for i in range(len(self.conditions))
        )
        number(self.levels())
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in SIZES.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict: all but the size."""
        return udit_published.read_sizes(tensors) | {
            "classes": cls.count_classes(len(tensors["y_embedder_1.embedding_table.weight"]))
        }

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return udit_published.from_published(tensors)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return udit_published.to_published(tensors)

    @property
    def one_size(self) -> str:
        return ""

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return (2 ** (len(self.widths) - (self.style.attention == "full")),) * 2

    @property
    def tokens(self) -> int:
        pixels = self.size[0] * self.size[1]
        return pixels // 4 if self.style.attention == "token" else pixels

    def initialize(self) -> None:
        """Set initial weights: Xavier by default, N(0, 0.02) for embedders, zero for modulations and the head."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if name.endswith(("adaLN_modulation.1", "final_layer.out_proj")):
                nn.init.zeros_(module.get_parameter("weight"))
        for weight in self.conditions.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 as published, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        # fmt: off
        c = [condition(timestep, y) for condition in self.conditions]  # (B, 1, 1, D) for each level
        x = self.x_embedder(x.to(self.dtype).movedim(1, -1))           # (B, H, W, D)
        x, skip = self.encoders[0](x, c[0], trace)                     # (B, H / 2, W / 2, 2 D), (B, H, W, D)
        x = self.inner(x, c[1:], trace)                                # (B, H / 2, W / 2, 2 D)
        x = self.decoders[-1](x, skip, c[1], trace)                    # (B, H, W, 2 D)
        x = self.final_layer(self.output(x), c[1])                     # (B, H, W, C)
        return x.movedim(-1, 1).contiguous()                           # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Compute all levels but the first; `context` has the conditions of these levels and the trace."""
        conditions, trace = context
        skips: list[Tensor] = []
        for encoder, c in zip(self.encoders[1:], conditions[:-1], strict=True):
            x, skip = encoder(x, c, trace)  # (B, h / 2, w / 2, 2 D), (B, h, w, D)
            skips.append(skip)
        x = self.middle(x, conditions[-1], trace)  # (B, h, w, D)
        for decoder, c in zip(self.decoders[:-1], conditions[-2::-1], strict=True):
            x = decoder(x, skips.pop(), c, trace)  # (B, 2 h, 2 w, D / 2)
        return x

    @torch.no_grad()
    def fused(self) -> "UDiT":
        """Return an independent network with the same outputs, in which re-parametrized layers are single layers."""
        merged = {module: module.merged() for module in self.modules() if isinstance(module, Chain | Branches)}
        if not merged:
            return self
        net = with_modules(self, merged)
        downsampler = self.style.downsampler.replace("shortcut", "depthwise")
        feed_forward = self.style.feed_forward.replace("reparametrised", "depthwise")
        net.style = self.style._replace(downsampler=downsampler, feed_forward=feed_forward)
        net.config = self.config | {"downsampler": downsampler, "feed_forward": feed_forward}
        return net


class Encoder(nn.Module):
    """One level of the encoder: blocks, then down-sampling to half the grid and twice the width."""

    def __init__(self, width: int, depth: int, style: Style) -> None:
        super().__init__()
        self.blocks = Blocks(width, depth, style)
        self.down = Conv(width, width // 2, 3, bias=False)

    def forward(self, x: Tensor, c: Tensor, trace: Trace | None) -> tuple[Tensor, Tensor]:
        x = self.blocks(x, c, trace)
        return unshuffle(self.down(x)), x


class Decoder(nn.Module):
    """One level of the decoder: up-sampling to twice the grid, the skip connection, then blocks."""

    def __init__(self, width: int, out: int, depth: int, style: Style) -> None:
        super().__init__()
        self.up = Conv(2 * width, 4 * width, 3, bias=False)
        self.reduce = nn.Linear(2 * width, out)
        self.blocks = Blocks(out, depth, style)

    def forward(self, x: Tensor, skip: Tensor, c: Tensor, trace: Trace | None) -> Tensor:
        x = torch.cat([shuffle(self.up(x)), skip], dim=-1)  # (B, h, w, 2 D)
        return self.blocks(self.reduce(x), c, trace)


class Blocks(Level):
    """The blocks of one level; a block of the paper is two of these."""

    def __init__(self, width: int, depth: int, style: Style) -> None:
        super().__init__([Block(width, style) for _ in range(2 * depth)])
        self.rotated = width // style.heads if style.rope else 0

    def forward(self, x: Tensor, c: Tensor, trace: Trace | None = None) -> Tensor:
        table = pair_rotations(x.shape[1], x.shape[2], self.rotated, x.device) if self.rotated else None
        return self.run(x, c, table, trace=trace)  # (B, h, w, D)


class Block(nn.Module):
    """Attention and feed-forward with shift, scale and gate from the condition; the identity at initialization."""

    def __init__(self, width: int, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, affine=False), norm(width, affine=False)
        self.attn, self.mlp = GridAttention(width, style), FEED_FORWARDS[style.feed_forward](width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor, table: Tensor | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = torch.addcmul(x, gate_a, self.attn(torch.addcmul(shift_a, self.norm1(x), 1 + scale_a), table))
        return torch.addcmul(x, gate_m, self.mlp(torch.addcmul(shift_m, self.norm2(x), 1 + scale_m)))


class GridAttention(nn.Module):
    """Multi-head self-attention on a grid, at full resolution or down-sampled."""

    def __init__(self, width: int, style: Style) -> None:
        super().__init__()
        self.heads, self.attention = style.heads, style.attention
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        mixed = ATTENTIONS[style.attention] * width
        self.downsampler = DOWNSAMPLERS[style.downsampler](mixed) if mixed else nn.Identity()
        self.logit_scale = nn.Parameter(torch.full((style.heads, 1, 1), math.log(10))) if style.cosine else None

    def forward(self, x: Tensor, table: Tensor | None) -> Tensor:
        if self.attention == "token":
            x = split(self.downsampler(x))  # (4 B, h / 2, w / 2, D)
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # shape of x
        if self.attention == "key-value":
            k, v = self.downsampler(torch.cat([k, v], dim=-1))[:, ::2, ::2].chunk(2, dim=-1)  # (B, h / 2, w / 2, D)
        x = self.attend(q, k, v, table)
        return interleave(x) if self.attention == "token" else x  # (B, h, w, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> Tensor:
        """Compute the attention of queries (B, h, w, D) to keys and values of the same grid, or of half its sides."""
        h, w = q.shape[1:3]
        q, k, v = (torch.unflatten(part, -1, (self.heads, -1)) for part in (q, k, v))  # (B, h, w, heads, d)
        if table is not None:
            step = h // k.shape[1]
            q, k = rotated_pairs(q, table[:h, :w]), rotated_pairs(k, table[:h:step, :w:step])
        if self.logit_scale is not None:
            scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp().flatten(1)  # (heads, 1)
            q, k = q * (scale * unit(q)), k * unit(k)
        q, k, v = (part.to(v.dtype).flatten(1, 2).transpose(1, 2) for part in (q, k, v))  # (B, heads, h w, d)
        x = attend(q, k, v, scale=None if self.logit_scale is None else 1.0)
        return self.proj(x.transpose(1, 2).flatten(2)).unflatten(1, (h, w))


class FinalLayer(nn.Module):
    """Adaptive layer norm, then a convolution to the output channels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = norm(width, affine=False)
        self.out_proj = Conv(width, out, 3)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.out_proj(torch.addcmul(shift, self.norm_final(x), 1 + scale))


DOWNSAMPLERS: dict[str, Callable[[int], nn.Module]] = {
    "unshuffle": lambda width: nn.Identity(),
    "depthwise": lambda width: Conv(width, width, 5, groups=width),
    "shortcut": lambda width: Branches(width, (5,)),
}
FEED_FORWARDS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda width: Mlp(width, ratio=2),
    "depthwise": lambda width: FeedForward(width, reparametrised=False),
    "reparametrised": lambda width: FeedForward(width, reparametrised=True),
}
ATTENTIONS = {"full": 0, "key-value": 2, "token": 1}  # number of down-sampled tensors: none, (k, v), or x


def check_sizes(size: tuple[int, int], width: int, depths: Sequence[int], style: Style) -> None:
    """Raise an `InputError` if an option is unknown or sizes do not fit together."""
    lookup(ATTENTIONS, style.attention, "attention")
    lookup(DOWNSAMPLERS, style.downsampler, "downsampler")
    lookup(FEED_FORWARDS, style.feed_forward, "feed_forward")
    check_positive(width=width, heads=style.heads, depths=min(depths, default=0))
    if len(depths) < 3 or len(depths) % 2 == 0:
        raise InputError(
            f"{len(depths)} depths; give an odd number of 3 or more: encoder levels, middle, decoder levels"
        )
    multiple = math.lcm(2, style.heads * (4 if style.rope else 1))
    if width % multiple:
        raise InputError(f"width {width} with {style.heads} heads; give a multiple of {multiple}")
    step = 2 ** (len(depths) // 2 + (style.attention != "full"))
    if size[0] % step or size[1] % step:
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {step}, which {len(depths) // 2 + 1} levels with "
            f"{style.attention} attention need; choose another size, or fewer depths"
        )
