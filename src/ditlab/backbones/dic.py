"""DiC (Tian et al., "DiC: Rethinking Conv3x3 Designs in Diffusion Models", CVPR 2025): a U-Net of 3x3 convolutions.

There is no attention. Each level embeds timestep and label in its own width, and every third block of the decoder
receives a skip connection. In shapes, B is the batch, h x w the grid of a level, and D its width.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.base import Embedders
from ditlab.backbones.layers import LabelEmbedder, TimestepEmbedder, check_positive, last_linear, norm
from ditlab.backbones.levels import LevelNetwork
from ditlab.backbones.published import count_of
from ditlab.backbones.routing import Level, number, record
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table: width of the first level, depths of all levels."""

    width: int
    depths: tuple[int, ...]


SIZES = {
    "S": Size(96, (6, 6, 5, 6, 6)),
    "B": Size(192, (6, 6, 5, 6, 6)),
    "XL": Size(384, (7, 7, 8, 7, 7)),
    "H": Size(384, (14, 14, 10, 14, 14)),
}
SKIPPED = 3  # every third decoder block has a skip connection
GROUPS = 32  # most groups of a group norm
BLOCK = re.compile(r"((?:enc|lat|dec)_blocks\.\d+\.\d+\.)")  # start of the keys of a block
DEPTHS = 5  # number of depths of the published networks


