"""PixArt-alpha (Chen et al., "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image
Synthesis", ICLR 2024): a DiT that reads text by cross-attention.

One layer computes shift, scale and gate of all blocks from the timestep, and each block adds a learned table to them
(adaLN-single). Cross-attention has neither a norm nor a gate, and its output layer starts at zero. The state dict has
the published keys. In shapes, B is the batch, N image tokens, L text tokens, E the width of the text encoder's states,
D width and p patch.
"""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones import pixart_published
from ditlab.backbones.any_size import ONE_VALUE
from ditlab.backbones.base import Backbone, Embedders
from ditlab.backbones.captions import embedded
from ditlab.backbones.dit import DiT
from ditlab.backbones.layers import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    check_positive,
    initialize_linears,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.pixart_blocks import CaptionProjection, FinalLayer, Given, PixArtBlock, SizeEmbedder
from ditlab.backbones.pixart_published import STRIDE, XL
from ditlab.backbones.positions import sincos_positions, table_of
from ditlab.backbones.routing import record, routed
from ditlab.backbones.text import Context, TextEmbedder, text_shape
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

MIDDLE = 500.0  # timestep at which a network that starts from a DiT equals it
SMALL = {"depth": 6, "width": 192, "heads": 6, "text_block": True, "condition_grid": True}  # for small budgets


