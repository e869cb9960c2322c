"""U-DiT (Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers", NeurIPS 2024).

A U-Net of DiT blocks on every pixel of the latent. Attention runs apart in the four sub-grids of a level (even and odd
rows, even and odd columns), which share their weights. Every rung of the paper's ladder is a setting, see `LADDER`.
B images, h x w the grid of a level, D its width, d the width of a head; channels come last inside the network.
"""

import copy
import math
import re
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.depthwise import depthwise_conv
from ditlab.backbones.layers import LabelEmbedder, LinearGELU, Mlp, TimestepEmbedder, attend, last_linear, norm
from ditlab.backbones.routing import record
from ditlab.core.errors import InputError, lookup
from ditlab.core.modules import Unfilled
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table: width of the first level, heads of all, depth of each level down and up again."""

    width: int
    heads: int
    depths: tuple[int, ...] = (2, 5, 8, 5, 2)


SIZES = {"S": Size(96, 4), "B": Size(192, 8), "L": Size(384, 16)}

_PLAIN = {"cosine": False, "rope": False, "feed_forward": "plain"}
# Tables 1, 7 and 9. The paper's U-DiT-T is not published; width 48, 2 heads and depths (1, 2, 4, 2, 1) give the costs
# that it prints. "Slim" is full attention at width 36.
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
LARGEST_SCALE = math.log(100)  # of the logits of cosine attention


class Style(NamedTuple):
    """What all blocks of a network have in common."""

    heads: int
    attention: str
    downsampler: str
    cosine: bool
    rope: bool
    feed_forward: str


class UDiT(Backbone):
    """The U-shaped transformer; initialized as published, so that its first output is exactly zero.

    Args:
        width: channels of the first level; each further level doubles it.
        heads: number of attention heads of every level.
        depths: blocks of each level, down and up again; an odd count. The paper's block is two of attention + MLP.
        attention: "full"; "key-value": only keys and values are down-sampled, to every other row and column; "token":
            queries, keys and values are down-sampled together, into sub-grids.
        downsampler: layer before down-sampling: a "depthwise" convolution, one with a "shortcut", or none
            ("unshuffle").
        cosine: attention on normalized queries and keys with a learned scale.
        rope: rotary positions.
        feed_forward: "plain" MLP, with a "depthwise" convolution in its middle, or with that one "reparametrised".
    """

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
        levels = len(depths) // 2  # that are left on the way down and entered again on the way up
        widths = self.widths = [width * 2**i for i in range(levels + 1)]

        self.x_embedder = Conv(channels, width, 3)
        self.conditions = nn.ModuleList([LevelCondition(classes, each) for each in widths])
        down, (middle, *up) = depths[:levels], depths[levels:]
        self.encoders = nn.ModuleList([Encoder(*sizes, style) for sizes in zip(widths[:-1], down, strict=True)])
        self.middle = Blocks(widths[-1], middle, style)
        out = [*widths[-2:0:-1], widths[1]]  # at full resolution the way up is twice as wide as the way down
        self.decoders = nn.ModuleList([Decoder(*sizes, style) for sizes in zip(widths[-2::-1], out, up, strict=True)])
        self.output = Conv(widths[1], widths[1], 3)
        self.final_layer = FinalLayer(widths[1], self.out_channels)
        self.label_tables = tuple(
            f"conditions.{i}.y_embedder.embedding_table.weight" for i in range(len(self.conditions))
        )
        first = 0
        for blocks in self.levels():
            blocks.first, first = first, first + len(blocks)
        self.initialise()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in SIZES.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments of `create` that a published state dict tells: all but the size, which is free."""
        width, channels = tensors["x_embedder.proj.weight"].shape[:2]
        stages = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
        return {
            "channels": channels,
            "classes": cls.count_classes(len(tensors["y_embedder_1.embedding_table.weight"])),
            "learn_variance": len(tensors["final_layer.out_proj.weight"]) == 2 * channels,
            "width": width,
            "heads": len(tensors["latent.0.attn1.logit_scale"]),
            "depths": [len({key.split(".")[1] for key in tensors if key.startswith(f"{stage}.")}) for stage in stages],
        }

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict of the full form, as it was trained, under our keys; without a copy."""
        ours = {}
        for key, value in tensors.items():
            # Their block is a pair of ours: block 3, attn2 becomes block 7, attn.
            key = re.sub(rf"\.(\d+)\.({PARTS})([12])\.", lambda m: f".{2 * int(m[1]) + int(m[3]) - 1}.{m[2]}.", key)
            for published, own in PUBLISHED:
                key = key.replace(published, own)
            ours[key] = value.flatten(1) if POINTWISE.search(key) else value
        return ours

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `from_published`.

        Raises:
            InputError: other settings than the full form on three levels, which the published code is for.
        """
        fused = "middle.0.mlp.project_in.1.weight" not in tensors
        if fused or "decoders.1.up.weight" not in tensors or "decoders.2.up.weight" in tensors:
            raise InputError("only U-DiT in its full form, not fused and on three levels, has a published layout")
        theirs = {}
        for key, value in tensors.items():
            if POINTWISE.search(key):
                value = value[:, :, None, None]
            for published, own in PUBLISHED:
                key = key.replace(own, published)
            key = re.sub(rf"\.(\d+)\.({PARTS})\.", lambda m: f".{int(m[1]) // 2}.{m[2]}{int(m[1]) % 2 + 1}.", key)
            theirs[key] = value
        return theirs

    @property
    def tokens(self) -> int:
        pixels = self.size[0] * self.size[1]
        return pixels // 4 if self.style.attention == "token" else pixels

    def levels(self) -> list["Blocks"]:
        """The blocks of each level, in the order in which they run."""
        return [module for module in self.modules() if isinstance(module, Blocks)]

    @property
    def repeated(self) -> list[nn.Module]:
        return [block for blocks in self.levels() for block in blocks]

    @property
    def matrix_width(self) -> int:
        return self.x_embedder.out_channels

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [condition(timestep, label)[:, 0, 0] for condition in self.conditions]

    def modulations(self) -> list[Modulation]:
        # The condition of a level is as wide as its blocks, but at full resolution on the way up.
        vector_of = {width: i for i, width in enumerate(self.widths)}
        layers = [block.get_submodule("adaLN_modulation") for block in (*self.repeated, self.final_layer)]
        linears = [last_linear(layer) for layer in layers]
        return [
            Modulation(layer, vector_of[linear.in_features], linear.out_features)
            for layer, linear in zip(layers, linears, strict=True)
        ]

    def embedders(self) -> Embedders:
        parts = [(each.get_submodule("t_embedder"), each.get_submodule("y_embedder")) for each in self.conditions]
        return Embedders(*zip(*parts, strict=True))

    def initialise(self) -> None:
        """Xavier for linears and convolutions, N(0, 0.02) for the embedders, zero for all modulations and the head."""
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

    def inner(self, x: Tensor, *rest: Any) -> Tensor:
        """All levels but the first; `rest` is the condition of each level, and the trace."""
        c, trace = rest
        skips: list[Tensor] = []
        for encoder, each in zip(self.encoders[1:], c[:-1], strict=True):
            x, skip = encoder(x, each, trace)  # (B, h / 2, w / 2, 2 D), (B, h, w, D)
            skips.append(skip)
        x = self.middle(x, c[-1], trace)  # (B, h, w, D)
        for decoder, each in zip(self.decoders[:-1], c[-2::-1], strict=True):
            x = decoder(x, skips.pop(), each, trace)  # (B, 2 h, 2 w, D / 2)
        return x

    @torch.no_grad()
    def fused(self) -> "UDiT":
        """The network without re-parametrisation: products of linears and sums of convolutions become one layer each.

        It is an ordinary U-DiT with a `config` of its own, shares nothing with this network, and computes the same.
        """
        merged = {id(module): module.merged() for module in self.modules() if isinstance(module, Chain | Branches)}
        if not merged:
            return self
        net = copy.deepcopy(self, merged)  # the copy has the merged layers where it would have copied these
        downsampler = self.style.downsampler.replace("shortcut", "depthwise")
        feed_forward = self.style.feed_forward.replace("reparametrised", "depthwise")
        net.style = self.style._replace(downsampler=downsampler, feed_forward=feed_forward)
        net.config = self.config | {"downsampler": downsampler, "feed_forward": feed_forward}
        return net


