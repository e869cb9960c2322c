"""Deep fusion: an image transformer that attends to the keys and values of a language model, layer by layer.

The design is that of Playground v3 (Liu et al. 2024), whose code is not published, as far as FuseDiT describes it (Tang
et al., "Exploring the Deep Fusion of Large Language Models and Diffusion Transformers for Text-to-Image Synthesis",
CVPR 2025): one softmax over the language model's keys and the image's keys, with the heads of the language model; its
own positions on the text and 2-D rotary positions on the image; a norm before and after each layer. The text does not
see the image, so its keys and values are computed once a prompt. Skip connections and shorter keys follow the report of
Playground v3; their form here is ditlab's: joins that start as the identity, and 2x2 means of keys and values.

In shapes, B is the batch, N image tokens, L text tokens, D width, d width of a head.
"""

from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders
from ditlab.backbones.deep_fusion_blocks import Block, FinalLayer, Sizes, Text
from ditlab.backbones.language import TextTower, TowerSizes
from ditlab.backbones.layers import (
    PatchEmbed,
    TimestepEmbedder,
    check_positive,
    initialize_linears,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.positions import rotations
from ditlab.backbones.routing import record
from ditlab.backbones.text import checked, text_shape
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

SMALL = {"depth": 6, "width": 192, "heads": 6, "kv_heads": 2, "head_width": 32, "condition_grid": True}
MODELS = {  # geometry of language models, whose keys and values are the condition
    "Llama-1B": {"depth": 16, "width": 1024, "heads": 32, "kv_heads": 8, "head_width": 64},  # Llama 3.2
    "Gemma-2B": {"depth": 26, "width": 1536, "heads": 8, "kv_heads": 4, "head_width": 256},  # Gemma 2
}


class DeepFusion(Backbone):
    """An image transformer with one softmax over text and image; the identity before training, with output zero.

    The text is keys and values of a language model (text_layers), or words or states that a small text tower reads,
    which is part of the network and trained with it. Without text, the tower reads the null class and the class.

    Args:
        depth: number of transformer blocks, three or more.
        width: channels of an image token.
        heads: number of attention heads, a multiple of kv_heads.
        kv_heads: number of key and value heads, as in the language model.
        head_width: channels of a head, as in the language model.
        patch: side of a token in pixels (or latent positions).
        text_length: largest number of text tokens; 0 is no text condition.
        text_width: width of the text encoder's states; 0 for numbers of words.
        vocabulary: number of words if the text is numbers of words; 0 for states.
        pooled_width: width of the pooled text vector; 0 is none.
        text_layers: layers of a language model whose keys and values are the condition; 0 reads tokens with the tower.
        skips: connect mirrored blocks, the first with the last.
        shorter: in the middle third of the blocks, replace each 2x2 image keys and values by their mean.
        condition_grid: also add a linear function of the condition to the image tokens, with a value for each position.
    """

    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    lora_targets = ("attn.qkv", "attn.proj")
    defaults = MappingProxyType({"size": 32, "channels": 4, "classes": 0, "learn_variance": False})

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
        kv_heads: int,
        head_width: int,
        patch: int,
        text_length: int = 0,
        text_width: int = 0,
        vocabulary: int = 0,
        pooled_width: int = 0,
        text_layers: int = 0,
        skips: bool = True,
        shorter: bool = True,
        condition_grid: bool = False,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, depth, width, heads, kv_heads, head_width, patch, shorter)
        geometry = {"layers": text_layers, "heads": kv_heads, "head_width": head_width} if text_layers else {}
        self.text = text_shape(
            classes, length=text_length, width=text_width, vocabulary=vocabulary, pooled=pooled_width, **geometry
        )
        self.longest = text_length or 2  # text tokens
        self.patch, self.kv_heads, self.head_width = patch, kv_heads, head_width
        sizes = Sizes(width, heads, kv_heads, head_width)
        h, w = self.grid
        self.x_embedder, self.t_embedder = PatchEmbed(patch, channels, width), TimestepEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        words = self.text.vocabulary or (0 if self.text else classes + 1)
        tower = TowerSizes(width, heads, kv_heads, head_width, depth, words, self.text.width)
        self.tower = None if text_layers else TextTower(tower)
        self.label_tables = () if self.text else ("tower.embed.weight",)
        self.pooled = nn.Linear(pooled_width, width) if pooled_width else None
        middle = range(depth // 3, depth - depth // 3) if shorter else range(0)
        positions = rotations(h, w, head_width)
        self.blocks = nn.ModuleList(
            [Block(sizes, positions, (h, w), i in middle, skips and i >= depth - depth // 2) for i in range(depth)]
        )
        self.final_layer = FinalLayer(width, patch * patch * self.out_channels)
        self.mean = nn.Linear(kv_heads * head_width, width) if condition_grid else None
        self.grid_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, h * w * width)) if condition_grid else None
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Networks for language models whose geometry they share, and small ones with a text tower."""
        large = {
            f"{name}/2": sizes | {"patch": 2, "text_length": 256, "text_layers": sizes["depth"]}
            for name, sizes in MODELS.items()
        }
        return large | {f"S/{patch}": SMALL | {"patch": patch} for patch in (2, 4)}

    @property
    def tokens(self) -> int:
        return prod(self.grid)

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder])

    def initialize(self) -> None:
        """Set initial weights: Xavier for linear layers, N(0, 0.02) for the timestep, zero for modulations and head."""
        initialize_linears(self)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        for weight in self.t_embedder.mlp.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        for block in self.blocks:
            if isinstance(block, Block) and block.join is not None:
                block.join.initialize()
        set_to_zero([self.t_block, self.final_layer.linear])
        if self.grid_modulation is not None:
            set_to_zero([self.grid_modulation])
        if self.tower is not None:
            self.tower.initialize()

    def encoded(self, condition: Condition | Tensor) -> Condition:
        """Compute what depends on the condition alone, once for all steps: the keys and values of the text tower."""
        if isinstance(condition, Condition) and condition.layer_keys is not None:
            self.check_keys(condition.layer_keys, given(condition.layer_values))
            return condition
        if self.tower is None:
            fields = "labels" if isinstance(condition, Tensor) else ", ".join(condition.parts()) or "nothing"
            raise InputError(
                f"a condition with {fields} for a network that reads a language model; give keys and values"
            )
        if self.text:
            text = self.texts(condition)
            tokens = checked(text, self.text, self.text.length)
            tokens = tokens if self.text.vocabulary else tokens.to(self.dtype)
        else:
            label = self.labels(condition)
            text = Condition(label=label) if isinstance(condition, Tensor) else condition
            tokens = torch.stack([torch.full_like(label, self.classes), label], dim=1)
        keys, values = self.tower(tokens)
        other = None if text.other is None else self.encoded(text.other)
        return Condition(
            mask=text.mask, pooled=text.pooled, layer_keys=keys, layer_values=values, other=other, weight=text.weight
        )

    def check_keys(self, keys: Tensor, values: Tensor) -> None:
        """Check the shape of keys and values (B, layers, L, kv_heads, d).

        Raises:
            InputError: it is that of another language model, or there are too many tokens.
        """
        expected = (self.text.layers or len(self.blocks), self.kv_heads, self.head_width)
        found = (keys.shape[1], *keys.shape[3:]) if keys.ndim == 5 else tuple(keys.shape)
        if keys.shape != values.shape or found != expected or keys.shape[2] > self.longest:
            raise InputError(
                f"keys of shape {tuple(keys.shape)} and values of {tuple(values.shape)} for a network that reads "
                f"{expected[0]} layers with {expected[1]} heads of {expected[2]}, and at most {self.longest} "
                "tokens; encode the text with the conditioner of the model"
            )

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,), keys and values, text tokens or labels -> (B, out_channels, H, W)."""
        self.check_input(x)
        text = self.encoded(condition)
        h, w = self.grid
        # fmt: off
        c = self.t_embedder(timestep)                              # (B, D)
        if self.pooled is not None:
            c = c + self.pooled(given(text.pooled).to(c.dtype))
        x = self.x_embedder(x.to(self.dtype))                      # (B, N, D)   N = h w
        if self.grid_modulation is not None and self.mean is not None:
            c = c + self.mean(mean_value(text).to(c.dtype))
            x = x + self.grid_modulation(c).unflatten(1, (h * w, -1))
        modulation = self.t_block(c).unflatten(1, (6, -1))         # (B, 6, D)
        context, last = (modulation, text, trace), len(self.blocks) - 1
        skip = x = self.block(0, x, context)                       # (B, N, D)
        x = self.inner(x, *context)                                # (B, N, D)
        x = self.block(last, x, context, skip)                     # (B, N, D)
        x = self.final_layer(x, c)                                 # (B, N, p p C)
        record(trace, last + 1, x)
        return unpatchify(x, h, w, self.patch)                     # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks but the first and the last; feature caching skips them."""
        modulation, text, trace = context
        skips: list[Tensor] = []
        half = len(self.blocks) // 2
        for i in range(1, len(self.blocks) - 1):
            joins = i >= len(self.blocks) - half
            x = self.block(i, x, (modulation, text, trace), skips.pop() if joins else None)
            if i < half:
                skips.append(x)
        return x

    def block(
        self, i: int, x: Tensor, context: tuple[Tensor, Condition, Trace | None], skip: Tensor | None = None
    ) -> Tensor:
        """Pass tokens (B, N, D) through block i, which attends to the corresponding layer of the text."""
        modulation, text, trace = context
        keys, values = given(text.layer_keys), given(text.layer_values)
        layer = i * keys.shape[1] // len(self.blocks)
        part = Text(keys[:, layer].transpose(1, 2), values[:, layer].transpose(1, 2), text.mask)
        out: Tensor = self.blocks[i](x, modulation, part, skip)
        record(trace, i, out)
        return out


def given(value: Tensor | None) -> Tensor:
    """Return a part of a condition that the network needs.

    Raises:
        InputError: the condition does not have it.
    """
    if value is None:
        raise InputError(
            "a condition without the values or the pooled vector that this network needs; encode the text with the "
            "conditioner of the model"
        )
    return value


def mean_value(text: Condition) -> Tensor:
    """Return the mean over the text's tokens of the values of the last layer: (B, kv_heads d)."""
    values = given(text.layer_values)[:, -1].flatten(2)  # (B, L, kv_heads d)
    if text.mask is None:
        return values.mean(1)
    counts = text.mask[..., None].to(values.dtype)
    return (values * counts).sum(1) / counts.sum(1).clamp(min=1)


def check_sizes(
    size: tuple[int, int],
    depth: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_width: int,
    patch: int,
    shorter: bool,
) -> None:
    """Check that sizes fit together.

    Raises:
        InputError: they do not.
    """
    check_positive(depth=depth, width=width, heads=heads, kv_heads=kv_heads, head_width=head_width, patch=patch)
    if depth < 3:
        raise InputError(f"depth {depth}; give 3 or more: a first, a middle and a last block")
    if heads % kv_heads or head_width % 4:
        raise InputError(
            f"heads {heads}, kv_heads {kv_heads} and head_width {head_width}; give a multiple of kv_heads as heads, "
            "and a head_width that is divisible by 4 (positions in two dimensions)"
        )
    unit = patch * (2 if shorter else 1)
    if size[0] % unit or size[1] % unit:
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {unit} (patch {patch}"
            + (", and pairs of keys; set shorter = false for none)" if shorter else ")")
        )