class PixArt(Backbone):
    """A transformer with cross-attention to text, initialized as published: before training, its output is zero.

    Without text, the class embedding is the only token of the cross-attention.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
        text_block: embed the text with learned positions and a block of self-attention, and add its mean to the
            timestep embedding, instead of the published projection; always for numbers of words.
        condition_grid: also add a linear function of the condition to the image tokens, with a value for each position.
        position_grid: side of the grid that positions are stretched to, as published; 0 does not stretch them.
        interpolation: factor by which positions are closer to each other.
        resolution: embed height, width and aspect ratio of the image, whose side is this factor times that of the input
            (8 for Stable Diffusion's latents); 0 does not embed them.
        null_caption: keep the null caption of the published weights as a buffer.
    """

    label_tables = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    lora_targets = ("attn.qkv", "attn.proj", "cross_attn.q_linear", "cross_attn.kv_linear", "cross_attn.proj")
    changeable = ("null_caption",)
    defaults = MappingProxyType({"size": 32, "channels": 4, "classes": 0, "learn_variance": True})
    marks = (
        "x_embedder.proj.weight",
        "t_block.1.weight",
        "blocks.0.scale_shift_table",
        "blocks.0.cross_attn.kv_linear.weight",
        "y_embedder.y_proj.fc1.weight",
        "final_layer.scale_shift_table",
        *heads_out,
    )
    published = MappingProxyType(dict.fromkeys(("text_block", "condition_grid", "pooled_width", "vocabulary"), False))
    diffusers_class = "PixArtTransformer2DModel"
    computed = ("pos_embed",)
    starts_from = ("DiT",)

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
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        text_block: bool = False,
        condition_grid: bool = False,
        position_grid: int = 0,
        interpolation: float = 1.0,
        resolution: int = 0,
        null_caption: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, width=width, heads=heads, patch=patch)
        check_sizes(size, width, heads, patch, position_grid, interpolation, resolution)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.patch, self.position_grid, self.interpolation, self.resolution = (
            patch,
            position_grid,
            interpolation,
            resolution,
        )
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder: nn.Module
        if not self.text:
            self.y_embedder = LabelEmbedder(classes, width)
        elif text_block or vocabulary or pooled_width:
            self.y_embedder = TextEmbedder(width, self.text, heads)
        else:
            self.y_embedder = CaptionProjection(self.text, width, null_caption)
        self.csize_embedder = SizeEmbedder(width // 3) if resolution else None
        self.ar_embedder = SizeEmbedder(width // 3) if resolution else None
        h, w = self.grid
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_positions(h, w, width, self.spacing(h, w)))
        self.grid_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, h * w * width)) if condition_grid else None
        self.blocks = nn.ModuleList([PixArtBlock(width, heads) for _ in range(depth)])
        self.final_layer = FinalLayer(width, patch * patch * self.out_channels)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """The published network for several sizes and shapes, that for images of 256 pixels, and small ones."""
        small = {f"S/{patch}": SMALL | {"patch": patch} for patch in (2, 4)}
        return {"XL/2-MS": XL | {"resolution": STRIDE}, "XL/2": XL} | small

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The number of heads is only known for the published size. Without a null caption, the number of text tokens is
        that of the published model.
        """
        return pixart_published.read_sizes(tensors)

    @classmethod
    def from_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert the tensors and the config.json of diffusers' transformer; see `Backbone.from_diffusers`."""
        return pixart_published.from_diffusers(tensors, config)

    @classmethod
    def to_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Convert to the tensors and the config.json of diffusers' transformer; see `Backbone.to_diffusers`."""
        return pixart_published.to_diffusers(tensors, config)

    @property
    def one_size(self) -> str:
        return "" if self.grid_modulation is None else ONE_VALUE

    def spacing(self, h: int, w: int) -> tuple[float, float]:
        """Return the distance of neighboring rows and columns of a grid, in the positions."""
        rows, columns = self.position_grid or h, self.position_grid or w
        return rows / h / self.interpolation, columns / w / self.interpolation

    def positions(self, h: int, w: int) -> Tensor:
        """Return the positions (1, h w, D) of a grid."""
        if (h, w) == self.grid:
            return self.pos_embed
        width, device = self.pos_embed.shape[-1], self.pos_embed.device
        return table_of(sincos_positions, device, h, w, width, self.spacing(h, w)).to(self.pos_embed.dtype)

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    @property
    def routable(self) -> list[nn.Module]:
        return [*self.blocks]

    def embedders(self) -> Embedders:
        embedders = (self.t_embedder, self.csize_embedder, self.ar_embedder)
        return Embedders([embedder for embedder in embedders if embedder is not None])

    @torch.no_grad()
    def adopt(self, source: Backbone) -> dict[str, str]:
        """Set the tables of the blocks so that the network equals a DiT at timestep 500 without a class.

        This is the published way to start from a DiT. The text has no influence yet, because the output layers of
        cross-attention are zero.
        """
        zero = isinstance(source, DiT) and source.config.get("condition", "adaln-zero") == "adaln-zero"
        if not isinstance(source, DiT) or not zero or source.text or len(source.blocks) != len(self.blocks):
            return {}
        t = torch.tensor([MIDDLE], device=source.device)
        (c,) = source.conditioning(t, torch.full((1,), source.classes, device=source.device))
        common, final = self.t_block(self.t_embedder(t)).view(6, -1), self.t_embedder(t)
        for block, other in zip(self.blocks, source.blocks, strict=True):
            table = other.get_submodule("adaLN_modulation")(c).view(6, -1) - common
            block.get_parameter("scale_shift_table").copy_(table)
        assert source.final_layer.adaLN_modulation is not None
        self.final_layer.scale_shift_table.copy_(source.final_layer.adaLN_modulation(c).view(2, -1) - final)
        names = [f"blocks.{i}.scale_shift_table" for i in range(len(self.blocks))]
        return dict.fromkeys([*names, "final_layer.scale_shift_table"], f"adaLN modulation at timestep {MIDDLE:.0f}")

    def initialize(self) -> None:
        """Set initial weights: Xavier for linear layers, N(0, 0.02) for embedders, zero for cross-attention and head.

        The tables of the blocks are N(0, 1 / D).
        """
        initialize_linears(self)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        small = [*self.embedders().timestep, self.t_block]
        if isinstance(self.y_embedder, TextEmbedder):
            self.y_embedder.initialize()
        else:
            small.append(self.y_embedder)
        for weight in (weight for module in small for weight in module.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        zero: list[nn.Module] = [self.final_layer.linear]
        zero += [block.get_submodule("cross_attn.proj") for block in self.blocks]
        set_to_zero(zero if self.grid_modulation is None else [*zero, self.grid_modulation])

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999, text tokens or labels (B,) -> (B, out_channels, H, W)."""
        h, w = self.grid_of_input(x)
        # fmt: off
        text, vector = self.embedded(condition)                            # (B, L, D), (B, D)
        c = self.t_embedder(timestep) + self.sizes(condition, x)               # (B, D)
        c = c if vector is None else c + vector
        given = Given(self.t_block(c).unflatten(1, (6, -1)), text)         # (B, 6, D)
        x = self.x_embedder(x.to(self.dtype)) + self.positions(h, w)       # (B, N, D)   N = h w
        if self.grid_modulation is not None:
            x = x + self.grid_modulation(c).unflatten(1, (h * w, -1))  # (B, N, D)
        x = self.inner(x, given, trace)                                    # (B, N, D)
        x = self.final_layer(x, c)                                         # (B, N, p p C)
        record(trace, len(self.blocks), x)
        return unpatchify(x, h, w, self.patch)                             # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks; feature caching skips them."""
        given, trace = context
        if trace is not None and trace.kept is not None:
            return routed(self.blocks, x, given, trace.kept, trace)
        for i, block in enumerate(self.blocks):
            x = block(x, given)  # (B, N, D)
            record(trace, i, x)
        return x

    def embedded(self, condition: Condition | Tensor) -> tuple[Context, Tensor | None]:
        """Return the text as tokens of the network's width, and as one vector (B, D) if the embedder computes one."""
        return embedded(self, self.y_embedder, condition)

    def sizes(self, condition: Condition | Tensor, x: Tensor) -> Tensor | float:
        """Return the embedding (B, D) of height, width and aspect ratio; by default those of the images x."""
        if self.csize_embedder is None or self.ar_embedder is None:
            return 0.0
        sides = condition.resolution if isinstance(condition, Condition) else None
        if sides is None:
            sides = torch.tensor(x.shape[2:], device=self.device).mul(self.resolution).expand(x.shape[0], 2)
        ratio = sides[:, :1].float() / sides[:, 1:].float()
        return torch.cat([self.csize_embedder(sides), self.ar_embedder(ratio)], dim=1)


def check_sizes(
    size: tuple[int, int], width: int, heads: int, patch: int, position_grid: int, interpolation: float, resolution: int
) -> None:
    """Check that sizes fit together.

    Raises:
        InputError: they do not.
    """
    if size[0] % patch or size[1] % patch:
        raise InputError(f"size {size[0]}x{size[1]} is not divisible by patch {patch}; choose another size or patch")
    if width % heads or width % 4:
        raise InputError(f"width {width} must be divisible by heads {heads} and by 4 (positions in two dimensions)")
    if position_grid < 0 or not interpolation > 0:
        raise InputError(
            f"position_grid {position_grid} and interpolation {interpolation}; give a grid of 0 or more, and a factor "
            "above 0"
        )
    if resolution < 0 or (resolution and width % 3):
        raise InputError(
            f"resolution {resolution} with width {width}; give 0 or more, and a width that is divisible by 3 (height, "
            "width and aspect ratio)"
        )
