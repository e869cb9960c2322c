"""What networks for clips share: a grid of frames, rows and columns of tokens, and a condition for each frame.

The tokens of a clip are one sequence (B, T N, D), frame after frame, which blocks read as (B, T, N, D). In shapes, B is
the batch, T the number of frames of tokens, h x w the grid of a frame, N = h w, D the width, p the side of a patch, q
its frames, and T' is T, or 1 if all frames have the same condition.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.any_size import check_divisible
from ditlab.backbones.base import Backbone, Embedders
from ditlab.backbones.dit_blocks import AdaLNZeroBlock, FinalLayer, Style
from ditlab.backbones.layers import (
    Attention,
    LabelEmbedder,
    Mlp,
    TimestepEmbedder,
    Where,
    check_positive,
    initialize_linears,
    norm,
    set_to_zero,
)
from ditlab.backbones.pixart_blocks import FinalLayer as TableFinalLayer
from ditlab.backbones.pixart_blocks import TextAttention
from ditlab.backbones.positions import table_of
from ditlab.backbones.text import Context, TextEmbedder
from ditlab.core.errors import InputError
from ditlab.core.types import Condition

Axis = Literal["space", "time", "full"]
"""Which tokens attend to each other: those of a frame, those of one position in all frames, or all."""


class Grid(NamedTuple):
    """The grid of the tokens of a clip."""

    frames: int
    rows: int
    columns: int


class ClipNetwork(Backbone):
    """A network for clips whose weights do not depend on the number of frames and the size."""

    spatial = 3
    frame_times = True
    patch_frames = 1
    """Number of frames of a token."""

    @property
    def one_size(self) -> str:
        """Empty: the network accepts clips of other sizes than the one that it is built for."""
        return ""

    @property
    def side_multiples(self) -> tuple[int, ...]:
        """What frames, height and width of a clip must be divisible by."""
        return self.patch_frames, self.patch, self.patch

    @property
    def grid(self) -> Grid:
        return self.grid_at(self.size)

    @property
    def tokens(self) -> int:
        frames, h, w = self.grid
        return max(frames, h * w)

    def tokens_at(self, size: Sequence[int]) -> int:
        """The number of tokens of a clip of this size."""
        return prod(self.grid_at(size))

    def grid_at(self, size: Sequence[int]) -> Grid:
        """Return the grid of the tokens of a clip (frames, height, width), which may be padded."""
        frames, height, width = size
        return Grid(-(-frames // self.patch_frames), -(-height // self.patch), -(-width // self.patch))

    def check_clip(self, x: Tensor) -> None:
        """Check that an input is a batch of clips with the channels of the network, and a size that it accepts.

        Raises:
            InputError: it is not.
        """
        if x.ndim != 5 or x.shape[1] != self.channels:
            received = "x".join(map(str, x.shape[1:]))
            raise InputError(
                f"input of {received} for a network of clips with {self.channels} channels; give (B, {self.channels}, "
                "frames, height, width)"
            )
        check_divisible(tuple(x.shape[2:]), self.side_multiples)


class FrameConditioned(ClipNetwork):
    """A network whose blocks read timestep and label, or text, as one vector for each frame of tokens.

    `rotation0`, `rotation1` and so on are buffers with the rotary positions of its own grid.
    """

    t_embedder: TimestepEmbedder
    y_embedder: LabelEmbedder | TextEmbedder

    def rotations(self, grid: Grid) -> list[tuple[Callable[..., Tensor], tuple[int, ...]]]:
        """Return functions, and their arguments, that compute the rotary positions of the attentions of a block."""
        raise NotImplementedError

    def tables(self, grid: Grid) -> list[Tensor]:
        """Return the rotary positions of the attentions of a block."""
        if grid == self.grid:
            return [self.get_buffer(f"rotation{i}") for i in range(len(self.rotations(grid)))]
        return [table_of(make, self.device, *arguments) for make, arguments in self.rotations(grid)]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [self.t_embedder(timestep) + self.y_embedder(label)]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [] if self.text else [self.y_embedder])

    def condition(self, timestep: Tensor, condition: Condition | Tensor, frames: int) -> Tensor:
        """Return timestep and label or text as one vector for each frame of tokens (B, T', D)."""
        t = by_frame(self.t_embedder, timestep, condition, frames)
        if t.shape[1] > 1 and self.patch_frames > 1:  # the mean of the frames of a token
            t = torch.unflatten(t, 1, (-1, self.patch_frames)).mean(2)
        if isinstance(self.y_embedder, TextEmbedder):
            return t + self.y_embedder(self.texts(condition))[2][:, None]
        return t + self.y_embedder(self.labels(condition)).unsqueeze(1)


class Reading(NamedTuple):
    """What the blocks of networks that read text receive besides the tokens."""

    modulation: Tensor  # (B, T', 6, D), shift, scale and gate of attention, then of the MLP
    text: Context


def check_width(width: int, heads: int, patch: int) -> None:
    """Check that width and heads fit together.

    Raises:
        InputError: they do not.
    """
    check_positive(width=width, heads=heads, patch=patch)
    if width % heads or width % 4:
        raise InputError(f"width {width} must be divisible by heads {heads} and by 4 (positions in two dimensions)")


def by_frame(embedder: nn.Module, timestep: Tensor, condition: Condition | Tensor, frames: int) -> Tensor:
    """Embed timesteps (B,), or (B, T) with one for each frame, as (B, T', D).

    Raises:
        InputError: another number of timesteps, or one for a clip of which some frames are given.
    """
    if timestep.ndim == 1 and isinstance(condition, Condition) and condition.given is not None:
        raise InputError(
            "one timestep for each clip, and a condition with given frames; give one for each frame (B, T), as "
            "Objective.clock returns them"
        )
    if timestep.ndim == 2 and timestep.shape[1] != frames:
        raise InputError(
            f"{timestep.shape[1]} timesteps for each clip of {frames} frames; give one for each clip, or one for each "
            "frame"
        )
    return torch.unflatten(embedder(timestep.flatten()), 0, (timestep.shape[0], -1))


def mixed(attn: Attention, x: Tensor, axis: Axis, table: Tensor | None) -> Tensor:
    """Apply attention to tokens (B, T, N, D) along an axis, with rotary positions (2, T, N or T N, d) of this axis."""
    where = None if table is None else Where(table)
    if axis == "space":
        return torch.unflatten(attn(x.flatten(0, 1), where), 0, x.shape[:2])
    if axis == "time":
        x = x.transpose(1, 2)  # (B, N, T, D)
        return torch.unflatten(attn(x.flatten(0, 1), where), 0, x.shape[:2]).transpose(1, 2)
    return torch.unflatten(attn(x.flatten(1, 2), where), 1, x.shape[1:3])


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens (B, T, N, D) by the condition's scale and shift (B, T', D)."""
    return torch.addcmul(shift[:, :, None], x, 1 + scale[:, :, None])


class ClipBlock(AdaLNZeroBlock):
    """DiT's block for clips: attention along an axis, and shift, scale and gate for each frame."""

    def __init__(self, style: Style, axis: Axis) -> None:
        super().__init__(style)
        self.axis = axis

    def forward(self, x: Tensor, c: Tensor, frames: int, table: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Compute tokens (B, T N, D) for a condition (B, T', D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)  # (B, T', D)
        x = torch.unflatten(x, 1, (frames, -1))
        mix = mixed(self.attn, modulate(self.norm1(x), shift_a, scale_a), self.axis, table)
        x = torch.addcmul(x, gate_a[:, :, None], mix)
        x = torch.addcmul(x, gate_m[:, :, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))
        return x.flatten(1, 2)


class TextBlock(nn.Module):
    """PixArt's block for clips: attention along an axis, cross-attention to a text, and MLP; see `PixArtBlock`."""

    def __init__(self, width: int, heads: int, axis: Axis, qk_norm: bool = False, reads_text: bool = True) -> None:
        super().__init__()
        self.axis = axis
        self.norm1, self.norm2 = norm(width, affine=False), norm(width, affine=False)
        self.attn, self.mlp = Attention(width, heads, qk_norm), Mlp(width)
        self.cross_attn = TextAttention(width, heads) if reads_text else None
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(self, x: Tensor, given: Reading, frames: int, table: Tensor | None = None) -> Tensor:
        """Compute tokens (B, T N, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.scale_shift_table + given.modulation).unbind(2)
        x = torch.unflatten(x, 1, (frames, -1))
        mix = mixed(self.attn, modulate(self.norm1(x), shift_a, scale_a), self.axis, table)
        x = torch.addcmul(x, gate_a[:, :, None], mix)
        if self.cross_attn is not None:
            x = x + torch.unflatten(self.cross_attn(x.flatten(1, 2), given.text), 1, x.shape[1:3])
        x = torch.addcmul(x, gate_m[:, :, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))
        return x.flatten(1, 2)


class ClipHead(FinalLayer):
    """DiT's output layer with a condition for each frame."""

    def __init__(self, style: Style, out: int) -> None:
        super().__init__(style, out, adaptive=True)

    def forward(self, x: Tensor, c: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Compute the values of all patches (B, T N, q p p C) for a condition (B, T', D)."""
        assert self.adaLN_modulation is not None
        x = self.norm_final(torch.unflatten(x, 1, (frames, -1)))
        return self.linear(modulate(x, *self.adaLN_modulation(c).chunk(2, dim=-1))).flatten(1, 2)


class TextHead(TableFinalLayer):
    """PixArt's output layer with a condition for each frame."""

    def forward(self, x: Tensor, c: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        """Compute the values of all patches (B, T N, q p p C) for a condition (B, T', D)."""
        shift, scale = (self.scale_shift_table + c[:, :, None]).unbind(2)
        x = self.norm_final(torch.unflatten(x, 1, (frames, -1)))
        return self.linear(modulate(x, shift, scale)).flatten(1, 2)


class ClipEmbed(nn.Module):
    """Projects patches of q frames, p rows and p columns of a clip (B, C, q T, H, W) to tokens (B, T N, D)."""

    def __init__(self, frames: int, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.frames, self.patch = frames, patch
        self.proj = nn.Conv3d(channels, width, (frames, patch, patch), stride=(frames, patch, patch))

    def forward(self, x: Tensor) -> Tensor:
        clips = x.shape[0]
        x = torch.unflatten(x, 2, (-1, self.frames)).transpose(1, 2)  # (B, T, C, q, H, W)
        # A convolution in two dimensions, so that a frame has the same bits as in an image DiT.
        x = F.conv2d(x.flatten(0, 1).flatten(1, 2), self.proj.weight.flatten(1, 2), self.proj.bias, self.patch)
        return torch.unflatten(x.flatten(2).transpose(1, 2), 0, (clips, -1)).flatten(1, 2)  # copies: contiguous


def assembled(x: Tensor, grid: Grid, frames: int, patch: int) -> Tensor:
    """Assemble tokens (B, T N, q p p C), channels fastest, to a clip (B, C, q T, H, W)."""
    x = torch.unflatten(torch.unflatten(x, 2, (frames, patch, patch, -1)), 1, grid)  # (B, T, h, w, q, p, p, C)
    return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def initialize(
    net: nn.Module, projection: nn.Module, small: Iterable[nn.Module], text: nn.Module | None, zero: Iterable[nn.Module]
) -> None:
    """Set initial weights as in DiT and PixArt.

    Args:
        net: all linear layers are Xavier uniform.
        projection: the patch embedding, Xavier uniform as a matrix.
        small: matrices of these modules are N(0, 0.02).
        text: the embedder of the text, or None.
        zero: these modules are zero.
    """
    initialize_linears(net)
    weight, bias = projection.get_parameter("weight"), projection.get_parameter("bias")
    nn.init.xavier_uniform_(weight.view(weight.shape[0], -1))
    nn.init.zeros_(bias)
    for module in small:
        for value in module.parameters():
            if value.ndim == 2:
                nn.init.normal_(value, std=0.02)
    if isinstance(text, TextEmbedder):
        text.initialize()
    set_to_zero(zero)
