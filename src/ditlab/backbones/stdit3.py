"""STDiT3, the network of Open-Sora 1.2 (Zheng et al., "Open-Sora: Democratizing Efficient Video Production for All",
2024): pairs of blocks within frames and along time, for clips of any duration, size, aspect ratio and frame rate.

Blocks are PixArt's with RMS norms of queries and keys; both kinds read the text. Positions in a frame are fixed
sinusoids whose distances follow the resolution, positions in time are rotary, and the frame rate joins the timestep.
The state dict has the published keys. In shapes, see `ditlab.backbones.video`.
"""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones import stdit3_published
from ditlab.backbones.base import Embedders
from ditlab.backbones.captions import embedded, embedder_of
from ditlab.backbones.layers import TimestepEmbedder, check_positive, set_to_zero
from ditlab.backbones.pixart_blocks import SizeEmbedder
from ditlab.backbones.positions import sincos_positions, table_of
from ditlab.backbones.routing import record
from ditlab.backbones.stdit3_published import TEXT
from ditlab.backbones.text import text_shape
from ditlab.backbones.video import (
    ClipEmbed,
    ClipNetwork,
    Grid,
    Reading,
    TextBlock,
    TextHead,
    assembled,
    by_frame,
    check_width,
    initialize,
)
from ditlab.core.types import Condition, Trace

# Frame rates of images and clips that do not state theirs, as in the published code.
IMAGE_RATE, CLIP_RATE = 120.0, 24.0


