"""Hourglass: a diffusion transformer on a coarse grid between convolutions on the pixels, for small budgets.

Attention has to learn that neighboring pixels belong together; convolutions start from it. The outer levels have a few
convolution blocks, the inner grid, which has most of the computation, has convolution blocks and the blocks of DiT
(Peebles & Xie 2023) in turn. It is a relative of the hourglass transformer (Crowson et al., "Scalable High-Resolution
Pixel-Space Image Synthesis with Hourglass Diffusion Transformers", ICML 2024), whose outer levels have local attention.
In shapes, B is the batch, h x w the grid of a level, D its width, L the number of tokens of a text.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.dit_blocks import AdaLNZeroBlock, Style
from ditlab.backbones.layers import (
    CrossAttention,
    LabelEmbedder,
    TimestepEmbedder,
    Where,
    check_positive,
    initialize_linears,
    last_linear,
    modulate,
    set_to_zero,
)
from ditlab.backbones.positions import rotations, sincos_positions, table_of
from ditlab.backbones.routing import Level, number, record
from ditlab.backbones.text import Context, TextEmbedder, WordImages, text_shape
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.core.units import counted

CORES = {"mixed": ("convolution", "transformer"), "transformer": ("transformer",), "convolution": ("convolution",)}


class Hourglass(Backbone):
    """Convolutions outside, transformer blocks inside; before training, its output is exactly zero.

    Args:
        width: channels of the inner grid, and of the condition.
        depth: number of blocks of the inner grid.
        heads: number of attention heads.
        outer: channels of the outer levels; each level has twice the grid of the next one.
        outer_depth: convolution blocks of each outer level, in the encoder and in the decoder.
        patch: side of the squares of pixels (or latent positions) that become channels before the first level.
        core: blocks of the inner grid: convolution and transformer blocks in turn ("mixed"), or one kind.
        condition_grid: also add a linear function of the condition to the inner grid, with a value for each position.
        outer_grids: also add such a function after the join of each outer level.
        word_images: channels of a small learned image for each word, which are added to the input of the first level;
            0 is none. Tokens must be numbers of words.
        word_order: multiply the images and vectors of words by learned codes of their positions before they are
            summed, so that the network sees early which word is where.
        text_length: largest number of tokens of a text; 0 is none. The transformer blocks attend to the tokens, and a
            vector of the whole text joins the condition.
        text_width: width of the token states; 0 if tokens are numbers of words.
        vocabulary: number of words, for tokens that are numbers of words.
        pooled_width: width of the encoder's pooled vector; 0 is none.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    muon_kernels = True
    heads_out = ("head.weight", "head.bias")
    pos_embed: Tensor

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        width: int,
        depth: int,
        heads: int,
        outer: Sequence[int] = (64,),
        outer_depth: int = 1,
        patch: int = 2,
        core: Literal["mixed", "transformer", "convolution"] = "mixed",
        condition_grid: bool = False,
        outer_grids: bool = False,
        word_images: int = 0,
        word_order: bool = False,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        check_positive(depth=depth, heads=heads, patch=patch, outer=min(outer, default=1))
        self.patch, self.outer_patch, self.heads = patch * 2 ** len(outer), patch, heads
        self.check_sizes(width, heads, outer, outer_depth, outer_grids, word_order)
        (h, w), widths = self.grid, [*outer, width]
        self.stem = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.t_embedder = TimestepEmbedder(width)
        if self.text:
            self.label_tables, self.text_embedder = (), TextEmbedder(width, self.text, heads, ordered=word_order)
        else:
            self.y_embedder = LabelEmbedder(classes, width)
        self.encoders = nn.ModuleList(
            Encoder(*pair, width, outer_depth) for pair in zip(outer, widths[1:], strict=True)
        )
        style = Style(
            width, heads, qk_norm=True, rms_norm=False, swiglu=False, rotation=rotations(h, w, width // heads)
        )
        kinds = (CORES[core] * depth)[:depth]
        transformer = TextBlock if self.text else TokenBlock
        self.blocks = Level(ConvBlock(width, width) if kind == "convolution" else transformer(style) for kind in kinds)
        sides = [(h << level, w << level) if outer_grids else None for level in range(1, 1 + len(outer))]
        self.decoders = nn.ModuleList(
            Decoder(side, below, width, outer_depth, grid)
            for side, below, grid in zip(outer[::-1], widths[:0:-1], sides, strict=True)
        )
        self.register_buffer("pos_embed", sincos_positions(h, w, width), persistent=False)
        self.grid_modulation = modulation(width, width * h * w) if condition_grid else None
        self.final_modulation = modulation(width, 2 * widths[0])
        self.head = nn.Conv2d(widths[0], self.out_channels * patch**2, 3, padding=1)
        first = (size[0] // patch, size[1] // patch)
        self.word_images = WordImages(self.text, word_images, first, word_order) if word_images else None
        self.word_stem = nn.Conv2d(word_images, widths[0], 1) if word_images else None
        self.initialize()
        number(self.levels())

    def check_sizes(
        self, width: int, heads: int, outer: Sequence[int], outer_depth: int, outer_grids: bool, word_order: bool
    ) -> None:
        """Check that sizes fit together.

        Raises:
            InputError: they do not.
        """
        if outer_depth < 0:
            raise InputError(f"outer_depth {outer_depth}; give 0 or more")
        if width % (4 * heads):
            raise InputError(f"width {width} must be divisible by 4 times the {heads} heads (positions)")
        if self.size[0] % self.patch or self.size[1] % self.patch:
            raise InputError(
                f"size {self.size[0]}x{self.size[1]} is not divisible by {self.patch} (patch and {len(outer)} levels); "
                "choose another size, or fewer levels"
            )
        if outer_grids and not outer:
            raise InputError("outer_grids is set, but there are no outer levels; give outer, or remove outer_grids")
        if min(self.text) < 0:
            raise InputError(f"sizes of the text condition: {self.text._asdict()}; give 0 or more")
        if self.text and (self.text.width > 0) == (self.text.vocabulary > 0):
            raise InputError(
                f"text_width {self.text.width} and vocabulary {self.text.vocabulary}; give one of them: the width of "
                "the encoder's states, or the number of words"
            )
        if word_order and not self.text.vocabulary:
            raise InputError("word_order needs tokens that are numbers of words; remove it, or set the encoder words")
        if self.text and self.classes:
            raise InputError(f"{counted(self.classes, 'class')} for a network that reads text; give classes = 0")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Two sizes for small budgets."""
        return {
            "XS": {"width": 128, "depth": 4, "heads": 4, "outer": (64,), "condition_grid": True},
            "S": {"width": 192, "depth": 6, "heads": 4, "outer": (96,), "condition_grid": True},
        }

    @property
    def one_size(self) -> str:
        grids = any(name.endswith(("grid_modulation", "word_images")) for name, _ in self.named_modules())
        return "condition_grid, outer_grids or word_images have a value for each position" if grids else ""

    def positions(self, h: int, w: int) -> tuple[Tensor, Where | None]:
        """Return the positions (1, h w, D) of a grid, and the rotary ones if it is not the grid of the network."""
        if (h, w) == self.grid:
            return self.pos_embed, None
        width, device = self.pos_embed.shape[-1], self.pos_embed.device
        where = Where(table_of(rotations, device, h, w, width // self.heads))
        return table_of(sincos_positions, device, h, w, width), where

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [block for blocks in self.levels() for block in blocks]

    def levels(self) -> list[Level]:
        """Return the blocks of each level, in execution order."""
        return [module for module in self.modules() if isinstance(module, Level)]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [self.t_embedder(timestep) + self.y_embedder(label)]

    def modulations(self) -> list[Modulation]:
        layers = [module for name, module in self.named_modules() if name.endswith("modulation")]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [self.text_embedder if self.text else self.y_embedder])

    def initialize(self) -> None:
        initialize_hourglass(self, [*(last_linear(part.layer) for part in self.modulations()), self.head])
        if self.text:
            self.text_embedder.initialize()
        if self.word_images is not None:
            self.word_images.initialize()

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,), labels (B,) or text -> (B, out_channels, H, W)."""
        grid = self.grid_of_input(x)
        # fmt: off
        c, words = self.embedded(timestep, condition)                    # (B, D)
        x = F.pixel_unshuffle(x.to(self.dtype), self.outer_patch)        # (B, p p C, H / p, W / p)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))   # (B, D0, H / p, W / p)
        if self.word_images is not None and self.word_stem is not None:
            x = x + self.word_stem(self.word_images(self.texts(condition)))
        x = self.inner(x, c, words, trace, grid)
        x = self.head(normalized(x, self.final_modulation(c)))           # (B, p p C, H / p, W / p)
        return depth_to_space(x, self.outer_patch)                       # (B, C, H, W)
        # fmt: on

    def embedded(self, timestep: Tensor, condition: Condition | Tensor) -> tuple[Tensor, Context | None]:
        """The condition as one vector (B, D), and the words of a text."""
        if not self.text:
            return self.conditioning(timestep, self.labels(condition))[0], None
        tokens, mask, vector = self.text_embedder(self.texts(condition))
        return self.t_embedder(timestep) + vector, Context(F.layer_norm(tokens, tokens.shape[-1:]), mask)

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Compute all levels; feature caching skips them."""
        c, words, trace, grid = context
        positions, where = self.positions(*grid)
        skips = []
        for encoder in self.encoders:
            x, skip = encoder(x, c, trace)
            skips.append(skip)
        x = x + positions.to(x.dtype).view(1, *grid, -1).permute(0, 3, 1, 2)
        if self.grid_modulation is not None:
            x = x + self.grid_modulation(c).view(x.shape[0], *self.grid, -1).permute(0, 3, 1, 2)
        for i, block in enumerate(self.blocks, start=self.blocks.first):
            if isinstance(block, ConvBlock):
                x = block(x, c)  # (B, D, h, w)
            else:
                x = block(x, c, where) if words is None else block(x, c, words, where)
            record(trace, i, x)
        for decoder in self.decoders:
            x = decoder(x, skips.pop(), c, trace)
        return x


def initialize_hourglass(net: nn.Module, zero: Iterable[nn.Module]) -> None:
    """Set initial weights: Xavier for linear layers, zero for residual branches and the modules `zero`.

    The class-embedding table stays N(0, 1), which a short training reads sooner than DiT's N(0, 0.02).
    """
    initialize_linears(net)
    for module in net.modules():
        if isinstance(module, ConvBlock):
            nn.init.zeros_(module.conv2.weight)
    set_to_zero(zero)


def modulation(width: int, out: int) -> nn.Sequential:
    """Return a layer from the condition (B, D) to values (B, out) that shift and scale."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, out))


class ConvBlock(nn.Module):
    """Two convolutions on a grid (B, D, h, w), each after a modulated norm; the identity at initialization."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.adaLN_modulation = modulation(condition, 4 * channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        first, second = self.adaLN_modulation(c).chunk(2, dim=1)  # (B, 2 D) each
        return x + self.conv2(normalized(self.conv1(normalized(x, first)), second))


class TokenBlock(AdaLNZeroBlock):
    """A block of DiT on the positions of a grid (B, D, h, w)."""

    def forward(self, x: Tensor, c: Tensor, where: Tensor | Where | None = None) -> Tensor:
        tokens = super().forward(x.permute(0, 2, 3, 1).flatten(1, 2), c, where)  # (B, h w, D)
        return tokens.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class TextBlock(nn.Module):
    """A block of DiT on the positions of a grid (B, D, h, w), which also attend to the words of a text."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (style.norm(affine=False) for _ in range(3))
        self.attn, self.mlp = style.attention(), style.mlp()
        self.words = CrossAttention(style.width, style.heads, qk_norm=True)
        self.adaLN_modulation = modulation(style.width, 6 * style.width)

    def forward(self, x: Tensor, c: Tensor, words: Context, where: Where | None = None) -> Tensor:
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, D)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, D) each
        mixed = self.attn(modulate(self.norm1(tokens), shift_a, scale_a), where)
        tokens = torch.addcmul(tokens, gate_a[:, None], mixed)
        tokens = tokens + self.words(self.norm3(tokens), *words)
        tokens = torch.addcmul(tokens, gate_m[:, None], self.mlp(modulate(self.norm2(tokens), shift_m, scale_m)))
        return tokens.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """An outer level before the core: convolution blocks, then half the grid."""

    def __init__(self, channels: int, out: int, condition: int, depth: int) -> None:
        super().__init__()
        self.blocks = Level(ConvBlock(channels, condition) for _ in range(depth))
        self.down = nn.Conv2d(channels, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, c: Tensor, trace: Trace | None) -> tuple[Tensor, Tensor]:
        x = self.blocks.run(x, c, trace=trace)
        return self.down(x), x


