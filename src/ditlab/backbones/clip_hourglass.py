"""ClipHourglass: attention over space and time on a coarse grid between convolutions on frames, for small budgets.

It is the network of `ditlab.backbones.hourglass` for clips. Convolutions see each frame (or group of frames) alone; the
transformer blocks of the inner grid are those of VideoDiT, whose attention covers all positions of all frames, or first
a frame and then all times. In shapes, B is the batch, T the number of frames of tokens, h x w the grid of a level,
N = h w, D its width, q the number of frames of a token, and T' is T, or 1 if all frames have the same condition.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.any_size import check_divisible
from ditlab.backbones.base import Modulation
from ditlab.backbones.dit_blocks import Style
from ditlab.backbones.hourglass import (
    ConvBlock,
    Decoder,
    Encoder,
    depth_to_space,
    initialize_hourglass,
    modulation,
    normalized,
)
from ditlab.backbones.layers import LabelEmbedder, TimestepEmbedder, check_positive, last_linear
from ditlab.backbones.positions import clip_rotations, frame_rotations, rotations
from ditlab.backbones.routing import Level, number, record
from ditlab.backbones.text import TextEmbedder, text_shape
from ditlab.backbones.video import FrameConditioned, Grid, check_width
from ditlab.backbones.videodit import FactorizedBlock, FullBlock, check_heads
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace


class ClipHourglass(FrameConditioned):
    """Convolutions on frames outside, space-time transformer blocks inside; before training, its output is zero.

    Args:
        width: channels of the inner grid, and of the condition.
        depth: number of transformer blocks of the inner grid, each after a convolution block.
        heads: number of attention heads.
        outer: channels of the outer levels; each level has twice the grid of the next one.
        outer_depth: convolution blocks of each outer level, in the encoder and in the decoder.
        patch: side of the squares of pixels (or latent positions) that become channels before the first level.
        patch_frames: number of frames that become channels.
        space_time: "full" (all positions of a clip attend to each other) or "factorized" (within frames, then time).
        text_length: largest number of text tokens; 0 is no text condition. The mean of the text joins the condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    muon_kernels = True
    heads_out = ("head.weight", "head.bias")

    def __init__(
        self,
        *,
        size: tuple[int, int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        width: int,
        depth: int,
        heads: int,
        outer: Sequence[int] = (96,),
        outer_depth: int = 1,
        patch: int = 4,
        patch_frames: int = 2,
        space_time: Literal["factorized", "full"] = "full",
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, patch_frames=patch_frames, outer=min(outer, default=1))
        check_width(width, heads, patch)
        check_heads(width, heads)
        if outer_depth < 0:
            raise InputError(f"outer_depth {outer_depth}; give 0 or more")
        self.patch, self.outer_patch, self.patch_frames = patch * 2 ** len(outer), patch, patch_frames
        check_divisible(size, self.side_multiples)
        block = lookup({"factorized": FactorizedGridBlock, "full": FullGridBlock}, space_time, "space_time")
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.full, self.head_width = space_time == "full", width // heads
        self.label_tables = () if self.text else self.label_tables
        widths = [*outer, width]
        for i, (make, arguments) in enumerate(self.rotations(self.grid)):
            self.register_buffer(f"rotation{i}", make(*arguments), persistent=False)
        style = Style(width, heads, qk_norm=True, rms_norm=False, swiglu=False, rotation=None)
        self.stem = nn.Conv2d(channels * patch_frames * patch**2, widths[0], 3, padding=1)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder: LabelEmbedder | TextEmbedder
        self.y_embedder = TextEmbedder(width, self.text, heads) if self.text else LabelEmbedder(classes, width)
        self.encoders = nn.ModuleList(
            Encoder(*pair, width, outer_depth) for pair in zip(outer, widths[1:], strict=True)
        )
        self.blocks = Level(layer for _ in range(depth) for layer in (ConvBlock(width, width), block(style)))
        self.decoders = nn.ModuleList(
            Decoder(side, below, width, outer_depth) for side, below in zip(outer[::-1], widths[:0:-1], strict=True)
        )
        self.final_modulation = modulation(width, 2 * widths[0])
        self.head = nn.Conv2d(widths[0], self.out_channels * patch_frames * patch**2, 3, padding=1)
        initialize_hourglass(self, [*(last_linear(part.layer) for part in self.modulations()), self.head])
        if isinstance(self.y_embedder, TextEmbedder):
            self.y_embedder.initialize()
        number(self.levels())

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Two sizes for small budgets."""
        return {
            "XS": {"width": 192, "depth": 2, "heads": 4, "outer": (96,)},
            "S": {"width": 256, "depth": 4, "heads": 4, "outer": (128,)},
        }

    @property
    def tokens(self) -> int:
        return self.tokens_at(self.size) if self.full else super().tokens

    @property
    def repeated(self) -> list[nn.Module]:
        return [block for blocks in self.levels() for block in blocks]

    def levels(self) -> list[Level]:
        """Return the blocks of each level, in execution order."""
        return [module for module in self.modules() if isinstance(module, Level)]

    def modulations(self) -> list[Modulation]:
        layers = [module for name, module in self.named_modules() if name.endswith("odulation")]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Clips (B, C, T, H, W), timestep (B,) or (B, T), labels (B,) or text -> (B, out_channels, T, H, W).

        An image is a clip of one frame. If a token has several frames, it is repeated to fill them.
        """
        self.check_clip(x)
        clips, _, frames = x.shape[:3]
        grid = self.grid_at(x.shape[2:])
        c = self.condition(timestep, condition, frames)  # (B, T', D)
        if frames < self.patch_frames:
            x = x.expand(-1, -1, self.patch_frames, -1, -1)
        # fmt: off
        x = torch.unflatten(x.to(self.dtype), 2, (grid.frames, -1)).transpose(1, 2)   # (B, T, C, q, H, W)
        x = F.pixel_unshuffle(x.flatten(2, 3).flatten(0, 1), self.outer_patch)        # (B T, C q p p, H / p, W / p)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))                # (B T, D0, H / p, W / p)
        x = self.inner(x, c, grid, trace)
        x = self.head(normalized(x, self.final_modulation(each_frame(c, grid))))
        x = torch.unflatten(depth_to_space(x, self.outer_patch), 0, (clips, -1))      # (B, T, C q, H, W)
        x = torch.unflatten(x, 2, (self.out_channels, -1)).transpose(1, 2)            # (B, C, T, q, H, W)
        return x.flatten(2, 3)[:, :, :frames]
        # fmt: on

    def rotations(self, grid: Grid) -> list[tuple[Callable[..., Tensor], tuple[int, ...]]]:
        """Return functions, and their arguments, that compute the rotary positions of the attentions of a block."""
        if self.full:
            return [(clip_rotations, (*grid, self.head_width, 0))]
        return [(frame_rotations, (grid.frames, self.head_width)), (rotations, (*grid[1:], self.head_width))]

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Compute all levels on frames (B T, D, h, w); feature caching skips them."""
        c, grid, trace = context
        frame_c, tables = each_frame(c, grid), self.tables(grid)
        skips = []
        for encoder in self.encoders:
            x, skip = encoder(x, frame_c, trace)
            skips.append(skip)
        for i, block in enumerate(self.blocks, start=self.blocks.first):
            x = block(x, frame_c) if isinstance(block, ConvBlock) else block(x, c, grid.frames, *tables)
            record(trace, i, x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop(), frame_c, trace)
        return x


class OnFrames(nn.Module):
    """Applies a block for tokens of clips to frames (B T, D, h, w)."""

    def forward(self, x: Tensor, c: Tensor, frames: int, *tables: Tensor) -> Tensor:
        tokens = torch.unflatten(x.permute(0, 2, 3, 1).flatten(1, 2), 0, (-1, frames)).flatten(1, 2)
        tokens = super().forward(tokens, c, frames, *tables)  # (B, T N, D)
        return tokens.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class FullGridBlock(OnFrames, FullBlock):  # type: ignore[misc]
    """Attention among all positions of a clip."""


class FactorizedGridBlock(OnFrames, FactorizedBlock):  # type: ignore[misc]
    """Attention among the positions of a frame, and then among the times of a position."""


def each_frame(c: Tensor, grid: Grid) -> Tensor:
    """Repeat a condition (B, T', D), or the numbers (B, T') of its rows in a table, for each frame: (B T, D)."""
    return c.expand(-1, grid.frames, *c.shape[2:]).flatten(0, 1)
