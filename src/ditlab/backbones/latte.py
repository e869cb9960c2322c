"""Latte (Ma et al., "Latte: Latent Diffusion Transformer for Video Generation", TMLR 2025), its variant 1: blocks that
mix the tokens of a frame and blocks that mix frames, in turn.

Every frame is embedded as an image in DiT. Positions of frames are added once, before the first block that mixes
frames. With classes, blocks are those of DiT; with a text they are those of PixArt, and only blocks within frames read
the text. No weight depends on the number of frames or on the size, so that the network accepts any of them. In shapes,
see `ditlab.backbones.video`; a token is a patch of one frame.
"""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones import latte_published
from ditlab.backbones.any_size import check_divisible
from ditlab.backbones.base import Embedders, Modulation
from ditlab.backbones.captions import embedded, embedder_of
from ditlab.backbones.dit import SIZES
from ditlab.backbones.dit_blocks import Style
from ditlab.backbones.latte_published import T2V
from ditlab.backbones.layers import LabelEmbedder, PatchEmbed, TimestepEmbedder, check_positive, last_linear
from ditlab.backbones.positions import sincos_frames, sincos_positions, table_of
from ditlab.backbones.routing import record
from ditlab.backbones.text import text_shape
from ditlab.backbones.video import (
    Axis,
    ClipBlock,
    ClipHead,
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


class Latte(ClipNetwork):
    """The transformer, initialized as DiT, or as PixArt with a text: before training, its output is zero.

    Args:
        depth: number of blocks; those with an odd index mix frames.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    defaults = MappingProxyType({"size": (16, 32, 32), "channels": 4, "classes": 0, "learn_variance": True})
    marks = (  # more keys than DiT and PixArt have, whose keys are also here
        "x_embedder.proj.weight",
        "x_embedder.proj.bias",
        "pos_embed",
        "temp_embed",
        *(f"t_embedder.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *heads_out,
    )
    diffusers_class = "LatteTransformer3DModel"
    diffusers_marks = latte_published.MARKS
    computed = ("pos_embed", "temp_embed")

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
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth)
        check_width(width, heads, patch)
        check_divisible(size, (1, patch, patch))
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.patch = patch
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.label_tables = self.label_tables if classes else ()
        out = patch * patch * self.out_channels
        axes: list[Axis] = ["time" if i % 2 else "space" for i in range(depth)]
        style = Style(width, heads, qk_norm=False, rms_norm=False, swiglu=False, rotation=None)
        self.y_embedder: nn.Module | None
        if self.text:
            self.y_embedder = embedder_of(self, width, heads)
            self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            self.blocks = nn.ModuleList(TextBlock(width, heads, axis, reads_text=axis == "space") for axis in axes)
            self.final_layer: nn.Module = TextHead(width, out)
        else:
            self.y_embedder = LabelEmbedder(classes, width) if classes else None
            self.blocks = nn.ModuleList(ClipBlock(style, axis) for axis in axes)
            self.final_layer = ClipHead(style, out)
        frames, h, w = self.grid
        self.pos_embed: Tensor
        self.temp_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(h, w, width))
        self.register_buffer("temp_embed", sincos_frames(frames, width))
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {f"{name}/2": size._asdict() | {"patch": 2} for name, size in SIZES.items()} | {"T2V-XL/2": T2V}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The number of heads is only known for published sizes, and the frames are assumed to be squares.
        """
        sizes = latte_published.read_sizes(tensors)
        heads = {(row.depth, row.width): row.heads for row in SIZES.values()} | {(T2V["depth"], T2V["width"]): 16}
        known = heads.get((sizes["depth"], sizes["width"]))
        table = tensors.get("y_embedder.embedding_table.weight")
        sizes["classes"] = 0 if table is None else cls.count_classes(len(table))
        return sizes | ({} if known is None else {"heads": known})

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the published names; the network that reads text was published with those of diffusers."""
        return latte_published.renamed(tensors) if "t_block.1.weight" in tensors else tensors

    @classmethod
    def from_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert the tensors and the config.json of diffusers' transformer; see `Backbone.from_diffusers`."""
        return latte_published.from_diffusers(tensors, config)

    @classmethod
    def to_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert to the tensors and the config.json of diffusers' transformer; see `Backbone.to_diffusers`."""
        return tensors, latte_published.diffusers_config(config)

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        if self.text:
            return []
        c = self.t_embedder(timestep)
        return [c if self.y_embedder is None else c + self.y_embedder(label)]

    def modulations(self) -> list[Modulation]:
        if self.text:
            return []
        layers = [block.get_submodule("adaLN_modulation") for block in self.repeated]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        labels = [] if self.text or self.y_embedder is None else [self.y_embedder]
        return Embedders([self.t_embedder], labels)

    def initialize(self) -> None:
        """Set initial weights, with zero gates, cross-attention and output."""
        small: list[nn.Module] = [self.t_embedder, *([] if self.y_embedder is None else [self.y_embedder])]
        zero: list[nn.Module] = [self.final_layer.get_submodule("linear")]
        if self.text:
            small = [self.t_embedder, self.t_block]
            zero += [block.get_submodule("cross_attn.proj") for block in self.blocks[::2]]
        else:
            zero += [part.get_submodule("adaLN_modulation") for part in self.repeated]
        initialize(self, self.x_embedder.proj, small, self.y_embedder, zero)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Clips (B, C, T, H, W), timestep (B,) or (B, T), labels (B,) or text -> (B, out_channels, T, H, W)."""
        self.check_clip(x)
        grid = self.grid_at(x.shape[2:])
        # fmt: off
        c = by_frame(self.t_embedder, timestep, condition, grid.frames)            # (B, T', D)
        given, c = self.given(c, condition)
        places, times = self.positions(grid)
        x = self.x_embedder(x.to(self.dtype).transpose(1, 2).flatten(0, 1)) + places  # (B T, N, D)
        x = torch.unflatten(x, 0, (-1, grid.frames)).flatten(1, 2)                 # (B, T N, D)
        x = self.inner(x, given, grid, times, trace)                               # (B, T N, D)
        x = self.final_layer(x, c, grid.frames)                                    # (B, T N, p p C)
        record(trace, len(self.blocks), x)
        return assembled(x, grid, 1, self.patch)                                   # (B, C, T, H, W)
        # fmt: on

    def given(self, t: Tensor, condition: Condition | Tensor) -> tuple[Tensor | Reading, Tensor]:
        """Return the condition for the blocks and for the output layer; `t` is the embedded timestep (B, T', D)."""
        if self.text:
            assert self.y_embedder is not None
            text, vector = embedded(self, self.y_embedder, condition)
            t = t if vector is None else t + vector[:, None]
            return Reading(torch.unflatten(self.t_block(t), 2, (6, -1)), text), t
        c = t if self.y_embedder is None else t + self.y_embedder(self.labels(condition)).unsqueeze(1)
        return c, c

    def positions(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return the positions (1, N, D) within a frame and those of frames (1, T, D)."""
        width, device = self.pos_embed.shape[2], self.pos_embed.device
        places, times = self.pos_embed, self.temp_embed
        if grid[1:] != self.grid[1:]:
            places = table_of(sincos_positions, device, grid.rows, grid.columns, width).to(places.dtype)
        if grid.frames != self.size[0]:
            times = table_of(sincos_frames, device, grid.frames, width).to(times.dtype)
        return places, times

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, T N, D) through all blocks; feature caching skips them."""
        given, grid, times, trace = context
        for i, block in enumerate(self.blocks):
            if i == 1 and not (self.text and grid.frames == 1):  # the published text model leaves them out for images
                x = x + times.repeat_interleave(grid.rows * grid.columns, dim=1)
            x = block(x, given, grid.frames)  # (B, T N, D)
            record(trace, i, x)
        return x