class DiC(LevelNetwork):
    """The convolutional U-Net, initialized as published: before training, its output is exactly zero.

    Args:
        width: channels of the first level; each following level doubles them.
        depths: numbers of blocks of the levels: encoder, middle, decoder; an odd count, and the same for the encoder
            and the decoder level of a grid.
    """

    final_layer: "FinalLayer"
    channels_first = True
    heads_out = ("final_layer.out_proj.weight", "final_layer.out_proj.bias")
    muon_kernels = True
    lora_targets = ("adaLN_modulation.1",)
    marks = ("x_embedder.proj.weight", "enc_blocks.0.0.conv.conv0.weight", "final_layer.out_proj.weight")

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        width: int,
        depths: Sequence[int] = SIZES["S"].depths,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, width, depths)
        levels = len(depths) // 2  # without the middle
        widths = self.widths = [width * 2**i for i in range(levels + 1)]
        down, middle, up = depths[:levels], depths[levels], depths[levels + 1 :]

        self.x_embedder = nn.Sequential(OrderedDict(proj=nn.Conv2d(channels, width, 3, padding=1)))
        self.t_embedder_ls = nn.ModuleList([TimestepEmbedder(level) for level in widths])
        self.y_embedder_ls = nn.ModuleList([LabelEmbedder(classes, level) for level in widths])
        self.enc_blocks = nn.ModuleList([level_of(*sizes) for sizes in zip(widths[:-1], down, strict=True)])
        self.downs = nn.ModuleList([Resample(level, level // 2, nn.PixelUnshuffle(2)) for level in widths[:-1]])
        self.lat_blocks = nn.ModuleList([level_of(widths[-1], middle)])
        self.ups = nn.ModuleList([Resample(level, 2 * level, nn.PixelShuffle(2)) for level in widths[:0:-1]])
        self.dec_blocks = nn.ModuleList([Decoder(*sizes) for sizes in zip(widths[-2::-1], up, strict=True)])
        self.output = nn.Conv2d(width, width, 3, padding=1)
        self.final_layer = FinalLayer(width, self.out_channels)
        self.label_tables = tuple(f"y_embedder_ls.{i}.embedding_table.weight" for i in range(levels + 1))
        number(self.levels())
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in SIZES.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict: all but the size."""
        width, channels = tensors["x_embedder.proj.weight"].shape[:2]
        parts = ("enc_blocks", "lat_blocks", "dec_blocks")
        return {
            "channels": channels,
            "classes": cls.count_classes(len(tensors["y_embedder_ls.0.embedding_table.weight"])),
            "learn_variance": len(tensors[cls.heads_out[0]]) == 2 * channels,
            "width": width,
            "depths": [
                count_of(tensors, f"{part}.{i}.") for part in parts for i in range(count_of(tensors, f"{part}."))
            ],
        }

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        keys = {key: re.sub(f"{BLOCK.pattern}conv\\.", r"\1", key) for key in tensors}
        return {keys[key].replace(".affine.", ".adaLN_modulation."): value for key, value in tensors.items()}

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the keys of a ditlab state dict to the published ones.

        Raises:
            InputError: the network does not have the levels of the published code.
        """
        if (depths := 2 * count_of(tensors, "enc_blocks.") + 1) != DEPTHS:
            raise InputError(f"DiC with {depths} depths has no published layout, which has {DEPTHS}; convert to ditlab")
        keys = {key: BLOCK.sub(r"\1conv.", key) for key in tensors}
        return {keys[key].replace(".conv.adaLN_modulation.", ".conv.affine."): value for key, value in tensors.items()}

    @property
    def one_size(self) -> str:
        return ""

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return (2 ** (len(self.widths) - 1),) * 2

    @property
    def tokens(self) -> int:
        return self.size[0] * self.size[1]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        pairs = zip(self.t_embedder_ls, self.y_embedder_ls, strict=True)
        return [embed_time(timestep) + embed_label(label) for embed_time, embed_label in pairs]

    def embedders(self) -> Embedders:
        return Embedders([*self.t_embedder_ls], [*self.y_embedder_ls])

    def initialize(self) -> None:
        """Set initial weights: Xavier by default, N(0, 0.02) for embedders, zero for the head and its modulation.

        The published code means to set the gates of the blocks to zero too, but does not.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in (*self.t_embedder_ls, *self.y_embedder_ls):
            for weight in embedder.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.final_layer.out_proj.weight)
        nn.init.zeros_(last_linear(self.final_layer.adaLN_modulation).weight)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 as published, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        # fmt: off
        c = self.conditioning(timestep, y)                      # (B, D) for each level
        x = self.x_embedder(x.to(self.dtype))                   # (B, D, H, W)
        x, skips = through(self.enc_blocks[0], x, c[0], trace)  # (B, D, H, W)
        x = self.inner(self.downs[0](x), c[1:], trace)          # (B, 2 D, H / 2, W / 2)
        x = self.dec_blocks[-1](self.ups[-1](x), skips, c[0], trace)
        return self.final_layer(self.output(x), c[0])           # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Compute all levels but the first; `context` has the conditions of these levels and the trace."""
        conditions, trace = context
        levels: list[list[Tensor]] = []
        for blocks, down, c in zip(self.enc_blocks[1:], self.downs[1:], conditions[:-1], strict=True):
            x, skips = through(blocks, x, c, trace)
            levels.append(skips)
            x = down(x)
        x, _ = through(self.lat_blocks[0], x, conditions[-1], trace)
        for blocks, up, c in zip(self.dec_blocks[:-1], self.ups[:-1], conditions[-2::-1], strict=True):
            x = blocks(up(x), levels.pop(), c, trace)
        return x


def level_of(width: int, depth: int) -> Level:
    """Return the blocks of an encoder level, or of the middle."""
    return Level(Block(width, width) for _ in range(depth))


def through(blocks: nn.Module, x: Tensor, c: Tensor, trace: Trace | None) -> tuple[Tensor, list[Tensor]]:
    """Pass x (B, D, h, w) through blocks; returns the output, and the outputs of all blocks."""
    assert isinstance(blocks, Level)
    outputs = []
    for i, block in enumerate(blocks, start=blocks.first):
        x = block(x, c)
        record(trace, i, x)
        outputs.append(x)
    return x, outputs


class Block(nn.Module):
    """Two convolutions with a gate; the second one is after a norm that the condition scales and shifts."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm0, self.conv0 = group_norm(width), nn.Conv2d(width, out, 3, padding=1)
        self.norm1, self.conv1 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(out, 3 * out))
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gate, scale, shift = self.adaLN_modulation(c)[:, :, None, None].chunk(3, dim=1)  # (B, D, 1, 1) each
        update = self.conv0(F.gelu(self.norm0(x)))
        update = self.conv1(F.gelu(torch.addcmul(shift, self.norm1(update), 1 + scale)))
        return torch.addcmul(self.skip(x), gate, update)


class Decoder(Level):
    """The blocks of a decoder level, of which some also receive the output of their mirror image in the encoder."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(Block(width if i % SKIPPED else 2 * width, width) for i in range(depth))

    def forward(self, x: Tensor, skips: list[Tensor], c: Tensor, trace: Trace | None) -> Tensor:
        for i, block in enumerate(self):
            x = block(x if i % SKIPPED else torch.cat([x, skips[-1 - i]], dim=1), c)
            record(trace, self.first + i, x)
        return x


class Resample(nn.Module):
    """A convolution, then half or twice the grid."""

    def __init__(self, width: int, out: int, shuffle: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), shuffle)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class FinalLayer(nn.Module):
    """Adaptive layer norm over the channels, then a convolution to the output channels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = norm(width, affine=False)
        self.out_proj = nn.Conv2d(width, out, 3, padding=1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, :, None, None].chunk(2, dim=1)
        x = self.norm_final(x.movedim(1, -1)).movedim(-1, 1)
        return self.out_proj(torch.addcmul(shift, x, 1 + scale))


def group_norm(width: int) -> nn.GroupNorm:
    """Return a group norm with at least four channels in a group."""
    return nn.GroupNorm(min(GROUPS, width // 4), width)


def check_sizes(size: tuple[int, int], width: int, depths: Sequence[int]) -> None:
    """Raise an `InputError` if sizes do not fit together."""
    check_positive(width=width, depths=min(depths, default=0))
    levels = len(depths) // 2
    if len(depths) < 3 or len(depths) % 2 == 0 or [*depths[:levels]] != [*depths[:levels:-1]]:
        raise InputError(
            f"depths {', '.join(map(str, depths))}; give an odd number of 3 or more, and the same for the encoder and "
            "the decoder level of a grid, such as 6, 6, 5, 6, 6"
        )
    if width % 4 or any(level % min(GROUPS, level // 4) for level in (width << i for i in range(levels + 1))):
        raise InputError(f"width {width} cannot be normalized in groups at all levels; give a multiple of {GROUPS}")
    if size[0] % 2**levels or size[1] % 2**levels:
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {2**levels}, which {levels + 1} levels need; choose another "
            "size, or fewer depths"
        )
