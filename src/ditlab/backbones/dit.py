"""DiT (Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023): a ViT on patches of the latent.

The class has the paper's four conditioning mechanisms for timestep and label: two extra tokens (in-context),
cross-attention, and adaptive layer norm without gates (adaln) or with zero-initialized gates (adaln-zero). A text takes
the place of the label: its tokens in the first two mechanisms, its mean in the others. The state dict of adaln-zero has
the official keys. In shapes, B is the batch, N tokens, L text tokens, D width and p patch.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.any_size import ONE_VALUE
from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.dit_blocks import BLOCKS, FinalLayer, Style, projector
from ditlab.backbones.layers import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    Where,
    check_positive,
    initialize_linears,
    last_linear,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.positions import rotations, sincos_positions, table_of
from ditlab.backbones.pseudo_shift import check_windows
from ditlab.backbones.published import count_of
from ditlab.backbones.routing import PUBLISHED_DEPTHS, check_exits, depth_at, leaves_early, record, routed, through
from ditlab.backbones.text import Context, TextEmbedder, joined, text_shape
from ditlab.backbones.token_share import TokenShare
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace
from ditlab.core.units import counted


class Size(NamedTuple):
    """One row of the size table."""

    depth: int
    width: int
    heads: int


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}  # Table 1
PATCHES = (2, 4, 8)


class DiT(Backbone):
    """The diffusion transformer, initialized as published: before training, its output is exactly zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        condition: conditioning mechanism for timestep and label.
        qk_norm: RMS-normalize queries and keys.
        frequency_shift: timestep frequencies as in DiT (0) or as in diffusers (1).
        exits: early exit: shares of the blocks that run, for equal intervals of the timestep from data to noise.
        rms_norm: use RMS norm instead of layer norm.
        swiglu: use gated feed-forward layers (SwiGLU).
        rope: use rotary positions.
        window: side, in patches, of the windows in which tokens attend (pseudo-shifted windows); 0 is the whole image.
        condition_grid: also add a linear function of the condition to the image tokens, with a value for each position.
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
        projectors: inner width and output widths of the projectors with which REPA aligns tokens to features of
            encoders; only training uses them.
    """

    label_tables: tuple[str, ...] = ("y_embedder.embedding_table.weight",)
    changeable: tuple[str, ...] = ("exits",)
    norm_weights = False
    """Whether norms that the condition scales also have weights of their own."""
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    marks: tuple[str, ...] = (
        "x_embedder.proj.weight",
        "pos_embed",
        "y_embedder.embedding_table.weight",
        *heads_out,
    )
    published: Mapping[str, Any] = MappingProxyType(
        {"condition": "adaln-zero"}
        | dict.fromkeys(
            ("qk_norm", "rms_norm", "swiglu", "rope", "window", "exits", "condition_grid", "text_length"), False
        )
    )

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        condition: Literal["in-context", "cross-attention", "adaln", "adaln-zero"] = "adaln-zero",
        qk_norm: bool = False,
        frequency_shift: int = 0,
        exits: Sequence[float] = (),
        rms_norm: bool = False,
        swiglu: bool = False,
        rope: bool = False,
        window: int = 0,
        condition_grid: bool = False,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        projectors: Sequence[int] = (),
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        check_exits(exits)
        check_sizes(size, depth, width, heads, patch, rope)
        height, breadth = size
        block = self.block_type(condition)
        self.patch, self.exits = patch, exits
        self.sequence = condition in ("in-context", "cross-attention")  # condition as tokens [t, y], not as their sum
        self.joined = (1 + (text_length or 1)) if condition == "in-context" else 0
        turn = self.rotation(height // patch, breadth // patch, width // heads, self.joined) if rope else None
        places = check_windows((height // patch, breadth // patch), window, condition)
        norms, self.window = (self.norm_weights, self.gated_width(width)), window
        style = Style(width, heads, qk_norm, rms_norm, swiglu, turn, *norms, *places)

        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbedder(width, frequency_shift)
        self.y_embedder: LabelEmbedder | TextEmbedder
        self.y_embedder = TextEmbedder(width, self.text, heads) if self.text else LabelEmbedder(classes, width)
        if self.text:
            self.label_tables = ()
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(height // patch, breadth // patch, width))
        self.blocks = nn.ModuleList([block(style) for _ in range(depth)])
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=not self.sequence)
        outputs = height // patch * (breadth // patch) * width
        self.grid_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, outputs)) if condition_grid else None
        self.rope, self.head_width = rope, width // heads
        if projectors:
            inner, *out = projectors
            self.projectors = nn.ModuleList([projector(width, inner, features) for features in out])
        self.initialize(zero_gates=condition == "adaln-zero")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            f"{name}/{patch}": size._asdict() | {"patch": patch} for name, size in SIZES.items() for patch in PATCHES
        }

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The number of heads is only known for published sizes.
        """
        width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        depth = 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")), default=-1)
        side = round(tensors["pos_embed"].shape[1] ** 0.5) * patch  # assumes a square; callers can override the size
        modulation = tensors.get("blocks.0.adaLN_modulation.1.weight")
        heads = {(row.depth, row.width): {"heads": row.heads} for row in SIZES.values()}
        first = tensors.get("projectors.0.0.weight")
        out = [len(tensors[f"projectors.{i}.4.weight"]) for i in range(count_of(tensors, "projectors."))]
        projectors = {} if first is None else {"projectors": [len(first), *out]}
        return (
            {
                "size": (side, side),
                "channels": channels,
                "classes": cls.count_classes(len(tensors["y_embedder.embedding_table.weight"])),
                "learn_variance": len(tensors[cls.heads_out[0]]) == 2 * channels * patch**2,
                "condition": "adaln" if modulation is not None and len(modulation) == 4 * width else "adaln-zero",
                "width": width,
                "depth": depth,
                "patch": patch,
            }
            | heads.get((depth, width), {})
            | projectors
        )

    @classmethod
    def check_published(cls, config: Mapping[str, Any]) -> None:
        """Check as for all families; the published early exit has one schedule, for 28 blocks."""
        exits = tuple(config.get("exits") or ())
        depths = [max(1, round(share * config["depth"])) for share in exits]
        if cls is DiT and config["depth"] == PUBLISHED_DEPTHS[0] and tuple(depths) == PUBLISHED_DEPTHS:
            config = {key: value for key, value in config.items() if key != "exits"}
        super().check_published(config)

    @staticmethod
    def rotation(h: int, w: int, width: int, more: int = 0) -> Tensor:
        """Compute the rotary positions of `rope`, see `rotations`."""
        return rotations(h, w, width, more)

    @staticmethod
    def gated_width(width: int) -> int:
        """Return the inner width of SwiGLU layers; 0 is its default."""
        return 0

    def block_type(self, condition: str) -> type[nn.Module]:
        """The class of the blocks for a conditioning mechanism."""
        return lookup(BLOCKS, condition, "condition")

    @property
    def one_size(self) -> str:
        if self.window:
            return "its windows are those of one grid"
        return "" if self.grid_modulation is None else ONE_VALUE

    @property
    def undivided(self) -> str:
        if self.window or self.exits:
            return "they attend in windows" if self.window else "images leave it early"
        return ""

    @property
    def exchanging(self) -> list[nn.Module]:
        return [block.get_submodule("attn") for block in self.blocks]

    def share_tokens(self, share: TokenShare | None) -> None:
        super().share_tokens(None if share is None else share._replace(common=self.joined))

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1] + self.joined

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    @property
    def routable(self) -> list[nn.Module]:
        return [] if self.exits or self.window else [*self.blocks]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [] if self.sequence else [self.condition(self.t_embedder(timestep), self.y_embedder(label))]

    def modulations(self) -> list[Modulation]:
        if self.sequence:
            return []
        layers: list[nn.Module] = [block.get_submodule("adaLN_modulation") for block in self.repeated]
        layers += [] if self.grid_modulation is None else [self.grid_modulation]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [] if self.text else [self.y_embedder])

    def initialize(self, zero_gates: bool) -> None:
        """Set initial weights: Xavier for linear layers, N(0, 0.02) for embedders, zero for the head.

        Args:
            zero_gates: set the modulations of the blocks to zero too (adaln-zero).
        """
        initialize_linears(self)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        tables = [*self.y_embedder.parameters()] if isinstance(self.y_embedder, LabelEmbedder) else []
        for weight in (*tables, *self.t_embedder.mlp.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        if isinstance(self.y_embedder, TextEmbedder):
            self.y_embedder.initialize()
        zero: list[nn.Module] = [self.final_layer.linear]
        if self.final_layer.adaLN_modulation is not None:
            zero.append(self.final_layer.adaLN_modulation)
        if zero_gates:
            zero += [block.get_submodule("adaLN_modulation") for block in self.blocks]
        if self.grid_modulation is not None:
            zero.append(self.grid_modulation)
        set_to_zero(zero)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 for DiT, labels (B,) or text -> (B, out_channels, H, W)."""
        t = self.t_embedder(timestep)  # (B, D)
        c, vector = self.embedded(t, condition)  # (B, D) or (B, 2, D)
        h, w = self.grid_of_input(x)
        positions, grid = self.own_positions(h, w)
        # fmt: off
        x = self.x_embedder(self.own_patches(x.to(self.dtype), self.patch)) + positions  # (B, N, D)
        count = x.shape[1]                                                 # N = h w, or this process's part
        if self.grid_modulation is not None:
            x = x + self.own_part(self.grid_modulation(vector).unflatten(1, (h * w, -1)))
        if self.joined:
            x, c = joined(x, c)                                            # (B, N + 2, D)
        x = self.through_blocks(x, c, t, timestep, trace, grid)            # (B, N, D)
        x = self.final_layer(x[:, :count], c)                              # (B, N, p p C)
        record(trace, len(self.blocks), x)
        return unpatchify(self.whole(x), h, w, self.patch)                 # (B, C, H, W)
        # fmt: on

    def embedded(self, t: Tensor, condition: Condition | Tensor) -> tuple[Tensor | Context, Tensor]:
        """Return the condition as the blocks receive it, and as one vector (B, D); `t` is the embedded timestep (B, D).

        The blocks receive the vector, or the sequence of timestep and label (B, 2, D), or of timestep and text.
        """
        if not isinstance(self.y_embedder, TextEmbedder):
            y = self.y_embedder(self.labels(condition))
            c = self.condition(t, y)
            return c, t + y if self.sequence and self.grid_modulation is not None else c
        tokens, mask, text = self.y_embedder(self.texts(condition))
        vector = t + text
        if not self.sequence:
            return vector, vector
        missing = self.text.length - tokens.shape[1] if self.joined else 0  # the number of joined tokens is fixed
        tokens = F.pad(torch.cat([vector[:, None], tokens], dim=1), (0, 0, 0, missing))
        counts = mask.new_ones(mask.shape[0], 1), mask, mask.new_zeros(mask.shape[0], missing)
        return Context(tokens, torch.cat(counts, dim=1)), vector

    def positions(self, h: int, w: int) -> tuple[Tensor, Where | None]:
        """Return the positions (1, h w, D) of a grid, and the rotary ones if it is not the grid of the network."""
        if (h, w) == self.grid:
            return self.pos_embed, None
        device, width = self.pos_embed.device, self.pos_embed.shape[-1]
        table = table_of(sincos_positions, device, h, w, width).to(self.pos_embed.dtype)
        if not self.rope:
            return table, None
        return table, Where(table_of(self.rotation, device, h, w, self.head_width, self.joined))

    def own_positions(self, h: int, w: int) -> tuple[Tensor, Where | None]:
        """Return the positions of the tokens of this process; for all tokens, as `positions`."""
        table, grid = self.positions(h, w)
        if self.token_share is None or not self.rope:
            return self.own_part(table), grid
        turn = table_of(self.rotation, table.device, h, w, self.head_width, self.joined)  # (2, N + 2, d)
        own = torch.cat([self.own_part(turn[:, : h * w]), turn[:, h * w :]], dim=1)
        return self.own_part(table), Where(own)

    def through_blocks(
        self, x: Tensor, c: Any, t: Tensor, timestep: Tensor, trace: Trace | None, grid: Where | None = None
    ) -> Tensor:
        """Pass tokens (B, N, D) through all blocks; feature caching skips those in `inner`.

        Args:
            x: tokens.
            c: the condition, see `embedded`.
            t: embedding of the timestep (B, D).
            timestep: timestep input (B,).
            trace: as in `forward`.
            grid: the rotary positions of a grid that the network was not made for.
        """
        return self.inner(x, c, t, timestep, trace, grid)

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks, or up to the early exit of each image."""
        c, _, timestep, trace, grid = context
        if leaves_early(self.exits, timestep):
            return through(self.blocks, x, c, depth_at(timestep, self.exits, len(self.blocks)), trace, grid)
        if trace is not None and trace.kept is not None:
            return routed(self.blocks, x, c, trace.kept, trace, grid)
        for i, block in enumerate(self.blocks):
            x = block(x, c) if grid is None else block(x, c, grid)  # (B, N, D)
            record(trace, i, x)
        return x

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """Combine the embeddings of timestep and label, (B, D) each: their sum, or a sequence of two tokens."""
        return torch.stack([t, y], dim=1) if self.sequence else t + y


def check_sizes(size: tuple[int, int], depth: int, width: int, heads: int, patch: int, rope: bool) -> None:
    """Check that sizes fit together.

    Raises:
        InputError: they do not.
    """
    check_positive(depth=depth, width=width, heads=heads, patch=patch)
    height, breadth = size
    if height % patch or breadth % patch:
        raise InputError(f"size {height}x{breadth} is not divisible by patch {patch}; choose another size or patch")
    if width % heads or width % 4:
        raise InputError(f"width {width} must be divisible by heads {heads} and by 4 (positions in two dimensions)")
    if rope and width // heads % 4:
        raise InputError(
            f"rope with {counted(width // heads, 'channel')} for each head; choose width and heads so that this "
            "is a multiple of 4 (positions in two dimensions)"
        )
