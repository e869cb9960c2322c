"""The text input of networks: a condition's tokens and pooled vector become tokens and a vector of the network's width.

In shapes, B is the batch, L the number of tokens, E the width of an encoder's states, P that of its pooled vector, and
D the width of the network.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.layers import Attention, Mlp, norm
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.core.types import TextShape as TextShape
from ditlab.core.units import counted

TEXT_OPTIONS = ("text_length", "text_width", "vocabulary", "pooled_width")
"""Arguments of networks that read text, which the text encoder determines."""


def text_shape(classes: int, **sizes: int) -> TextShape:
    """Return the text condition of a network's options, which are called `text_length`, `text_width`, and so on.

    Args:
        classes: number of classes of the network.
        sizes: the fields of `TextShape`.

    Raises:
        InputError: the sizes do not fit together.
    """
    if negative := [f"{name} {value}" for name, value in sizes.items() if value < 0]:
        raise InputError(f"text condition with {', '.join(negative)}; give 0 or more")
    shape = TextShape(**sizes)
    if not shape:
        if any(sizes.values()):
            raise InputError(
                "a text condition without tokens; set text_length to the largest number of tokens, or leave the other "
                "sizes of the text out"
            )
        return shape
    if classes:
        raise InputError(f"{counted(classes, 'class')} for a network that reads text; give classes = 0")
    if shape.layers and not (shape.width or shape.vocabulary) and min(shape.heads, shape.head_width) > 0:
        return shape
    if shape.layers or (shape.width > 0) == (shape.vocabulary > 0):
        raise InputError(
            f"text_width {shape.width} and vocabulary {shape.vocabulary}"
            + (f" with text_layers {shape.layers}" if shape.layers else "")
            + "; give one of them: the width of the encoder's states, or the number of words"
        )
    return shape


class Context(NamedTuple):
    """A condition as tokens, of which some do not count."""

    tokens: Tensor  # (B, L, D)
    mask: Tensor | None = None  # (B, L), true for tokens that count; None is all

    @property
    def keys(self) -> Tensor | None:
        """The mask in the shape that `attend` takes."""
        return None if self.mask is None else self.mask[:, None, None]

    def keys_at(self, where: Tensor | None) -> Tensor | None:
        """The same for some of the tokens, at the positions `where` (B, K); None is all tokens."""
        return self.keys if self.mask is None or where is None else self.mask.gather(1, where)[:, None, None]

    def of(self, rows: Tensor) -> "Context":
        """Some of the rows."""
        return Context(self.tokens[rows], None if self.mask is None else self.mask[rows])


def joined(x: Tensor, c: Tensor | Context) -> tuple[Tensor, Tensor | Context]:
    """Append the tokens of a condition to image tokens (B, N, D); a text's mask then covers all tokens."""
    if isinstance(c, Tensor):
        return torch.cat([x, c], dim=1), c
    assert c.mask is not None
    mask = torch.cat([c.mask.new_ones(x.shape[:2]), c.mask], dim=1)
    return torch.cat([x, c.tokens], dim=1), Context(c.tokens, mask)


