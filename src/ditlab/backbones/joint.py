"""What MM-DiT and Flux share: the embedders of image and text, and blocks that pass both as one sequence.

In shapes, B is the batch, N the number of image tokens, L that of text tokens, D the width and P that of a pooled text.
"""

from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ditlab.backbones.any_size import ONE_VALUE
from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.dit_blocks import FinalLayer
from ditlab.backbones.layers import PatchEmbed, TimestepEmbedder, initialize_linears, last_linear, set_to_zero
from ditlab.backbones.mmdit_blocks import Context, StreamAttention, VectorEmbedder
from ditlab.backbones.routing import record, routed
from ditlab.backbones.text import TextEmbedder, checked
from ditlab.core.errors import InputError
from ditlab.core.types import Condition


class JointNetwork(Backbone):
    """A network that reads text and whose blocks, which are `routable`, have image tokens before text tokens."""

    defaults = MappingProxyType({"size": 128, "channels": 16, "classes": 0, "learn_variance": False})
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    decayed = ("text_embedder.positions",)
    changeable = ("text_length",)
    called: ClassVar[str]
    """Name of the family with its article, for messages."""

    final_layer: FinalLayer

    def make_embedders(
        self, *, width: int, heads: int, pooled_width: int, text_width: int, text_block: bool, condition_grid: bool
    ) -> None:
        """Make the layers before the blocks; `patch`, `joined` and `text` are set already."""
        h, w = self.grid
        # fmt: off
        self.x_embedder = PatchEmbed(self.patch, self.channels, width)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = VectorEmbedder(pooled_width, width) if pooled_width and not text_block else None
        self.context_embedder = None if text_block else nn.Linear(text_width, width)
        self.text_embedder = TextEmbedder(width, self.text, heads) if text_block else None
        self.grid_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, h * w * width)) if condition_grid else None
        # fmt: on

    def check_text(self, positions: bool) -> None:
        """Check that there is a text, and that words have positions.

        Raises:
            InputError: there is none, or they have none.
        """
        if not self.text:
            raise InputError(
                f"{self.called} without text; give text_length, and text_width (states) or vocabulary (words)"
            )
        if self.text.vocabulary and not positions:
            raise InputError("vocabulary without text_block: words have no order then; set text_block = true")

    @property
    def one_size(self) -> str:
        return "" if self.grid_modulation is None else ONE_VALUE

    @property
    def undivided(self) -> str:
        return ""

    @property
    def exchanging(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, StreamAttention)]

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1] + self.joined

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.routable, self.final_layer]

    def modulations(self) -> list[Modulation]:
        layers = [module for name, module in self.named_modules() if name.endswith("modulation")]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [] if self.y_embedder is None else [self.y_embedder])

    def initialize(self) -> None:
        """Set initial weights: Xavier for linear layers, N(0, 0.02) for embedders, zero for modulations and the head.

        Those of Stable Diffusion 3 and Flux.1 are not published; these are DiT's.
        """
        initialize_linears(self)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(len(self.x_embedder.proj.weight), -1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        for embedder in (self.t_embedder, self.y_embedder):
            for weight in [] if embedder is None else embedder.parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=0.02)
        if self.text_embedder is not None:
            self.text_embedder.initialize()
        set_to_zero([*(part.layer for part in self.modulations()), self.final_layer.linear])

    def embedded(self, condition: Condition | Tensor) -> tuple[Tensor, Tensor | None, Tensor | float]:
        """Return the text tokens (B, L, D), the mask (B, L) if there is one, and the pooled text (B, D).

        Raises:
            InputError: a condition without text, or with text of another shape.
        """
        condition = self.texts(condition)
        if self.text_embedder is not None:
            return self.text_embedder(condition)
        assert self.context_embedder is not None
        tokens = checked(condition, self.text)
        vector = 0.0 if self.y_embedder is None else self.y_embedder(condition.pooled)
        return self.context_embedder(tokens.to(self.dtype)), condition.mask, vector

    def own_tokens(self, x: Tensor, c: Tensor) -> Tensor:
        """Embed an image (B, C, H, W) as the tokens of this process (B, N, D), for a condition (B, D)."""
        x = self.x_embedder(self.own_patches(x.to(self.dtype), self.patch))
        if self.grid_modulation is None:
            return x
        return x + self.own_part(self.grid_modulation(c).unflatten(1, (-1, x.shape[2])))

    def context(self, c: Tensor, length: int, mask: Tensor | None, rotation: Tensor | None = None) -> Context:
        """Return what the blocks receive besides the tokens, see `Context`; the rotary positions are those of all."""
        if self.token_share is None:
            return Context(c, length, mask, rotation)
        if rotation is not None:
            count = rotation.shape[1] - length
            rotation = torch.cat([self.own_part(rotation[:, :count]), rotation[:, count:]], dim=1)
        return Context(c, length, mask, rotation, self.token_share._replace(common=length))

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass image tokens (B, N, D) through all blocks; feature caching skips them."""
        text, c, trace = context
        count, blocks = x.shape[1], self.routable
        x = torch.cat([x, text], dim=1)  # (B, N + L, D)
        if trace is not None and trace.kept is not None:
            return routed(blocks, x, c, trace.kept, trace)[:, :count]
        for i, block in enumerate(blocks):
            x = block(x, c)
            record(trace, i, x)
        return x[:, :count]
