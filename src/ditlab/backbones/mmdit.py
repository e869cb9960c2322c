"""MM-DiT (Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024).

Image and text are two streams with weights of their own, which attend to each other in every block. With the options of
Stable Diffusion 3 and 3.5 the state dict has Stability's keys. A network that is trained from nothing can instead read
numbers of words, or states that do not carry the order of the words, through `TextEmbedder`. In shapes, B is the batch,
N the number of image tokens, L that of text tokens, D the width, p the patch and h x w the token grid.
"""

from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ditlab.backbones import mmdit_layouts
from ditlab.backbones.dit_blocks import FinalLayer, Style
from ditlab.backbones.joint import JointNetwork
from ditlab.backbones.layers import (
    check_positive,
    unpatchify,
)
from ditlab.backbones.mmdit_blocks import JointBlock
from ditlab.backbones.positions import sincos_positions, sincos_table, table_of
from ditlab.backbones.routing import record
from ditlab.backbones.text import text_shape
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

SD3_TEXT = {"text_length": 154, "text_width": 4096, "pooled_width": 2048}  # two CLIPs, and T5 of 77 tokens
MEDIUM = {"depth": 24, "width": 1536, "heads": 24, "patch": 2}
LARGE = {"depth": 38, "width": 2432, "heads": 38, "patch": 2}


