"""How PixArt and its relatives read a text: a projection of the encoder's states, and cross-attention to them.

In shapes, B is the batch, N image tokens, L text tokens, E the width of the text encoder's states and D the width.
"""

import torch
from torch import Tensor, nn

from ditlab.backbones.base import Backbone
from ditlab.backbones.layers import LinearGELU, attend
from ditlab.backbones.text import Context, TextEmbedder, TextShape, checked
from ditlab.core.types import Condition


def text_embedder(
    shape: TextShape, width: int, heads: int, text_block: bool = False, null_caption: bool = False
) -> "TextEmbedder | CaptionProjection":
    """Return the embedder of a text; numbers of words, and texts with a pooled vector, need more than a projection."""
    if text_block or shape.vocabulary or shape.pooled:
        return TextEmbedder(width, shape, heads)
    return CaptionProjection(shape, width, null_caption)


def embedded(net: Backbone, embedder: nn.Module, condition: Condition | Tensor) -> tuple[Context, Tensor | None]:
    """Return the condition of a network as tokens of its width, and as one vector (B, D) if the embedder computes one.

    Without text, the class embedding is the only token.
    """
    if not net.text:
        label = embedder(net.labels(condition))
        return Context(label[:, None]), label
    if isinstance(embedder, TextEmbedder):
        tokens, mask, vector = embedder(net.texts(condition))
        return Context(tokens, mask), vector
    text = net.texts(condition)
    states = checked(text, net.text, net.text.length).to(net.dtype)
    return Context(embedder(states), text.mask), None


class CaptionProjection(nn.Module):
    """Two layers from the states of a text encoder (B, L, E) to the width of the network."""

    def __init__(self, shape: TextShape, width: int, null_caption: bool) -> None:
        super().__init__()
        self.y_proj = Projection(shape.width, width)
        null = torch.zeros(shape.length, shape.width) if null_caption else None
        self.register_buffer("y_embedding", null)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.y_proj(states)  # (B, L, D)
        return out


class Projection(nn.Module):
    """E -> D -> D with tanh-GELU."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = LinearGELU(inner, width, "tanh"), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class TextAttention(nn.Module):
    """Multi-head attention from image tokens (B, N, D) to text tokens (B, L, D), some of which may not count."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Context) -> Tensor:
        q = self.q_linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv_linear(text.tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, mask=text.keys).transpose(1, 2).flatten(2))  # (B, N, D)
