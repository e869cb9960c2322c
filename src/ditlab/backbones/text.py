"""The text input of networks: a condition's tokens and pooled vector become tokens and a vector of the network's width.

In shapes, B is the batch, L the number of tokens, E the width of an encoder's states, P that of its pooled vector, and
D the width of the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.core.types import TextShape as TextShape

TEXT_OPTIONS = ("text_length", "text_width", "vocabulary", "pooled_width")
"""Arguments of networks that read text, which the text encoder determines."""


class TextEmbedder(nn.Module):
    """Embeds token states (B, L, E) or numbers of words (B, L), adds learned positions, and pools them.

    Positions are needed where the states do not carry the order of the words (MiniLM's hardly do), and for a table of
    words, which has no order at all. One block of self-attention lets words change each other before they are pooled.

    Args:
        width: width of the network, D.
        shape: the text condition.
        heads: attention heads of the block.
    """

    def __init__(self, width: int, shape: TextShape, heads: int) -> None:
        super().__init__()
        self.shape = shape
        embed = nn.Embedding(shape.vocabulary, width) if shape.vocabulary else nn.Linear(shape.width, width)
        self.embed: nn.Module = embed
        self.positions = nn.Parameter(torch.zeros(shape.length, width))
        self.block = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.pooled = nn.Linear(shape.pooled, width) if shape.pooled else None
        self.pool = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def initialize(self) -> None:
        """Set initial weights: words N(0, 0.5), which a short training reads sooner than N(0, 0.02)."""
        if isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.1)

    def forward(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, L, D), the mask (B, L) that is true for tokens that count, and one vector (B, D).

        Raises:
            InputError: the condition has no tokens, too many, or another kind of them.
        """
        tokens, mask = self.checked(condition)
        x = self.embed(tokens if self.shape.vocabulary else tokens.to(self.positions.dtype))
        x = self.block(x + self.positions[: x.shape[1]], src_key_padding_mask=~mask)
        counts = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * counts).sum(1) / counts.sum(1).clamp(min=1)
        vector = F.layer_norm(mean, mean.shape[-1:])
        if self.pooled is not None and condition.pooled is not None:
            vector = vector + self.pooled(condition.pooled.to(x.dtype))
        return x, mask, self.pool(vector)

    def checked(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return tokens and mask of a condition.

        Raises:
            InputError: see `forward`.
        """
        tokens, shape = condition.tokens, self.shape
        if tokens is None:
            fields = ", ".join(condition.parts()) or "nothing"
            raise InputError(f"a condition with {fields} for a network that reads text; give tokens")
        expected = "(B, L) of word numbers" if shape.vocabulary else f"(B, L, {shape.width}) of states"
        kind_differs = tokens.ndim != (2 if shape.vocabulary else 3)
        if kind_differs or (not shape.vocabulary and tokens.shape[2] != shape.width) or tokens.shape[1] > shape.length:
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} for a network that reads {expected}, at most {shape.length}; "
                "encode the text with the conditioner of the model"
            )
        if shape.pooled and condition.pooled is None:
            raise InputError(f"a condition without a pooled vector; this network needs one of {shape.pooled} values")
        mask = condition.mask
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