class Decoder(nn.Module):
    """An outer level after the core: twice the grid, the skip connection, then convolution blocks."""

    def __init__(
        self, channels: int, inner: int, condition: int, depth: int, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.grid_modulation = None if grid is None else modulation(condition, channels * grid[0] * grid[1])
        self.up = nn.Conv2d(inner, 4 * channels, 1)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.blocks = Level(ConvBlock(channels, condition) for _ in range(depth))

    def forward(self, x: Tensor, skip: Tensor, c: Tensor, trace: Trace | None) -> Tensor:
        x = self.join(torch.cat([depth_to_space(self.up(x), 2), skip], dim=1))
        if self.grid_modulation is not None:
            x = x + self.grid_modulation(c).view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)
        return self.blocks.run(x, c, trace=trace)


def normalized(x: Tensor, shift_and_scale: Tensor) -> Tensor:
    """Normalize the channels of x (B, D, h, w), shift and scale them by `shift_and_scale` (B, 2 D), and apply SiLU."""
    shift, scale = shift_and_scale[:, None, None].chunk(2, dim=-1)
    x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-5)
    return F.silu(torch.addcmul(shift, x, 1 + scale)).permute(0, 3, 1, 2)


def depth_to_space(x: Tensor, side: int) -> Tensor:
    """Move channels into squares of positions: (B, s s C, h, w) -> (B, C, h s, w s), channels fastest."""
    x = torch.unflatten(x, 1, (side, side, -1))  # (B, s, s, C, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3).contiguous(memory_format=torch.channels_last)