class TextEmbedder(nn.Module):
    """Embeds token states (B, L, E) or numbers of words (B, L), adds learned positions, and pools them.

    Positions are needed where the states do not carry the order of the words (MiniLM's hardly do), and for a table of
    words, which has no order at all. One block of self-attention lets words change each other before they are pooled.
    For numbers of words, the sum of a second table, N(0, 1) like the class labels of Hourglass, is added to the vector.

    Args:
        width: width of the network, D.
        shape: the text condition.
        heads: attention heads of the block.
        ordered: multiply the rows of the second table by a learned code of the position of each word before they are
            summed, so that the vector shows which word is where. The sum of random codes is a simple form of the
            holographic representations of Plate (IEEE Transactions on Neural Networks 1995).
    """

    def __init__(self, width: int, shape: TextShape, heads: int, ordered: bool = False) -> None:
        super().__init__()
        self.shape = shape
        embed = nn.Embedding(shape.vocabulary, width) if shape.vocabulary else nn.Linear(shape.width, width)
        self.embed: nn.Module = embed
        self.positions = nn.Parameter(torch.zeros(shape.length, width))
        self.norm1, self.norm2 = norm(width, affine=True), norm(width, affine=True)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, ratio=2, approximate="none")
        self.pooled = nn.Linear(shape.pooled, width) if shape.pooled else None
        self.pool = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.bag = nn.Embedding(shape.vocabulary, width) if shape.vocabulary else None
        self.codes = nn.Parameter(torch.ones(shape.length, width)) if ordered else None

    def initialize(self) -> None:
        """Set initial weights: words N(0, 0.5), which a short training reads sooner than N(0, 0.02)."""
        if isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=0.5)
        if self.bag is not None:
            nn.init.normal_(self.bag.weight)
        nn.init.normal_(self.positions, std=0.1)
        if self.codes is not None:
            nn.init.normal_(self.codes)

    def forward(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, L, D), the mask (B, L) that is true for tokens that count, and one vector (B, D).

        Raises:
            InputError: the condition has no tokens, too many, or another kind of them.
        """
        tokens, mask = checked(condition, self.shape, self.shape.length), condition.mask
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if condition.embedded is not None and condition.vector is not None:
            return condition.embedded, mask, condition.vector
        x = self.embed(tokens if self.shape.vocabulary else tokens.to(self.positions.dtype))
        x = x + self.positions[: x.shape[1]]
        x = x + self.attn(self.norm1(x), mask=mask[:, None, None])
        x = x + self.mlp(self.norm2(x))
        counts = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * counts).sum(1) / counts.sum(1).clamp(min=1)
        vector = F.layer_norm(mean, mean.shape[-1:])
        if self.pooled is not None and condition.pooled is not None:
            vector = vector + self.pooled(condition.pooled.to(x.dtype))
        vector = self.pool(vector)
        if self.bag is not None:  # after few steps, a vector of its own shows a word better than the mean of all tokens
            words = self.bag(tokens) if self.codes is None else self.bag(tokens) * self.codes[: tokens.shape[1]]
            vector = vector + (words * counts).sum(1) / counts.sum(1).sqrt()
        return x, mask, vector

    def encoded(self, condition: Condition) -> Condition:
        """Return the condition with its embedded tokens and vector, which `forward` then returns as they are."""
        tokens, _, vector = self(condition)
        other = None if condition.other is None else self.encoded(condition.other)
        return replace(condition, embedded=tokens, vector=vector, other=other)


class WordImages(nn.Module):
    """A small learned image (C, h, w) for each word; a text has the sum of those of its words.

    A linear layer from one vector of the text (B, D) to an image has rank D. With more words than that, it learns their
    appearances slowly, because each gradient step changes those of other words too. A row of a table belongs to one
    word.

    Args:
        shape: the text condition.
        channels: C.
        grid: height and width.
        ordered: multiply the image of each word by a learned code (C,) of its position before the images are summed.

    Raises:
        InputError: negative channels, or a network without numbers of words.
    """

    def __init__(self, shape: TextShape, channels: int, grid: tuple[int, int], ordered: bool = False) -> None:
        super().__init__()
        if channels < 0:
            raise InputError(f"word_images {channels}; give 0 or more channels")
        if not shape.vocabulary:
            raise InputError(
                f"word_images {channels} for a network that does not read numbers of words; give 0, or set the encoder "
                "words"
            )
        self.shape = (channels, *grid)
        self.table = nn.Embedding(shape.vocabulary, channels * grid[0] * grid[1])
        self.codes = nn.Parameter(torch.ones(shape.length, channels)) if ordered else None

    def initialize(self) -> None:
        """Set initial weights N(0, 0.1), which the appearance of a word outweighs after few images of it."""
        nn.init.normal_(self.table.weight, std=0.1)
        if self.codes is not None:
            nn.init.normal_(self.codes)

    def forward(self, condition: Condition) -> Tensor:
        """Numbers of words (B, L) -> (B, C, h, w)."""
        assert condition.tokens is not None
        mask, weight = condition.mask, self.table.weight
        weights = None if mask is None else mask.to(weight.dtype)
        if self.codes is not None:
            images = torch.unflatten(self.table(condition.tokens), 2, self.shape)  # (B, L, C, h, w)
            codes = self.codes[: images.shape[1]].expand(images.shape[:3])
            return torch.einsum("blchw,blc->bchw", images, codes if weights is None else codes * weights[..., None])
        total = F.embedding_bag(condition.tokens, weight, mode="sum", per_sample_weights=weights)
        return torch.unflatten(total, 1, self.shape)


def checked(condition: Condition, shape: TextShape, longest: int | None = None) -> Tensor:
    """Return the tokens of a condition: states (B, L, E), or numbers of words (B, L).

    Args:
        condition: the condition.
        shape: the text condition that the network is made for.
        longest: largest number of tokens; None is any.

    Raises:
        InputError: the condition has no tokens, too many, another kind of them, or no pooled vector where the network
            needs one.
    """
    tokens = condition.tokens
    if tokens is None:
        fields = ", ".join(condition.parts()) or "nothing"
        raise InputError(f"a condition with {fields} for a network that reads text; give tokens")
    words = bool(shape.vocabulary)
    fits = tokens.ndim == 2 if words else tokens.ndim == 3 and tokens.shape[2] == shape.width
    if not fits or (longest is not None and tokens.shape[1] > longest):
        expected = "(B, L) of word numbers" if words else f"(B, L, {shape.width}) of states"
        most = "" if longest is None else f", at most {longest}"
        raise InputError(
            f"tokens of shape {tuple(tokens.shape)} for a network that reads {expected}{most}; encode the text with "
            "the conditioner of the model"
        )
    width = 0 if condition.pooled is None else condition.pooled.shape[-1]
    if shape.pooled and width != shape.pooled:
        received = f"of {width} values" if width else "that is missing"
        raise InputError(f"a pooled vector {received}; this network needs one of {shape.pooled} values")
    return tokens
