"""Numbers of words: the network learns an embedding for each word of the captions, without a pretrained encoder."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Self

import torch

from ditlab.conditioning.encoders.base import Encoder, whole_option
from ditlab.core.errors import InputError
from ditlab.core.spelling import nfc
from ditlab.core.types import Condition, TextShape

START, FIRST = 1, 2  # number of the start token, and of the first word; 0 is padding
LISTED = 5  # unknown words in a message
# Combining marks and joiners (which \w lacks) belong to the word before them, and signs such as emoji are words.
MARK, SIGN = "\ue000", "\ue001"
STANDS_FOR = dict.fromkeys(("Mn", "Mc", "Me", "Cf", "Sk"), MARK) | {"So": SIGN}
WORD = re.compile(rf"\w[\w{MARK}]*(?:['\u2019]\w[\w{MARK}]*)*|{SIGN}[{SIGN}{MARK}]*")


class Words(Encoder):
    """Encodes words as numbers, in lower case; spaces and punctuation separate words, and emoji are words.

    Each text begins with a start token, which is all that the null condition has.

    Args:
        words: the words; the first one has the number 2.
        length: largest number of tokens, including the start token.
    """

    options = ("length",)

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.config = {"kind": "words", "words": list(words), "length": length}
        self.words = self.config["words"]
        self.numbers = {word: number for number, word in enumerate(self.words, FIRST)}
        self.shape = TextShape(length, vocabulary=FIRST + len(self.words))

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        """Collect the words of captions, in alphabetical order; the longest caption determines the default length.

        Raises:
            InputError: `length` is below 2, or the captions have no words.
        """
        texts = [split(caption) for caption in captions]
        words = sorted({word for text in texts for word in text})
        if not words:
            raise InputError("the captions of the data have no words; give captions with words")
        length = whole_option("length", options.get("length", 1 + max(map(len, texts))))
        if length < 2:
            raise InputError(f"length is {length}; give 2 or more, because the start token counts")
        return cls(words, length)

    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode texts as tokens (B, length) int64.

        Raises:
            InputError: unknown words; the message lists them with similar known words.
        """
        tokens = torch.zeros(len(texts), self.shape.length, dtype=torch.long)
        tokens[:, 0] = START
        for row, text in zip(tokens, texts, strict=True):
            self.check(text)
            words = self._kept(text)
            row[1 : 1 + len(words)] = torch.tensor([self.numbers[word] for word in words], dtype=torch.long)
        return Condition(tokens=tokens, mask=tokens > 0)

    def check(self, text: str) -> None:
        if unknown := [word for word in dict.fromkeys(self._kept(text)) if word not in self.numbers]:
            raise InputError(self._unknown(unknown, text))

    def _kept(self, text: str) -> list[str]:
        return split(text)[: self.shape.length - 1]

    def reads(self, text: str) -> bool:
        return bool(split(text))

    def cut(self, text: str) -> str:
        return " ".join(split(text)[self.shape.length - 1 :])

    def _unknown(self, words: list[str], text: str) -> str:
        more = f" and {len(words) - LISTED:,} more" if len(words) > LISTED else ""
        listed = ", ".join(self._with_similar(word) for word in words[:LISTED])
        return (
            f'unknown word{"s" * (len(words) > 1)} {listed}{more} in "{shortened(text)}"; '
            f"this model was trained on {len(self.words):,} words"
        )

    def _with_similar(self, word: str) -> str:
        similar = get_close_matches(word, self.words, n=3)
        return f'"{word}"' + (f" (similar: {', '.join(similar)})" if similar else "")


def split(text: str) -> list[str]:
    """The words of a text in lower case."""
    text = nfc(text).lower()
    if text.isascii():
        return WORD.findall(text)
    classes = "".join(STANDS_FOR.get(unicodedata.category(sign), sign) for sign in text)
    return [text[slice(*match.span())] for match in WORD.finditer(classes)]


def shortened(text: str, longest: int = 60) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= longest else f"{text[:longest].rstrip()}..."
