"""PDE-Transformer (Holzschuh et al., "PDE-Transformer: Efficient and Versatile Transformers for Physics Simulations",
ICML 2025): a U-DiT with attention in shifted windows, for fields on a grid.

Published weights predict the next state of a simulation from the present one: `net(state, timestep 0, kind of
equation)`. In shapes, B is the batch, h x w the grid of a level, D its width, d the width of a head, and N the number
of positions in a window; channels are the last dimension inside the network.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.layers import Mlp, TimestepEmbedder, check_positive, last_linear, unpatchify
from ditlab.backbones.levels import LevelCondition, LevelNetwork
from ditlab.backbones.published import count_of
from ditlab.backbones.routing import Level, number
from ditlab.backbones.udit import FinalLayer
from ditlab.backbones.udit_grid import Conv, shuffle, unshuffle
from ditlab.backbones.windows import WindowAttention
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table: width of the first level, heads of all levels, depths in execution order."""

    width: int
    heads: int
    depths: tuple[int, ...] = (2, 5, 8, 2, 5)
    patch: int = 4


SIZES = {"S": Size(96, 4), "B": Size(192, 8), "L": Size(384, 16)}

# Parts of keys: (published, ditlab), as pattern and replacement in both directions.
READ = (
    (r"^([ty]_embedder)_(\d+)\.", r"conditions.\2.\1."),
    (r"^(encoder|decoder)_level_(\d+)\.blocks\.", r"\1s.\2."),
    (r"^latent\.blocks\.", "middle."),
    (r"^down(\d+)_\d+\.body\.0\.", r"downs.\1."),
    (r"^up\d+_(\d+)\.body\.0\.", r"ups.\1."),
    (r"^reduce_chan_level(\d+)\.", r"reduces.\1."),
    (r"\.adain_2\.linear\.", ".adaLN_modulation.1."),
    (r"\.pos_emb_funct\.cpb_mlp\.", ".positions."),
)
WRITE = (
    (r"^conditions\.(\d+)\.([ty]_embedder)\.", r"\2_\1."),
    (r"^(encoder|decoder)s\.(\d+)\.", r"\1_level_\2.blocks."),
    (r"^middle\.", "latent.blocks."),
    (r"^reduces\.(\d+)\.", r"reduce_chan_level\1."),
    (r"^(encoder|decoder)(.*)\.adaLN_modulation\.1\.", r"\1\2.adain_2.linear."),
    (r"^latent(.*)\.adaLN_modulation\.1\.", r"latent\1.adain_2.linear."),
    (r"\.attn\.positions\.", ".attn.pos_emb_funct.cpb_mlp."),
)