class Encoder(nn.Module):
    """One level on the way down: its blocks, and the step to half the grid at twice the width."""

    def __init__(self, width: int, depth: int, style: Style) -> None:
        super().__init__()
        self.blocks = Blocks(width, depth, style)
        self.down = Conv(width, width // 2, 3, bias=False)

    def forward(self, x: Tensor, c: Tensor, trace: Trace | None) -> tuple[Tensor, Tensor]:
        x = self.blocks(x, c, trace)
        return unshuffle(self.down(x)), x


class Decoder(nn.Module):
    """One level on the way up: the step from half the grid, the skip, and its blocks at their own width."""

    def __init__(self, width: int, out: int, depth: int, style: Style) -> None:
        super().__init__()
        self.up = Conv(2 * width, 4 * width, 3, bias=False)
        self.reduce = nn.Linear(2 * width, out)
        self.blocks = Blocks(out, depth, style)

    def forward(self, x: Tensor, skip: Tensor, c: Tensor, trace: Trace | None) -> Tensor:
        x = torch.cat([shuffle(self.up(x)), skip], dim=-1)  # (B, h, w, 2 D)
        return self.blocks(self.reduce(x), c, trace)


class LevelCondition(nn.Module):
    """Time and label as one vector of the width of a level."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (self.t_embedder(t) + self.y_embedder(y))[:, None, None]  # (B, 1, 1, D)


class Blocks(nn.ModuleList):
    """The blocks of one level, two for each of the paper's."""

    def __init__(self, width: int, depth: int, style: Style) -> None:
        super().__init__([Block(width, style) for _ in range(2 * depth)])
        self.rotated = width // style.heads if style.rope else 0
        self.first = 0  # number of the first block, among all of the network

    def forward(self, x: Tensor, c: Tensor, trace: Trace | None = None) -> Tensor:
        table = rotations(x.shape[1], x.shape[2], self.rotated, x.device) if self.rotated else None
        for i, block in enumerate(self, start=self.first):
            x = block(x, c, table)  # (B, h, w, D)
            record(trace, i, x)
        return x


class Block(nn.Module):
    """Shift, scale and gate for attention and feed-forward; the identity at initialisation."""

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
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # of the shape of x
        if self.attention == "key-value":
            k, v = self.downsampler(torch.cat([k, v], dim=-1))[:, ::2, ::2].chunk(2, dim=-1)  # (B, h / 2, w / 2, D)
        x = self.attend(q, k, v, table)
        return interleave(x) if self.attention == "token" else x  # (B, h, w, D)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None) -> Tensor:
        """Queries (B, h, w, D), keys and values of the same grid or of every other row and column of it."""
        h, w = q.shape[1:3]
        q, k, v = (torch.unflatten(part, -1, (self.heads, -1)) for part in (q, k, v))  # (B, h, w, heads, d)
        if table is not None:
            step = h // k.shape[1]
            q, k = rotate(q, table[:h, :w]), rotate(k, table[:h:step, :w:step])
        if self.logit_scale is not None:
            scale = self.logit_scale.clamp(max=LARGEST_SCALE).exp().flatten(1)  # (heads, 1)
            q, k = q * (scale * unit(q)), k * unit(k)
        q, k, v = (part.to(v.dtype).flatten(1, 2).transpose(1, 2) for part in (q, k, v))  # (B, heads, h w, d)
        x = attend(q, k, v, scale=None if self.logit_scale is None else 1.0)
        return self.proj(x.transpose(1, 2).flatten(2)).unflatten(1, (h, w))


class FeedForward(nn.Module):
    """D -> 2 D -> D with GELU and a depth-wise convolution between.

    Re-parametrised, each linear layer is trained as a product of two, the convolution as a sum of three and a shortcut.
    They are merged before they meet the pixels, with their gradients: training costs what the fused network does.
    """

    def __init__(self, width: int, reparametrised: bool) -> None:
        super().__init__()
        hidden = 2 * width
        self.project_in: nn.Module = LinearGELU(width, hidden, "none")
        self.dwconv: nn.Module = Conv(hidden, hidden, 5, groups=hidden)
        self.project_out: nn.Module = nn.Linear(hidden, width)
        if reparametrised:
            self.project_in, self.project_out = Chain(width, width, hidden, gelu=True), Chain(hidden, width, width)
            self.dwconv = Branches(hidden, (5, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.project_out(self.dwconv(self.project_in(x)))


class FinalLayer(nn.Module):
    """Adaptive layer norm and the convolution to the channels of the output."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = norm(width, affine=False)
        self.out_proj = Conv(width, out, 3)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.out_proj(torch.addcmul(shift, self.norm_final(x), 1 + scale))


class Conv(nn.Conv2d):
    """A convolution that keeps the grid, with channels last."""

    def __init__(self, width: int, out: int, kernel: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(width, out, kernel, padding=kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(-1, 1)
        x = super().forward(x) if self.groups == 1 else depthwise_conv(x, self.weight, self.bias)
        return x.movedim(1, -1)


class Chain(nn.Sequential):
    """Two linear layers with nothing between them, applied as one wherever that is less work; `gelu` puts it behind."""

    def __init__(self, width: int, middle: int, out: int, gelu: bool = False) -> None:
        super().__init__(nn.Linear(width, middle), nn.Linear(middle, out))
        self.sizes, self.gelu = (width, middle, out), gelu

    def forward(self, x: Tensor) -> Tensor:
        width, middle, out = self.sizes
        pixels = x.numel() // width
        if pixels * (width * middle + middle * out) < (pixels + middle) * width * out:  # at wide, coarse levels
            x = super().forward(x)  # type: ignore[no-untyped-call]
        else:
            weight, bias = self.product()
            x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.gelu(x) if self.gelu else x

    def product(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one layer, with their gradients."""
        w1, b1, w2, b2 = (value.to(precise(value.dtype)) for value in self.parameters())
        return w2 @ w1, torch.addmv(b2, w2, b1)

    def merged(self) -> nn.Linear:
        """The one layer."""
        weight, bias = self.product()
        with Unfilled():
            width, out = self.sizes[0], self.sizes[2]
            layer = LinearGELU(width, out, "none") if self.gelu else nn.Linear(width, out)
        return fill(layer, weight, bias, self)


class Branches(nn.ModuleList):
    """The sum of a shortcut and depth-wise convolutions, the largest first, applied as one."""

    def __init__(self, width: int, kernels: Sequence[int]) -> None:
        super().__init__([Conv(width, width, kernel, groups=width) for kernel in kernels])

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.sum()
        return depthwise_conv(x.movedim(-1, 1), weight.to(x.dtype), bias.to(x.dtype)).movedim(1, -1)

    def sum(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution, with their gradients."""
        values = [value.to(precise(value.dtype)) for value in self.parameters()]
        weights, biases = values[::2], values[1::2]
        kernel = weights[0].shape[-1]
        shortcut = torch.zeros_like(weights[0])
        shortcut[..., kernel // 2, kernel // 2] = 1
        wide = [F.pad(each, [(kernel - each.shape[-1]) // 2] * 4) for each in weights]
        return torch.stack([shortcut, *wide]).sum(0), torch.stack(biases).sum(0)

    def merged(self) -> Conv:
        """The one convolution."""
        weight, bias = self.sum()
        width, _, kernel, _ = weight.shape
        with Unfilled():
            conv = Conv(width, width, kernel, groups=width)
        return fill(conv, weight, bias, self)


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
ATTENTIONS = {"full": 0, "key-value": 2, "token": 1}  # how many of (x) or (k, v) are down-sampled


def fill(layer: nn.Module, weight: Tensor, bias: Tensor, like: nn.Module) -> Any:
    """The layer with these values, in the precision and mode of another one."""
    first = next(like.parameters())
    layer.load_state_dict({"weight": weight.to(first.dtype), "bias": bias.to(first.dtype)}, assign=True)
    return layer.train(like.training).requires_grad_(first.requires_grad)


def precise(dtype: torch.dtype) -> torch.dtype:
    """At least float32, so that merging half-precision weights rounds once only."""
    return torch.promote_types(dtype, torch.float32)


def split(x: Tensor) -> Tensor:
    """Grid (B, h, w, D) -> its sub-grids of even and odd rows and columns (4 B, h / 2, w / 2, D)."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, 2)), 1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, D)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def interleave(x: Tensor) -> Tensor:
    """The inverse of `split`."""
    x = torch.unflatten(x, 0, (-1, 2, 2))  # (B, 2, 2, h / 2, w / 2, D)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


def unshuffle(x: Tensor) -> Tensor:
    """Grid (B, h, w, D) -> (B, h / 2, w / 2, 4 D), the four neighbours of a channel side by side."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, 2)), 1, (-1, 2))  # (B, h / 2, 2, w / 2, 2, D)
    return x.permute(0, 1, 3, 5, 2, 4).flatten(3)


def shuffle(x: Tensor) -> Tensor:
    """The inverse of `unshuffle`."""
    x = torch.unflatten(x, 3, (-1, 2, 2))  # (B, h, w, D / 4, 2, 2)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)


def rotations(h: int, w: int, d: int, device: torch.device) -> Tensor:
    """RoPE2D: cosine and sine (h, w, 1, d / 2, 2), for each pair of neighbouring channels.

    In turns, a pair is turned by its column and by its row, at d / 4 frequencies.
    """
    frequencies = 10000 ** (-torch.arange(0, d, 4, device=device) / d)
    rows, columns = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
    places = torch.stack([columns, rows], dim=-1)[:, :, None, None]  # (h, w, 1, 1, 2)
    angles = (places * frequencies[:, None]).flatten(3)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of channels of (B, h, w, heads, d) by the angles of its place; at least float32."""
    pairs = torch.unflatten(x.to(precise(x.dtype)), -1, (-1, 2))
    if torch.compiler.is_compiling():  # a compiler fuses this; other runtimes know no complex numbers
        (a, b), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)


def unit(x: Tensor) -> Tensor:
    """1 / |x| over the last dimension."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12).reciprocal()


def check_sizes(size: tuple[int, int], width: int, depths: Sequence[int], style: Style) -> None:
    """Refuse settings that do not exist or do not fit together."""
    lookup(ATTENTIONS, style.attention, "attention")
    lookup(DOWNSAMPLERS, style.downsampler, "downsampler")
    lookup(FEED_FORWARDS, style.feed_forward, "feed_forward")
    for what, value in (("width", width), ("heads", style.heads), ("depths", min(depths, default=0))):
        if value < 1:
            raise InputError(f"{what} {value}; give 1 or more")
    if len(depths) < 3 or len(depths) % 2 == 0:
        raise InputError(f"{len(depths)} depths; give an odd count from 3: the levels down, the middle, the levels up")
    multiple = math.lcm(2, style.heads * (4 if style.rope else 1))
    if width % multiple:
        raise InputError(f"width {width} does not suit {style.heads} heads; give a multiple of {multiple}")
    step = 2 ** (len(depths) // 2 + (style.attention != "full"))
    if size[0] % step or size[1] % step:
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {step}, as {len(depths) // 2 + 1} levels with "
            f"{style.attention} attention need; choose another size, or fewer depths"
        )


# Keys of published state dicts, theirs and ours; the number of a block is reckoned apart.
PUBLISHED = (
    ("x_embedder.proj.", "x_embedder."),
    ("t_embedder_1.", "conditions.0.t_embedder."),
    ("t_embedder_2.", "conditions.1.t_embedder."),
    ("t_embedder_3.", "conditions.2.t_embedder."),
    ("y_embedder_1.", "conditions.0.y_embedder."),
    ("y_embedder_2.", "conditions.1.y_embedder."),
    ("y_embedder_3.", "conditions.2.y_embedder."),
    ("encoder_level_1.", "encoders.0.blocks."),
    ("encoder_level_2.", "encoders.1.blocks."),
    ("latent.", "middle."),
    ("decoder_level_2.", "decoders.0.blocks."),
    ("decoder_level_1.", "decoders.1.blocks."),
    ("down1_2.body.0.", "encoders.0.down."),
    ("down2_3.body.0.", "encoders.1.down."),
    ("up3_2.body.0.", "decoders.0.up."),
    ("up2_1.body.0.", "decoders.1.up."),
    ("reduce_chan_level2.", "decoders.0.reduce."),
    ("reduce_chan_level1.", "decoders.1.reduce."),
    ("attn.to_qkv.", "attn.qkv."),
    ("attn.to_out.", "attn.proj."),
    ("attn.downsampler.layer.", "attn.downsampler.0."),
)
PARTS = "attn|mlp|adaLN_modulation"
POINTWISE = re.compile(r"(attn\.proj|reduce|project_(in|out)\.[01])\.weight")  # published as convolutions of one pixel