class STDiT3(ClipNetwork):
    """The transformer, initialized as published: before training, its output is zero and nothing passes between frames.

    Without text, the class embedding is the only token of the cross-attention.

    Args:
        depth: number of pairs of blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
        stride: pixels of a frame for each pixel (or latent position) of the input.
        position_side: side in pixels of a square frame whose neighboring tokens have positions one apart.
        null_caption: keep the null caption of the published weights as a buffer.
        unused_half: keep the second half of the published output layer, which nothing uses, as buffers.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    lora_targets = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj")
    changeable = ("null_caption",)
    defaults = MappingProxyType({"size": (5, 32, 32), "channels": 4, "classes": 0, "learn_variance": False})
    marks = (
        "x_embedder.proj.weight",
        "fps_embedder.mlp.0.weight",
        "t_block.1.weight",
        "spatial_blocks.0.attn.q_norm.weight",
        "temporal_blocks.0.attn.q_norm.weight",
        *heads_out,
    )
    published = MappingProxyType({"vocabulary": False, "pooled_width": False})
    computed = ("rope.freqs",)

    def __init__(
        self,
        *,
        size: tuple[int, int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        stride: int = 8,
        position_side: int = 512,
        null_caption: bool = False,
        unused_half: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, stride=stride, position_side=position_side)
        check_width(width, heads, patch)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.patch, self.stride, self.position_side = patch, stride, position_side
        self.label_tables = () if self.text else self.label_tables
        self.rope = Frequencies(width // heads)
        self.x_embedder = ClipEmbed(1, patch, channels, width)
        self.t_embedder, self.fps_embedder = TimestepEmbedder(width), SizeEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = embedder_of(self, width, heads, null_caption)
        self.spatial_blocks = nn.ModuleList(TextBlock(width, heads, "space", qk_norm=True) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(TextBlock(width, heads, "time", qk_norm=True) for _ in range(depth))
        self.final_layer = TextHead(width, patch * patch * self.out_channels)
        if unused_half:
            for name, value in self.final_layer.linear.named_parameters():
                self.final_layer.register_buffer(f"unused_{name}", torch.zeros_like(value))
        self.places: Tensor
        spacing = self.spacing(self.grid, self.own_side(size))
        self.register_buffer("places", sincos_positions(*self.grid[1:], width, spacing), persistent=False)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            "XL/2": {"depth": 28, "width": 1152, "heads": 16, "patch": 2} | TEXT,
            "3B/2": {"depth": 28, "width": 1872, "heads": 26, "patch": 2} | TEXT,
        }

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict: all but the size."""
        return stdit3_published.read_sizes(tensors)

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        return {"process": {"name": "linear"}, "target": "velocity"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the network, with ditlab's velocity, and without the unused half of its output."""
        return stdit3_published.from_published(tensors)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return stdit3_published.to_published(tensors)

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return 1, 1, 1  # other sides are padded

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in the order in which they run."""
        pairs = zip(self.spatial_blocks, self.temporal_blocks, strict=True)
        return [block for pair in pairs for block in pair]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder, self.fps_embedder])

    def initialize(self) -> None:
        """Set initial weights: the frame rate, the output, and all that blocks along time add, are zero."""
        small = [self.t_embedder, self.fps_embedder, self.t_block, self.y_embedder]
        zero: list[nn.Module] = [self.fps_embedder.mlp[2], self.final_layer.linear]
        initialize(self, self.x_embedder.proj, small, self.y_embedder, zero)
        for block in self.temporal_blocks:
            set_to_zero(block.get_submodule(name) for name in ("attn.proj", "cross_attn.proj", "mlp.fc2"))

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Clips (B, C, T, H, W), timestep (B,) or (B, T), text tokens or labels (B,) -> (B, out_channels, T, H, W).

        The condition can have `fps` (by default 24, and 120 for one frame) and `resolution` (by default that of x).
        """
        self.check_clip(x)
        frames, height, width = x.shape[2:]
        grid = self.grid_at(x.shape[2:])
        x = F.pad(x.to(self.dtype), (0, -width % self.patch, 0, -height % self.patch))
        # fmt: off
        c = by_frame(self.t_embedder, timestep, condition, frames)                 # (B, T', D)
        c = c + self.fps_embedder(self.rates(condition, x))[:, None]
        text, vector = embedded(self, self.y_embedder, condition)                  # (B, L, D), (B, D)
        c = c if vector is None else c + vector[:, None]
        given = Reading(torch.unflatten(self.t_block(c), 2, (6, -1)), text)        # (B, T', 6, D)
        x = self.x_embedder(x) + self.positions(condition, grid, (height, width))  # (B, T N, D)
        x = self.inner(x, given, grid, trace)                                      # (B, T N, D)
        x = self.final_layer(x, c, frames)                                         # (B, T N, p p C)
        record(trace, 2 * len(self.spatial_blocks), x)
        return assembled(x, grid, 1, self.patch)[..., :height, :width]             # (B, C, T, H, W)
        # fmt: on

    def rates(self, condition: Condition | Tensor, x: Tensor) -> Tensor:
        """Return the frame rates (B, 1)."""
        fps = condition.fps if isinstance(condition, Condition) else None
        if fps is None:
            fps = torch.tensor(IMAGE_RATE if x.shape[2] == 1 else CLIP_RATE, device=x.device).expand(x.shape[0])
        return fps[:, None]

    def positions(self, condition: Condition | Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
        """Return the positions (1 or B, T N, D) within frames of (height, width)."""
        sides = condition.resolution if isinstance(condition, Condition) else None
        if sides is None:
            tables = self.places if size == tuple(self.size[1:]) else self.table(grid, self.own_side(size))
        else:
            scales, rows = torch.unique(sides.float().prod(1).sqrt(), return_inverse=True)
            tables = torch.cat([self.table(grid, scale) for scale in scales.tolist()])[rows]
        return tables.to(self.dtype).repeat(1, grid.frames, 1)

    def table(self, grid: Grid, side: float) -> Tensor:
        """Compute the positions (1, N, D) of a frame that has as many pixels as a square with this side."""
        width = self.x_embedder.proj.out_channels
        return table_of(sincos_positions, self.device, *grid[1:], width, self.spacing(grid, side))

    def spacing(self, grid: Grid, side: float) -> tuple[float, float]:
        """Return the distances of rows and columns for frames with as many pixels as a square with this side."""
        distance = round(math.sqrt(grid.rows * grid.columns)) * self.position_side / side
        return distance / grid.rows, distance / grid.columns

    def own_side(self, size: Sequence[int]) -> float:
        """Return the side in pixels of a square with as many pixels as an input of this size."""
        return math.sqrt(size[-2] * size[-1]) * self.stride

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, T N, D) through all blocks; feature caching skips them."""
        given, grid, trace = context
        times = self.rope(grid.frames)  # (2, T, d)
        for i, block in enumerate(self.blocks):
            x = block(x, given, grid.frames, times if i % 2 else None)
            record(trace, i, x)
        return x


class Frequencies(nn.Module):
    """Rotary positions in time; the frequencies are stored, as in the published weights."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 1 / 10000 ** (torch.arange(0, head, 2).float() / head))

    def forward(self, frames: int) -> Tensor:
        """Compute cosines and sines (2, T, d)."""
        times = torch.arange(frames, device=self.freqs.device, dtype=torch.float32)
        angles = (times[:, None] * self.freqs.float()).repeat_interleave(2, dim=1)
        return torch.stack([angles.cos(), angles.sin()])