class PDETransformer(LevelNetwork):
    """The U-shaped window transformer; before training, its output is exactly zero.

    Args:
        width: channels of the first level; each following level doubles them.
        heads: number of attention heads of every level.
        depths: numbers of blocks of the levels in execution order: encoder, middle, decoder; an odd count.
        patch: side of a token in pixels.
        window: side of an attention window in tokens.
        periodic: the field continues at the opposite side; otherwise, attention does not pass its borders.
        outputs: number of output channels; 0 is the number of input channels.
        unit_time: the timestep input is 0 to 1, as in published weights, instead of 0 to 1000.
    """

    final_layer: "FinalLayer"
    heads_out = ("final_layer.out_proj.weight", "final_layer.out_proj.bias")
    lora_targets = ("attn.qkv", "adaLN_modulation.1")
    not_muon = ("attn.positions.0.weight", "attn.positions.2.weight")
    changeable = ("periodic",)
    marks = (
        "x_embedder.proj.weight",
        "latent.blocks.0.attn.logit_scale",
        "latent.blocks.0.attn.pos_emb_funct.cpb_mlp.0.weight",
        "final_layer.out_proj.weight",
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
        depths: Sequence[int] = SIZES["S"].depths,
        patch: int = 4,
        window: int = 8,
        periodic: bool = True,
        outputs: int = 0,
        unit_time: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, width, heads, depths, patch, window)
        if outputs and learn_variance:
            raise InputError(
                f"outputs {outputs} with learn_variance, which doubles the channels; leave one of them out"
            )
        self.out_channels = outputs or self.out_channels
        self.patch, self.window = patch, window
        levels = len(depths) // 2  # without the middle
        widths = self.widths = [width * 2**i for i in range(levels + 1)]

        def blocks(level_width: int, depth: int) -> Level:
            return Level(Block(level_width, heads, window, window // 2 * (i % 2), periodic) for i in range(depth))

        self.x_embedder = Embed(channels, width, patch)
        condition = UnitCondition if unit_time else LevelCondition
        self.conditions = nn.ModuleList([condition(classes, level) for level in widths])
        self.encoders = nn.ModuleList([blocks(widths[i], depths[i]) for i in range(levels)])
        self.downs = nn.ModuleList([Conv(level, level // 2, 3, bias=False) for level in widths[:-1]])
        self.middle = blocks(widths[-1], depths[levels])
        # Decoders are numbered by level; at full resolution, the decoder is twice as wide as the encoder.
        out = [widths[1], *widths[1:-1]]
        self.ups = nn.ModuleList([Conv(2 * level, 4 * level, 3, bias=False) for level in widths[:-1]])
        self.reduces = nn.ModuleList([Conv(2 * level, after, 1) for level, after in zip(widths[:-1], out, strict=True)])
        self.decoders = nn.ModuleList([blocks(out[i], depths[-1 - i]) for i in range(levels)])
        self.output = Conv(widths[1], widths[1], 3)
        self.final_layer = FinalLayer(widths[1], patch * patch * self.out_channels)
        self.label_tables = tuple(f"conditions.{i}.y_embedder.embedding_table.weight" for i in range(levels + 1))
        number(self.levels())
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in SIZES.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The size, the window and whether the field is periodic are not in it.
        """
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        levels = count_of(tensors, "t_embedder_") - 1
        encoders = [f"encoder_level_{i}.blocks." for i in range(levels)]
        decoders = [f"decoder_level_{i}.blocks." for i in reversed(range(levels))]
        outputs = len(tensors[cls.heads_out[0]]) // patch**2
        return {
            "channels": channels,
            "classes": cls.count_classes(len(tensors["y_embedder_0.embedding_table.weight"])),
            "learn_variance": False,
            "width": width,
            "heads": len(tensors["latent.blocks.0.attn.logit_scale"]),
            "depths": [count_of(tensors, prefix) for prefix in (*encoders, "latent.blocks.", *decoders)],
            "patch": patch,
            "unit_time": True,
        } | ({} if outputs == channels else {"outputs": outputs})

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Return the prediction of the next state, for which the released weights were trained."""
        rate = 1.0 if sizes.get("unit_time") else 1000.0
        process = {"name": "linear", "clock_rate": rate}
        return {"parametrization": "next-state", "process": process, "target": "velocity"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a published state dict to ditlab's, without copying.

        Raises:
            InputError: it has carrier tokens, which no released model uses.
        """
        if "latent.blocks.0.hat_norm1.weight" in tensors:
            raise InputError("PDE-Transformer with carrier tokens is not supported; give a model without them")
        return {replaced(key, READ): value for key, value in tensors.items()}

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        def name(key: str) -> str:
            if match := re.match(r"(down|up)s\.(\d+)\.(.*)", key):
                i = int(match[2])
                return (
                    f"down{i}_{i + 1}.body.0.{match[3]}" if match[1] == "down" else f"up{i + 1}_{i}.body.0.{match[3]}"
                )
            return replaced(key, WRITE)

        return {name(key): value for key, value in tensors.items()}

    @property
    def one_size(self) -> str:
        return ""

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return (self.patch * self.window * 2 ** (len(self.widths) - 1),) * 2

    @property
    def tokens(self) -> int:
        return self.window**2

    def levels(self) -> list[Level]:
        """Return the blocks of each level, in execution order."""
        return [*self.encoders, self.middle, *reversed(self.decoders)]

    def initialize(self) -> None:
        """Set initial weights: Xavier by default, zero for modulations and the head.

        Embedders have N(0, 0.02), except those of the last level, which the published code leaves at the default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1) if module is self.x_embedder.proj else module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for weight in self.conditions[:-1].parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        for modulation in self.modulations():
            nn.init.zeros_(last_linear(modulation.layer).weight)
        nn.init.zeros_(self.final_layer.out_proj.weight)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Fields (B, C, H, W), timestep (B,), labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        h, w = self.grid_of_input(x)
        # fmt: off
        c = [vector[:, None, None] for vector in self.conditioning(timestep, y)]  # (B, 1, 1, D) for each level
        x = skip = passed(self.encoders[0], self.x_embedder(x.to(self.dtype)), c[0], trace)  # (B, h, w, D)
        x = self.inner(unshuffle(self.downs[0](x)), c[1:], trace)                # (B, h / 2, w / 2, 2 D)
        x = passed(self.decoders[0], self.joined_at(0, x, skip), c[1], trace)  # (B, h, w, 2 D)
        x = self.final_layer(self.output(x), c[1])                               # (B, h, w, p p C)
        return unpatchify(x.flatten(1, 2), h, w, self.patch)                     # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Compute all levels but the first; `context` has the conditions of these levels and the trace."""
        conditions, trace = context
        skips: list[Tensor] = []
        for blocks, down, c in zip(self.encoders[1:], self.downs[1:], conditions[:-1], strict=True):
            x = passed(blocks, x, c, trace)
            skips.append(x)
            x = unshuffle(down(x))  # (B, h / 2, w / 2, 2 D)
        x = self.middle.run(x, conditions[-1], trace=trace)
        for i in reversed(range(1, len(self.decoders))):
            x = passed(self.decoders[i], self.joined_at(i, x, skips.pop()), conditions[i - 1], trace)
        return x

    def joined_at(self, i: int, x: Tensor, skip: Tensor) -> Tensor:
        """Compute the input of the decoder of level i from the output of the next level and the skip connection."""
        joined: Tensor = self.reduces[i](torch.cat([shuffle(self.ups[i](x)), skip], dim=-1))
        return joined


def passed(blocks: nn.Module, x: Tensor, c: Tensor, trace: Trace | None) -> Tensor:
    """Pass a grid (B, h, w, D) through the blocks of a level."""
    assert isinstance(blocks, Level)
    return blocks.run(x, c, trace=trace)


class UnitCondition(LevelCondition):
    """The condition of a level, for timesteps in 0..1."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes, width)
        self.t_embedder = UnitTimestepEmbedder(width)


class UnitTimestepEmbedder(TimestepEmbedder):
    """Embeds timesteps in 0..1 as others do those in 0..1000."""

    rate = 1000


class Embed(nn.Module):
    """Project the p x p patches of a field (B, C, H, W) to a grid (B, h, w, D)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).movedim(1, -1).contiguous()


class Block(nn.Module):
    """Attention and MLP with shift, scale and gate from the condition; the gate is added to 1."""

    def __init__(self, width: int, heads: int, window: int, shift: int, periodic: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window, shift, periodic)
        self.mlp = Mlp(width, approximate="none")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = torch.addcmul(x, 1 + gate_a, self.attn(torch.addcmul(shift_a, self.norm1(x), 1 + scale_a)))
        return torch.addcmul(x, 1 + gate_m, self.mlp(torch.addcmul(shift_m, self.norm2(x), 1 + scale_m)))


def replaced(key: str, patterns: Sequence[tuple[str, str]]) -> str:
    """Apply replacements to a key, one after the other."""
    for pattern, replacement in patterns:
        key = re.sub(pattern, replacement, key)
    return key


def check_sizes(size: tuple[int, int], width: int, heads: int, depths: Sequence[int], patch: int, window: int) -> None:
    """Raise an `InputError` if sizes do not fit together."""
    check_positive(width=width, heads=heads, patch=patch, depths=min(depths, default=0))
    if window < 2:
        raise InputError(f"window {window}; give 2 or more")
    if len(depths) < 3 or len(depths) % 2 == 0:
        raise InputError(
            f"{len(depths)} depths; give an odd number of 3 or more: encoder levels, middle, decoder levels"
        )
    if width % (multiple := math.lcm(2, heads)):
        raise InputError(f"width {width} with {heads} heads; give a multiple of {multiple}")
    step = patch * window * 2 ** (len(depths) // 2)
    if size[0] % step or size[1] % step:
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {step} (patch {patch}, window {window} and "
            f"{len(depths) // 2 + 1} levels); choose another size, or a smaller window"
        )
