"""Text as a condition: prompts are encoded as token states, or as numbers of words."""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ditlab.conditioning.base import Conditioner, Described, file_name
from ditlab.conditioning.encoders import ENCODERS, create_encoder
from ditlab.conditioning.encoders.words import FIRST, shortened
from ditlab.core.errors import InputError, nearest
from ditlab.core.spelling import is_unicode, nfc
from ditlab.core.types import Condition
from ditlab.core.units import counted

KEPT = 256  # prompts whose conditions are kept in memory
PLAIN = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")  # a prompt that its file name shows completely


class Text(Conditioner):
    """Encodes prompts with a text encoder. The null condition is the encoded empty text.

    Args:
        encoder: the config of the encoder: its kind and its options.
    """

    what = "prompt"

    def __init__(self, encoder: Mapping[str, Any]) -> None:
        self.encoder = create_encoder(**encoder)
        self.config = {"kind": "text", "encoder": self.encoder.config}
        self._kept: dict[str, Condition] = {}

    @classmethod
    def for_data(cls, dataset: Described, settings: Mapping[str, Any]) -> Self:
        """Build the conditioner of a model that is trained on captions.

        Args:
            dataset: the training data.
            settings: `captions`, the different captions of the data; `encoder`, the name of the encoder (default:
                words); and `options` of the encoder.

        Raises:
            InputError: an unknown encoder or option, or an invalid value.
        """
        name, options = settings.get("encoder") or "words", settings.get("options", {})
        kind = ENCODERS.find(name)
        for key in options:
            if key not in kind.options:
                raise InputError(f'the encoder {name} has no option "{key}"; {nearest(key, kind.options)}')
        return cls(kind.for_captions(settings["captions"], options).config)

    def values(self, given: Sequence[Any]) -> Condition:
        """Encode prompts, one row for each; None is the null condition.

        Raises:
            InputError: a value that is no text, an empty prompt or one without words, or a word that the encoder does
                not know.
        """
        texts = self.texts(given)
        for text in dict.fromkeys(texts):
            if text not in self._kept and (end := self.encoder.cut(text)):
                warnings.warn(
                    f'the prompt "{shortened(text)}" ({counted(len(text.split()), "word")}) is longer than the '
                    f'{self.encoder.shape.length} tokens of this model; left out: "{shortened(end.strip())}"',
                    stacklevel=4,
                )
        return self._rows(texts)

    def texts(self, given: Sequence[Any]) -> list[str]:
        """The texts of prompts, which the encoder can encode; None is the empty text.

        Raises:
            InputError: as `values`.
        """
        texts = ["" if value is None else checked(value) for value in given]
        for text in dict.fromkeys(texts):
            if text and not self.encoder.reads(text):
                raise InputError(f'the prompt "{shortened(text)}" has no words; give words')
            self.encoder.check(text)
        return texts

    def _rows(self, texts: Sequence[str]) -> Condition:
        """The conditions of texts; each text is encoded once."""
        different = [*dict.fromkeys(texts)]
        rows = {text: kept for text in different if (kept := self._kept.get(text)) is not None}
        if new := [text for text in different if text not in rows]:
            encoded = self.encoder.encode(new)
            rows |= {text: encoded[i : i + 1].apply(torch.clone) for i, text in enumerate(new)}
            self._kept = dict([*(self._kept | rows).items()][-KEPT:])
        return Condition.cat([rows[text] for text in texts])

    def keep(self, texts: Sequence[str]) -> None:
        """Encode the empty text and texts that will be needed later, and free the memory of the encoder."""
        self._rows(["", *texts])
        self.encoder.release()

    def null(self, count: int) -> Condition:
        """Return `count` rows of the encoded empty text."""
        row = self._rows([""])
        return row[torch.zeros(count, dtype=torch.long)]

    def encoders(self) -> list[str]:
        return [*self.encoder.regions()]

    def drop_encoders(self, condition: Condition, rows: Mapping[str, Tensor]) -> Condition:
        return self.encoder.without(condition, rows) if rows else condition

    def title(self, value: Any) -> str:
        return "no prompt" if value is None else str(value)

    def stem(self, value: Any) -> str:
        """Return the prompt for file names; a hash follows where another prompt may have the same name."""
        title = self.title(value)
        clean = file_name(title)
        if PLAIN.fullmatch(title) and clean == title.replace(" ", "_"):
            return clean
        return f"{clean}-{hashlib.sha256(nfc(title).encode()).hexdigest()[:6]}"

    def about(self) -> str:
        shape = self.encoder.shape
        words = f" of {shape.vocabulary - FIRST:,} words" if shape.vocabulary else ""
        return f"prompts{words}, up to {shape.length:,} tokens, encoded by {self.encoder.config['kind']}"

    def network_options(self) -> dict[str, Any]:
        shape = self.encoder.shape
        return {
            "classes": 0,
            "text_length": shape.length,
            "text_width": shape.width,
            "vocabulary": shape.vocabulary,
            "pooled_width": shape.pooled,
        } | (
            {"text_layers": shape.layers, "kv_heads": shape.heads, "head_width": shape.head_width}
            if shape.layers
            else {}
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self.encoder.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.encoder.load_state_dict(tensors)


def checked(value: Any) -> str:
    """A prompt with single spaces between its words.

    Raises:
        InputError: it is no text, or it is empty.
    """
    if not isinstance(value, str):
        raise InputError(f'prompt {value!r} is no text; give a text, such as "a red apple"')
    if not is_unicode(value):
        raise InputError(f"the prompt {value!a} is no Unicode text; encode it as UTF-8")
    text = " ".join(nfc(value).split())
    if not text:
        raise InputError("a prompt is empty; give a text, or None for no prompt")
    return text