class MMDiT(JointNetwork):
    """Two streams, image and text, with joint attention; before training, its output is exactly zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        qk_norm: RMS-normalize queries and keys, as Stable Diffusion 3.5 does.
        dual_blocks: number of first blocks with a second attention among the image tokens (Stable Diffusion 3.5
            medium: 13).
        position_side: side in patches of the saved table of positions, from whose center each image takes its part, so
            that the network accepts other sizes; 0 is a table for one size.
        text_length: largest number of text tokens.
        text_width: width of the states of a text encoder; 0 if the network reads numbers of words.
        vocabulary: number of words, including padding; 0 if the network reads states.
        pooled_width: width of the pooled vector of a text encoder; 0 if there is none.
        text_block: give the text tokens learned positions and a block of self-attention before the first block;
            Stable Diffusion 3, whose encoders do both, has one linear layer instead.
        condition_grid: also add a linear function of the timestep and the pooled text to the image tokens, with a value
            for each position, which makes short trainings start sooner.
    """

    called = "an MMDiT"
    lora_targets = ("attn.qkv", "attn.proj", "attn2.qkv", "attn2.proj", "adaLN_modulation.1")
    marks = (
        "x_embedder.proj.weight",
        "pos_embed",
        "joint_blocks.0.context_block.attn.qkv.weight",
        *JointNetwork.heads_out,
    )
    diffusers_class = "SD3Transformer2DModel"
    diffusers_marks = ("pos_embed.pos_embed", "transformer_blocks.0.attn.add_k_proj.weight", "norm_out.linear.weight")
    published = MappingProxyType({"text_block": False, "condition_grid": False, "learn_variance": False})

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
        qk_norm: bool = False,
        dual_blocks: int = 0,
        position_side: int = 0,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        text_block: bool = False,
        condition_grid: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, width=width, heads=heads, patch=patch)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        self.patch, self.joined, self.position_side = patch, text_length, position_side
        if width % heads or width % 4:
            raise InputError(f"width {width} must be divisible by heads {heads} and by 4 (positions in two dimensions)")
        if not 0 <= dual_blocks <= depth:
            raise InputError(f"dual_blocks {dual_blocks}; give 0 to {depth}, the number of blocks")
        self.check_text(text_block)
        self.check_sides(condition_grid)
        h, w = self.grid
        self.make_embedders(
            width=width, heads=heads, pooled_width=pooled_width, text_width=text_width, text_block=text_block,
            condition_grid=condition_grid,
        )  # fmt: skip
        self.pos_embed: Tensor
        spaced = sincos_table(position_side, width, max(h, w) / position_side) if position_side else None
        self.register_buffer("pos_embed", sincos_positions(h, w, width) if spaced is None else spaced)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, heads, qk_norm, dual=i < dual_blocks, last=i == depth - 1) for i in range(depth)
        )
        style = Style(width, heads, qk_norm, rms_norm=False, swiglu=False, rotation=None)
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=True)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Stable Diffusion's sizes, and small ones that read the text through `TextEmbedder`."""
        small = {"qk_norm": True, "text_block": True, "condition_grid": True}
        return {
            "XS/2": {"depth": 4, "width": 128, "heads": 4, "patch": 2, **small},
            "XS/4": {"depth": 4, "width": 128, "heads": 4, "patch": 4, **small},
            "S/2": {"depth": 6, "width": 192, "heads": 6, "patch": 2, **small},
            "S/4": {"depth": 6, "width": 192, "heads": 6, "patch": 4, **small},
            "SD3-medium": MEDIUM | {"position_side": 192} | SD3_TEXT,
            "SD3.5-medium": MEDIUM | {"position_side": 384, "qk_norm": True, "dual_blocks": 13} | SD3_TEXT,
            "SD3.5-large": LARGE | {"position_side": 192, "qk_norm": True} | SD3_TEXT,
        }

    def check_sides(self, condition_grid: bool) -> None:
        """Check that the size consists of patches, for which there are positions.

        Raises:
            InputError: it does not.
        """
        height, width = self.size
        patch, side = self.patch, self.position_side
        if height % patch or width % patch:
            raise InputError(f"size {height}x{width} is not divisible by patch {patch}; choose another size or patch")
        if side and max(self.grid) > side:
            raise InputError(
                f"size {height}x{width} has more than {side} patches of {patch} a side (position_side); give at most "
                f"{side * patch}"
            )
        if side and condition_grid:
            raise InputError("condition_grid is for one size, and position_side for several; leave one of them out")

    @property
    def longest_side(self) -> int | None:
        return self.position_side * self.patch or None

    @property
    def routable(self) -> list[nn.Module]:
        return [*self.joint_blocks]

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Compute the output (B, out_channels, H, W).

        Args:
            x: images or latents (B, C, H, W).
            timestep: (B,) float in 0..1000, not rounded.
            condition: `tokens` (B, L, E), or (B, L) if the network reads words; `pooled` (B, P) if it has a pooled
                width; `mask` (B, L), where None counts every token, as Stable Diffusion 3 does.
            trace: records intermediate values; blocks have the tokens of image and text, in this order.

        Raises:
            InputError: an input of another shape, or a condition without text.
        """
        h, w = self.grid_of_input(x)
        # fmt: off
        text, mask, vector = self.embedded(condition)                      # (B, L, D), (B, L), (B, D)
        c = self.t_embedder(timestep) + vector                             # (B, D)
        x = self.own_tokens(x, c) + self.own_part(self.positions(h, w))    # (B, N, D)   N = h w
        x = self.inner(x, text, self.context(c, text.shape[1], mask), trace)  # (B, N, D)
        x = self.final_layer(x, c)                                         # (B, N, p p C)
        record(trace, len(self.joint_blocks), x)
        return unpatchify(self.whole(x), h, w, self.patch)                 # (B, C, H, W)
        # fmt: on

    def positions(self, h: int, w: int) -> Tensor:
        """Return the positions (1, h w, D) of a grid, from the center of a table for several sizes if there is one."""
        if not self.position_side and (h, w) == self.grid:
            return self.pos_embed
        if not self.position_side:
            table = table_of(sincos_positions, self.pos_embed.device, h, w, self.pos_embed.shape[-1])
            return table.to(self.pos_embed.dtype)
        side = self.position_side
        top, left = (side - h) // 2, (side - w) // 2
        table = self.pos_embed.view(1, side, side, -1)
        return table[:, top : top + h, left : left + w].flatten(1, 2)

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return mmdit_layouts.read_sizes(tensors)

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Rectified flow: the velocity eps - x0 on the linear path, at logit-normal times (Esser et al. 2024)."""
        return {"process": {"name": "linear"}, "target": "velocity", "time": "logit-normal"}

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return Stability's keys as in a released file.

        Raises:
            InputError: the table of positions is not square.
        """
        count = tensors["pos_embed"].shape[1]
        if round(count**0.5) ** 2 != count:
            raise InputError(f"positions of {count} patches, which are no square; convert to ditlab instead")
        return {f"{mmdit_layouts.PREFIX}{key}": value for key, value in tensors.items()}

    @classmethod
    def from_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return mmdit_layouts.from_diffusers(tensors), mmdit_layouts.read_diffusers_config(config)

    @classmethod
    def to_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        side = round(tensors[f"{mmdit_layouts.PREFIX}pos_embed"].shape[1] ** 0.5)
        return mmdit_layouts.to_diffusers(tensors), mmdit_layouts.diffusers_config(config | {"position_side": side})
