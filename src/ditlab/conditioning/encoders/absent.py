"""The place of a text encoder that a file of weights does not contain."""

from collections.abc import Sequence

from ditlab.conditioning.encoders.base import Encoder
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, TextShape


class NoEncoder(Encoder):
    """Encodes nothing; the network can be called with a `Condition`, and be trained with another encoder.

    Args:
        length, width, pooled_width: the text that the network is made for, as in `TextShape`.
    """

    kind = "absent"  # not in the registry, because no recipe can choose it

    def __init__(self, length: int, width: int, pooled_width: int = 0) -> None:
        self.config = {"kind": self.kind, "length": length, "width": width, "pooled_width": pooled_width}
        self.shape = TextShape(length, width=width, pooled=pooled_width)

    def encode(self, texts: Sequence[str]) -> Condition:
        """Raise an `InputError`."""
        raise InputError(
            "this model has no text encoder; load the pipeline folder that has one, or call pipe.net with a Condition"
        )

    def cut(self, text: str) -> str:
        return ""
