"""The interface of text encoders: texts become token states, or numbers of words, for the network."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, TextShape


def whole_option(name: str, value: Any) -> int:
    """An option as a whole number, which a recipe may hold as 16.0.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, int | float) or value != value // 1:
        raise InputError(f"{name} is {value!r}; give a whole number")
    return int(value)


def flag_option(name: str, value: Any) -> bool:
    """An option that is true or false, which a recipe may hold as a text.

    Raises:
        InputError: it is something else.
    """
    if (text := str(value).lower()) not in ("true", "false"):
        raise InputError(f"{name} is {value!r}; give true or false")
    return text == "true"


class Region(NamedTuple):
    """The part of a condition that one of several encoders computes."""

    tokens: slice
    """Its tokens in (B, L, E)."""
    channels: slice
    """Its channels of these tokens."""
    pooled: slice
    """Its values in the pooled vector (B, P)."""


class Encoder(ABC):
    """Encodes texts as a `Condition` with tokens, a mask, and for some encoders a pooled vector.

    The rule by which texts are encoded (length, layer, padding, mask) is part of the model and saved in its config. The
    weights of a pretrained encoder are not: the config holds its name and a hash.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Names of the options in `data.encoder_options` of a recipe."""
    config: dict[str, Any]
    """`kind` and the constructor arguments, from which a saved encoder is built again."""
    shape: TextShape
    """The text condition that a network must be made for."""

    @classmethod
    def for_captions(cls, captions: Sequence[str], options: Mapping[str, Any]) -> Self:
        """Build the encoder of a model that is trained on captions.

        Args:
            captions: the different captions of the data.
            options: the options of the recipe; their names are those in `options`.

        Raises:
            InputError: an option is invalid.
        """
        return cls(**options)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Condition:
        """Encode texts on the CPU, one row for each; the empty text is the null condition.

        All rows have the length of `shape`, so that they can be joined. What does not fit is cut, see `cut`.

        Raises:
            InputError: a text that this encoder cannot encode.
        """

    @abstractmethod
    def cut(self, text: str) -> str:
        """The end of a text that `encode` leaves out because the text is too long; empty if nothing is left out."""

    def reads(self, text: str) -> bool:
        """Whether anything of a text is encoded; otherwise `encode` returns the null condition for it."""
        return bool(text)

    def regions(self) -> Mapping[str, Region]:
        """What each of several encoders computes, by name; empty for a single encoder."""
        return {}

    def without(self, condition: Condition, rows: Mapping[str, Tensor]) -> Condition:
        """Replace by zeros what some of several encoders have computed.

        Args:
            condition: B encoded texts.
            rows: name of an encoder -> the rows (B,) bool that lack it.
        """
        tokens, pooled = condition.tokens, condition.pooled
        assert tokens is not None
        tokens, pooled = tokens.clone(), None if pooled is None else pooled.clone()
        for name, where in rows.items():
            region = self.regions()[name]
            tokens[where, region.tokens, region.channels] = 0
            if pooled is not None:
                pooled[where, region.pooled] = 0
        return replace(condition, tokens=tokens, pooled=pooled)

    def check(self, text: str) -> None:  # noqa: B027 - most encoders encode every text
        """Check that `encode` can encode a text.

        Raises:
            InputError: it cannot.
        """

    def release(self) -> None:  # noqa: B027 - most encoders hold little memory
        """Free the memory of a pretrained model until a text is encoded again."""

    @property
    def rule(self) -> str:
        """Hash of everything that decides how texts are encoded, 16 digits; places of files do not count."""
        return rule_of(self.config)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights that are saved with the model."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most encoders have none
        """Load the weights of a saved model."""


def rule_of(config: Mapping[str, Any]) -> str:
    """The `rule` of an encoder with this config."""
    return hashlib.sha256(json.dumps(without_places(config), sort_keys=True).encode()).hexdigest()[:16]


def without_places(config: Any) -> Any:
    """A config without the places of files."""
    if not isinstance(config, Mapping):
        return config
    return {key: without_places(value) for key, value in config.items() if key not in ("model", "tokenizer")}
