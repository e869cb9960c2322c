"""The interface of conditioners: they encode values from the user (names, indices, prompts) for the network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import path_name
from ditlab.core.types import Between, Condition


class Described(Protocol):
    """The properties of a data set that conditioners use."""

    @property
    def classes(self) -> list[str]:
        """Class names; the label is the index in this list."""


class Conditioner(ABC):
    """Encodes values from the user as a `Condition`, and defines the null condition ("no condition").

    It is saved with the model, like the autoencoder. A subclass must define `values` and `null`; the other methods have
    defaults that suit most kinds.
    """

    config: dict[str, Any]
    """`kind` and the constructor arguments, from which a saved conditioner is built again."""
    what = "condition"
    """Name of a value in messages, such as "class" or "prompt"."""

    @classmethod
    def for_data(cls, dataset: Described, settings: Mapping[str, Any]) -> Self:
        """Build the conditioner of a model that is trained on a data set.

        Args:
            dataset: the training data.
            settings: options of this kind from the recipe.
        """
        return cls(**settings)

    @abstractmethod
    def values(self, given: Sequence[Any]) -> Condition:
        """Encode values, one row for each; None is the null condition.

        Raises:
            InputError: a value that this conditioner cannot encode.
        """

    @abstractmethod
    def null(self, count: int) -> Condition:
        """Return `count` rows of the null condition, which classifier-free guidance needs."""

    def encode(self, given: Sequence[Any]) -> Condition:
        """Encode values, one row for each; a value may be `Between` two others.

        Raises:
            InputError: a value that this conditioner cannot encode.
        """
        settled = [settle(value) for value in given]
        first = self.values([value.first if isinstance(value, Between) else value for value in settled])
        if not any(isinstance(value, Between) for value in settled):
            return first
        second = self.values([value.second if isinstance(value, Between) else value for value in settled])
        weight = torch.tensor([value.weight if isinstance(value, Between) else 0.0 for value in settled])
        return self.mix(first, second, weight)

    def drop(self, condition: Condition, where: Tensor) -> Condition:
        """Replace the rows where `where` (B,) is true by the null condition."""
        return condition.where(where, self.null(len(condition)).to(where.device))

    def encoders(self) -> list[str]:
        """Return the names of the encoders that `drop_encoders` drops one by one; a single encoder has none."""
        return []

    def drop_encoders(self, condition: Condition, rows: Mapping[str, Tensor]) -> Condition:
        """Replace what some encoders have computed by zeros, in the rows (B,) bool of each name in `encoders`."""
        return condition

    def mix(self, a: Condition, b: Condition, weight: Tensor) -> Condition:
        """Interpolate between two conditions; `weight` (B,) is 0 at a and 1 at b.

        By default the network predicts for both conditions and the predictions are interpolated. This is the prediction
        for the product of the two distributions, each raised to its weight (Liu et al., "Compositional Visual
        Generation", ECCV 2022).
        """
        return replace(a, other=b, weight=weight)

    def value(self, index: int) -> Any:
        """Return a value that `encode` reads as the class with this index, whatever the classes are called."""
        return index

    def title(self, value: Any) -> str:
        """Return the title of this value on contact sheets."""
        return "any" if value is None else str(value)

    def stem(self, value: Any) -> str:
        """Return the title for file names, without characters that are special in paths."""
        return file_name(self.title(value))

    def all_values(self) -> list[Any]:
        """Return all possible values if they can be listed, otherwise [None]."""
        return [None]

    def network_options(self) -> dict[str, Any]:
        """Return the arguments of `ditlab.create` that the conditioner determines."""
        return {}

    def about(self) -> str:
        """Describe the values that this conditioner encodes, for reports."""
        return f"conditions of the kind {self.config['kind']}"

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights that are saved with the model; most kinds have none."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most kinds have no weights
        """Load the weights of a saved model."""


LONGEST = 80  # bytes of a class in the name of a file, which also has a seed and may have a second class


def file_name(text: str) -> str:
    """Return a text with "_" in place of each character that is special in paths, as the beginning of a file name."""
    clean = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    return path_name(f"{clean[:LONGEST]}-", LONGEST).removesuffix("-")  # the seed follows


def settle(value: Any) -> Any:
    """Replace a `Between` with weight 0 or 1, or with equal ends, by that end.

    Raises:
        InputError: the weight is outside 0..1.
    """
    if not isinstance(value, Between):
        return value
    if not 0 <= value.weight <= 1:
        raise InputError(f"a weight of {value.weight} between two values; give 0 to 1")
    if value.weight == 0 or value.first == value.second:
        return value.first
    return value.second if value.weight == 1 else value
