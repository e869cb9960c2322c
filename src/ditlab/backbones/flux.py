"""Flux.1 (Black Forest Labs, 2024): MM-DiT, followed by blocks in which image and text are one sequence.

The first blocks are those of `MMDiT`, and rotary positions take the place of its table. In the others, attention and
MLP read the same normalized tokens, and their sum is added once ("Scaling Vision Transformers to 22 Billion
Parameters", Dehghani et al. 2023). Flux.1 dev is distilled from a guided model, and reads the guidance scale as a
further input (Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023).

In shapes, B is the batch, N the number of image tokens, L that of text tokens, D the width, d that of a head, p the
patch and h x w the token grid.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones import flux_layouts
from ditlab.backbones.dit_blocks import FinalLayer, Style
from ditlab.backbones.inputs import SCALE
from ditlab.backbones.joint import JointNetwork
from ditlab.backbones.layers import (
    LinearGELU,
    check_positive,
    modulate,
    norm,
    unpatchify,
)
from ditlab.backbones.mmdit_blocks import Context, JointBlock, StreamAttention
from ditlab.backbones.positions import axis_rotations, table_of
from ditlab.backbones.routing import record
from ditlab.backbones.text import text_shape
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

PUBLISHED = {"depth": 19, "single_depth": 38, "width": 3072, "heads": 24, "patch": 2}
TEXT = {"text_width": 4096, "pooled_width": 768}  # T5 and CLIP-L
SMALL = {"text_block": True, "condition_grid": True}


class Flux(JointNetwork):
    """Two streams with joint attention, then a single one; before training, its output is exactly zero.

    Args:
        depth: number of blocks with two streams.
        single_depth: number of blocks with a single stream, which follow them.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        axes: channels of a head that are rotated by the frame (always 0), the row and the column; by default about an
            eighth, and half of the others each.
        text_length: largest number of text tokens.
        text_width: width of the states of a text encoder; 0 if the network reads numbers of words.
        vocabulary: number of words, including padding; 0 if the network reads states.
        pooled_width: width of the pooled vector of a text encoder; 0 if there is none.
        text_block: give the text tokens learned positions and a block of self-attention before the first block;
            Flux.1, whose encoders do both, has one linear layer instead.
        condition_grid: also add a linear function of the timestep and the pooled text to the image tokens, with a value
            for each position, which makes short trainings start sooner.
        unit_time: the timestep input is 0 to 1, as in published weights, instead of 0 to 1000.
    """

    called = "a Flux"
    lora_targets = ("attn.qkv", "attn.proj", "adaLN_modulation.1")
    marks = flux_layouts.MARKS
    diffusers_class = "FluxTransformer2DModel"
    diffusers_marks = flux_layouts.DIFFUSERS_MARKS
    published = MappingProxyType({"patch": 2, "text_block": False, "condition_grid": False, "learn_variance": False})

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        single_depth: int,
        width: int,
        heads: int,
        patch: int,
        axes: Sequence[int] = (),
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        text_block: bool = False,
        condition_grid: bool = False,
        unit_time: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_positive(depth=depth, single_depth=single_depth, width=width, heads=heads, patch=patch)
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width
        )
        check_sizes(size, width, heads, patch)
        self.patch, self.joined = patch, text_length
        self.axes = checked_axes(axes, width // heads)
        self.check_text(text_block)
        h, w = self.grid
        self.make_embedders(
            width=width, heads=heads, pooled_width=pooled_width, text_width=text_width, text_block=text_block,
            condition_grid=condition_grid,
        )  # fmt: skip
        if unit_time:
            self.t_embedder.rate = 1000
        self.rotation: Tensor
        self.register_buffer("rotation", axis_rotations(h, w, self.axes), persistent=False)
        double = [JointBlock(width, heads, qk_norm=True, dual=False, last=False) for _ in range(depth)]
        self.blocks = nn.ModuleList([*double, *(SingleBlock(width, heads) for _ in range(single_depth))])
        style = Style(width, heads, qk_norm=True, rms_norm=False, swiglu=False, rotation=None)
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=True)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """The published networks, and small ones that read the text through `TextEmbedder`."""
        tiny, small = ({"width": width, "heads": heads, **SMALL} for width, heads in ((128, 4), (192, 6)))
        return {
            "XS/2": {"depth": 2, "single_depth": 4, "patch": 2, **tiny},
            "XS/4": {"depth": 2, "single_depth": 4, "patch": 4, **tiny},
            "S/2": {"depth": 3, "single_depth": 6, "patch": 2, **small},
            "S/4": {"depth": 3, "single_depth": 6, "patch": 4, **small},
            "dev": PUBLISHED | TEXT | {"text_length": 512, "inputs": (SCALE,)},
            "schnell": PUBLISHED | TEXT | {"text_length": 256},
        }

    @property
    def routable(self) -> list[nn.Module]:
        return [*self.blocks]

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Compute the output (B, out_channels, H, W).

        Args:
            x: images or latents (B, C, H, W).
            timestep: (B,) float in 0..1000, or in 0..1 with `unit_time`, not rounded; (B, 2) with the guidance scale
                for a network that reads it, such as Flux.1 dev.
            condition: `tokens` (B, L, E), or (B, L) if the network reads words; `pooled` (B, P) if it has a pooled
                width; `mask` (B, L), where None counts every token, as Flux.1 does.
            trace: records intermediate values; blocks have the tokens of image and text, in this order.

        Raises:
            InputError: an input of another shape, or a condition without text.
        """
        h, w = self.grid_of_input(x)
        self.check_timestep(timestep)
        # fmt: off
        text, mask, vector = self.embedded(condition)                      # (B, L, D), (B, L), (B, D)
        c = self.t_embedder(timestep) + vector                             # (B, D)
        x, length = self.own_tokens(x, c), text.shape[1]                   # (B, N, D)   N = h w
        x = self.inner(x, text, self.context(c, length, mask, self.positions(h, w, length)), trace)
        x = self.final_layer(x, c)                                         # (B, N, p p C)
        record(trace, len(self.blocks), x)
        return unpatchify(self.whole(x), h, w, self.patch)                 # (B, C, H, W)
        # fmt: on

    def check_timestep(self, timestep: Tensor) -> None:
        """Check that a network that reads the guidance scale receives it.

        Raises:
            InputError: it does not.
        """
        if self.inputs and timestep.ndim != 2:
            raise InputError(
                f"timesteps of shape {tuple(timestep.shape)} for a network that also reads "
                f"{', '.join(self.inputs)}; give (B, {1 + len(self.inputs)}): the timestep, then these values"
            )

    def positions(self, h: int, w: int, length: int) -> Tensor:
        """Return the rotary positions (2, h w + L, d) of a grid and a text, whose tokens are not rotated."""
        own = (h, w) == self.grid
        table = self.rotation if own else table_of(axis_rotations, self.rotation.device, h, w, self.axes)
        table = table.to(self.dtype)
        cosines = F.pad(table[:1], (0, 0, 0, length), value=1.0)
        return torch.cat([cosines, F.pad(table[1:], (0, 0, 0, length))])

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return flux_layouts.read_sizes(tensors)

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Rectified flow: the velocity eps - x0 on the linear path, with the guidance scale as an input if it is read.

        Times are logit-normal, as for Stable Diffusion 3; those of Flux.1 are not published.
        """
        process = {"name": "linear", "clock_rate": 1.0 if sizes.get("unit_time") else 1000.0}
        objective = {"process": process, "target": "velocity", "time": "logit-normal"}
        return objective | ({"parametrization": "guidance-input"} if SCALE in sizes.get("inputs", ()) else {})

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return flux_layouts.from_published(tensors)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return flux_layouts.to_published(tensors)

    @classmethod
    def from_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return flux_layouts.from_diffusers(tensors), flux_layouts.read_diffusers_config(config)

    @classmethod
    def to_diffusers(
        cls, tensors: dict[str, Tensor], config: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        axes = checked_axes(config.get("axes") or (), config["width"] // config["heads"])
        return flux_layouts.to_diffusers(tensors), flux_layouts.diffusers_config(config | {"axes": axes})


class SingleBlock(nn.Module):
    """Attention and MLP side by side on one sequence of image and text; the identity at initialization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = norm(width, affine=False)
        self.attn = StreamAttention(width, heads, qk_norm=True)
        self.fc1 = LinearGELU(width, 4 * width, "tanh")
        self.fc2 = nn.Linear(4 * width, width, bias=False)  # the bias is that of `attn.proj`, to which it is added
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, c: Context, where: Tensor | None = None) -> Tensor:
        """Update the tokens (B, N + L, D) of image and text, which are at the positions `where` (B, N + L)."""
        shift, scale, gate = self.adaLN_modulation(c.vector).chunk(3, dim=1)
        tokens = modulate(self.norm(x), shift, scale)
        attended = self.attn.output(c.attend(*self.attn.split(tokens), where))
        return torch.addcmul(x, gate[:, None], attended + self.fc2(self.fc1(tokens)))


def check_sizes(size: tuple[int, int], width: int, heads: int, patch: int) -> None:
    """Check that sizes fit together.

    Raises:
        InputError: they do not.
    """
    if width % heads or width // heads % 2:
        raise InputError(f"width {width} must be divisible by heads {heads}, and a head must have an even width")
    if size[0] % patch or size[1] % patch:
        raise InputError(f"size {size[0]}x{size[1]} is not divisible by patch {patch}; choose another size or patch")


def checked_axes(axes: Sequence[int], head: int) -> tuple[int, int, int]:
    """Return the channels of a head that each axis rotates; by default 16, 56 and 56 of 128.

    Raises:
        InputError: they are not even, or not those of a head.
    """
    side = 2 * max(1, 7 * head // 32)
    frame, row, column = axes if len(axes) == 3 else (head - 2 * side, side, side)
    if len(axes) not in (0, 3) or frame + row + column != head or min(frame, row, column) < 0:
        raise InputError(f"axes {', '.join(map(str, axes))}; give three even numbers whose sum is {head}, the head")
    if frame % 2 or row % 2 or column % 2:
        raise InputError(f"axes {frame}, {row}, {column}; give three even numbers whose sum is {head}, the head")
    return frame, row, column
