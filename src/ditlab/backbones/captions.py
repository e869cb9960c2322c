"""The condition of networks with cross-attention, as tokens of their width: a text, or a class."""

from torch import Tensor, nn

from ditlab.backbones.base import Backbone
from ditlab.backbones.layers import LabelEmbedder
from ditlab.backbones.pixart_blocks import CaptionProjection
from ditlab.backbones.text import Context, TextEmbedder, checked
from ditlab.core.types import Condition


def embedder_of(net: Backbone, width: int, heads: int, null_caption: bool = False) -> nn.Module:
    """Return the embedder of the condition of a network; words, and texts with a pooled vector, are embedded by a
    `TextEmbedder`."""
    if not net.text:
        return LabelEmbedder(net.classes, width)
    if net.text.vocabulary or net.text.pooled:
        return TextEmbedder(width, net.text, heads)
    return CaptionProjection(net.text, width, null_caption)


def embedded(net: Backbone, embedder: nn.Module, condition: Condition | Tensor) -> tuple[Context, Tensor | None]:
    """Return the condition of a network as tokens of its width, and as one vector (B, D) if the embedder computes one.

    Without text, the class embedding is the only token.
    """
    if not net.text:
        label = embedder(net.labels(condition))
        return Context(label[:, None]), label
    text = net.texts(condition)
    if isinstance(embedder, TextEmbedder):
        tokens, mask, vector = embedder(text)
        return Context(tokens, mask), vector
    return Context(embedder(checked(text, net.text, net.text.length).to(net.dtype)), text.mask), None
