"""VideoDiT, ditlab's transformer for images and clips of any duration, size and aspect ratio, in the manner of Sora
(Brooks et al., "Video generation models as world simulators", 2024).

It is a DiT on patches of space and time. In the factorized form, each block has a second attention, along time, which
does nothing before training (Bertasius et al., "Is Space-Time Attention All You Need for Video Understanding?", ICML
2021); in the full form, all tokens of a clip attend to each other. It can start from a DiT for images. In shapes, see
`ditlab.backbones.video`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditlab.backbones.any_size import check_divisible
from ditlab.backbones.base import Backbone, Modulation
from ditlab.backbones.dit import SIZES, DiT, Size
from ditlab.backbones.dit_blocks import Style
from ditlab.backbones.layers import LabelEmbedder, TimestepEmbedder, check_positive, last_linear
from ditlab.backbones.positions import clip_rotations, frame_rotations, rotations, sincos_positions, table_of
from ditlab.backbones.published import IMAGENET
from ditlab.backbones.routing import record
from ditlab.backbones.text import TextEmbedder, text_shape
from ditlab.backbones.video import (
    ClipBlock,
    ClipEmbed,
    ClipHead,
    FrameConditioned,
    Grid,
    assembled,
    check_width,
    initialize,
    mixed,
    modulate,
)
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace

PATCHES = ((1, 2), (2, 4))  # frames and side
OWN_SIZES = {"XS": Size(6, 192, 3)} | SIZES


class VideoDiT(FrameConditioned):
    """The transformer, initialized as DiT: before training, its output is zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        patch_frames: number of frames of a token.
        space_time: "factorized" (within frames, then along time) or "full" (all tokens of a clip).
        positions: "rotary" (frame, row and column), or "sincos" (those of DiT for rows and columns, which are added to
            the tokens, and rotary ones for frames).
        qk_norm: RMS-normalize queries and keys.
        frequency_shift: timestep frequencies as in DiT (0) or as in diffusers (1).
        rms_norm: use RMS norm instead of layer norm.
        swiglu: use gated feed-forward layers (SwiGLU).
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    lora_targets = ("attn.qkv", "attn.proj", "adaLN_modulation.1", "time_modulation.1")
    defaults = MappingProxyType({"size": (16, 32, 32), "channels": 4, "classes": IMAGENET, "learn_variance": False})
    starts_from = ("DiT",)

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
        patch_frames: int = 1,
        space_time: Literal["factorized", "full"] = "factorized",
        positions: Literal["rotary", "sincos"] = "rotary",
        qk_norm: bool = False,
        frequency_shift: int = 0,
        rms_norm: bool = False,
        swiglu: bool = False,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, patch_frames=patch_frames)
        check_width(width, heads, patch)
        check_heads(width, heads)
        check_divisible(size, (patch_frames, patch, patch))
        block = lookup({"factorized": FactorizedBlock, "full": FullBlock}, space_time, "space_time")
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.patch, self.patch_frames, self.head = patch, patch_frames, width // heads
        self.full, self.rotary = space_time == "full", lookup({"rotary": True, "sincos": False}, positions, "positions")
        self.label_tables = () if self.text else self.label_tables
        style = Style(width, heads, qk_norm, rms_norm, swiglu, rotation=None)
        self.x_embedder = ClipEmbed(patch_frames, patch, channels, width)
        self.t_embedder = TimestepEmbedder(width, frequency_shift)
        self.y_embedder: LabelEmbedder | TextEmbedder
        self.y_embedder = TextEmbedder(width, self.text, heads) if self.text else LabelEmbedder(classes, width)
        self.pos_embed: Tensor | None
        self.register_buffer("pos_embed", None if self.rotary else sincos_positions(*self.grid[1:], width))
        for i, (make, arguments) in enumerate(self.rotations(self.grid)):
            self.register_buffer(f"rotation{i}", make(*arguments), persistent=False)
        self.blocks = nn.ModuleList(block(style) for _ in range(depth))
        self.final_layer = ClipHead(style, patch_frames * patch * patch * self.out_channels)
        small = [self.t_embedder, *([] if self.text else [self.y_embedder])]
        zero = [self.final_layer.linear, *(modulation.layer for modulation in self.modulations())]
        initialize(self, self.x_embedder.proj, small, self.y_embedder, zero)

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            f"{name}/{frames}x{side}x{side}": size._asdict() | {"patch": side, "patch_frames": frames}
            for name, size in OWN_SIZES.items()
            for frames, side in PATCHES
        }

    @property
    def tokens(self) -> int:
        return self.tokens_at(self.size) if self.full else super().tokens

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    def modulations(self) -> list[Modulation]:
        parts = [block.get_submodule("adaLN_modulation") for block in self.repeated]
        parts += [] if self.full else [block.get_submodule("time_modulation") for block in self.blocks]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in parts]

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Clips (B, C, T, H, W), timestep (B,) or (B, T), labels (B,) or text -> (B, out_channels, T, H, W).

        An image is a clip of one frame. If a token has several frames, it is repeated to fill them.
        """
        self.check_clip(x)
        frames, grid = x.shape[2], self.grid_at(x.shape[2:])
        c = self.condition(timestep, condition, frames)  # (B, T', D)
        c = c if c.shape[1] == 1 else self.own_part(c)
        if frames < self.patch_frames:
            x = x.expand(-1, -1, self.patch_frames, -1, -1)
        # fmt: off
        x = self.x_embedder(self.own_part(x.to(self.dtype), 2))                    # (B, T N, D)
        x = x if self.pos_embed is None else x + self.own_part(self.places(grid))
        x = self.inner(x, c, grid, trace)                                          # (B, T N, D)
        x = self.final_layer(x, c, self.own_frames(grid))                          # (B, T N, q p p C)
        record(trace, len(self.blocks), x)
        x = assembled(self.whole(x), grid, self.patch_frames, self.patch)          # (B, C, T, H, W)
        return x[:, :, :frames]
        # fmt: on

    @property
    def undivided(self) -> str:
        return ""

    @property
    def exchanging(self) -> list[nn.Module]:
        # Processes share the frames of a clip, so that attention within a frame needs no other process.
        return [block.get_submodule("attn" if self.full else "time_attn") for block in self.blocks]

    def divided(self, size: Sequence[int]) -> tuple[int, str]:
        return self.grid_at(size).frames, "frame"

    def own_frames(self, grid: Grid) -> int:
        """Return the number of frames of tokens that this process computes."""
        return grid.frames if self.token_share is None else grid.frames // self.token_share.world

    def places(self, grid: Grid) -> Tensor:
        """Return the positions of DiT for all tokens (1, T N, D)."""
        assert self.pos_embed is not None
        table = self.pos_embed
        if grid[1:] != self.grid[1:]:
            table = table_of(sincos_positions, table.device, *grid[1:], table.shape[2]).to(table.dtype)
        return table.repeat(1, grid.frames, 1)

    def rotations(self, grid: Grid) -> list[tuple[Callable[..., Tensor], tuple[int, ...]]]:
        """Return functions, and their arguments, that compute the rotary positions of the attentions of a block."""
        if self.full:
            return [(clip_rotations, (*grid, self.head, 0 if self.rotary else self.head))]
        times, places = (grid.frames, self.head), (*grid[1:], self.head)
        found: list[tuple[Callable[..., Tensor], tuple[int, ...]]] = [(frame_rotations, times)]
        return [*found, (rotations, places)] if self.rotary else found

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, T N, D) through all blocks; feature caching skips them."""
        c, grid, trace = context
        over_frames, *within = self.tables(grid)
        tables, frames = (self.own_part(over_frames), *within), self.own_frames(grid)
        for i, block in enumerate(self.blocks):
            x = block(x, c, frames, *tables)  # (B, T N, D)
            record(trace, i, x)
        return x

    # Start from a DiT for images.

    @classmethod
    def options_from(cls, source: Backbone, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the frames of a token, and the positions of DiT, with which it equals its source on one frame.

        Raises:
            InputError: the source has parts that this family does not have, or `options` have other positions.
        """
        for key, needed in (("condition", "adaln-zero"), ("rope", False), ("exits", ()), ("condition_grid", False)):
            present = source.config.get(key, needed)
            if (present or False) != (needed or False):
                raise InputError(
                    f"a VideoDiT starts from a DiT with {key} = {needed or False}, and this one has {present}; choose "
                    "another model"
                )
        if options.get("positions", "sincos") != "sincos":
            raise InputError('a VideoDiT that starts from a DiT has the positions "sincos"; leave model.positions out')
        return {"positions": "sincos", "patch_frames": options.get("patch_frames", 1)}

    def weights_of(self, source: Backbone) -> dict[str, Tensor]:
        """Return the weights of a DiT, with patches that are inflated to several frames (Carreira & Zisserman 2017).

        A token of equal frames has the value of their patch, and all frames of a token get the same output.
        """
        state = dict(source.state_dict())
        if not isinstance(source, DiT):
            return state
        kernel = state["x_embedder.proj.weight"][:, :, None] / self.patch_frames
        state["x_embedder.proj.weight"] = kernel.expand(-1, -1, self.patch_frames, -1, -1)
        for name in self.heads_out:
            state[name] = state[name].repeat(self.patch_frames, *[1] * (state[name].ndim - 1))
        return state

    def adopt(self, source: Backbone) -> dict[str, str]:
        """Describe the weights that `weights_of` inflated."""
        if not isinstance(source, DiT):
            return {}
        names = ["x_embedder.proj.weight", *(self.heads_out if self.patch_frames > 1 else ())]
        return dict.fromkeys(names, f"patches of {self.patch_frames} frames")


class FactorizedBlock(ClipBlock):
    """DiT's block within frames, with an attention along time before the MLP, whose gate starts at zero."""

    def __init__(self, style: Style) -> None:
        super().__init__(style, "space")
        self.norm3, self.time_attn = style.norm(affine=False), style.attention()
        self.time_modulation = nn.Sequential(nn.SiLU(), nn.Linear(style.width, 3 * style.width))

    def forward(  # type: ignore[override]
        self, x: Tensor, c: Tensor, frames: int, times: Tensor, places: Tensor | None = None
    ) -> Tensor:
        """Compute tokens (B, T N, D) for a condition (B, T', D), with rotary positions of frames and within them."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=-1)  # (B, T', D)
        shift_t, scale_t, gate_t = self.time_modulation(c).chunk(3, dim=-1)
        x = torch.unflatten(x, 1, (frames, -1))
        mix = mixed(self.attn, modulate(self.norm1(x), shift_a, scale_a), "space", places)
        x = torch.addcmul(x, gate_a[:, :, None], mix)
        mix = mixed(self.time_attn, modulate(self.norm3(x), shift_t, scale_t), "time", times)
        x = torch.addcmul(x, gate_t[:, :, None], mix)
        x = torch.addcmul(x, gate_m[:, :, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))
        return x.flatten(1, 2)


class FullBlock(ClipBlock):
    """DiT's block with attention among all tokens of a clip."""

    def __init__(self, style: Style) -> None:
        super().__init__(style, "full")


def check_heads(width: int, heads: int) -> None:
    """Check that heads have channels for positions in three dimensions.

    Raises:
        InputError: they do not.
    """
    if width // heads % 4 or width // heads < 8:
        raise InputError(
            f"{width // heads} channels for each head; choose width and heads so that this is a multiple of 4, and at "
            "least 8 (positions in three dimensions)"
        )
