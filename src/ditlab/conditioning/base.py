"""The contract of a conditioner: from what a user gives (names, indices, prompts) to what the network reads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Between, Condition


class Described(Protocol):
    """What a conditioner may ask of a data set before training."""

    @property
    def classes(self) -> list[str]:
        """Class names; the position is the label."""


class Conditioner(ABC):
    """Turns what a user gives into a `Condition`, and knows what "no condition" is.

    It is saved with the model, like the autoencoder. A new kind implements `values` and `null`; the other methods have
    defaults that suit most kinds.
    """

    config: dict[str, Any]
    """`kind` and the arguments that build it again."""
    what = "condition"
    """What messages call one of its values: "class", "prompt"."""

    @classmethod
    def for_data(cls, dataset: Described, settings: Mapping[str, Any]) -> Self:
        """The conditioner for a model that is trained on this data.

        Args:
            dataset: the training data.
            settings: options of this kind from the recipe.
        """
        return cls(**settings)

    @abstractmethod
    def values(self, given: Sequence[Any]) -> Condition:
        """One row for each value; None is "no condition".

        Raises:
            InputError: a value that this conditioner cannot take.
        """

    @abstractmethod
    def null(self, count: int) -> Condition:
        """`count` rows of "no condition", which classifier-free guidance needs."""

    def encode(self, given: Sequence[Any]) -> Condition:
        """One row for each value, some of which may be `Between` two others.

        Raises:
            InputError: a value that this conditioner cannot take.
        """
        settled = [settle(value) for value in given]
        first = self.values([value.first if isinstance(value, Between) else value for value in settled])
        if not any(isinstance(value, Between) for value in settled):
            return first
        second = self.values([value.second if isinstance(value, Between) else value for value in settled])
        weight = torch.tensor([value.weight if isinstance(value, Between) else 0.0 for value in settled])
        return self.mix(first, second, weight)

    def drop(self, condition: Condition, where: Tensor) -> Condition:
        """The condition with the rows where `where` (B,) is true replaced by "no condition"."""
        return condition.where(where, self.null(len(condition)).to(where.device))

    def mix(self, a: Condition, b: Condition, weight: Tensor) -> Condition:
        """Rows between two conditions; `weight` (B,) is 0 at a and 1 at b.

        By default the network's predictions for both are mixed, which is what it would predict for the product of the
        two distributions, each to the power of its weight (Liu et al., "Compositional Visual Generation", ECCV 2022).
        """
        return replace(a, other=b, weight=weight)

    def title(self, value: Any) -> str:
        """What a row of a contact sheet calls this value."""
        return "any" if value is None else str(value)

    def stem(self, value: Any) -> str:
        """The same as part of a file name: without characters that have a meaning in paths."""
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in self.title(value))

    def all_values(self) -> list[Any]:
        """Every value that there is, where they can be listed; [None] otherwise."""
        return [None]

    def network_options(self) -> dict[str, Any]:
        """Arguments of `ditlab.create` that follow from the conditioner."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights that are saved with the model; most kinds have none."""
        return {}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: B027 - most kinds have no weights
        """Take the weights of a saved model."""


def settle(value: Any) -> Any:
    """A point at one of its two ends is that end.

    Raises:
        InputError: a weight outside 0..1.
    """
    if not isinstance(value, Between):
        return value
    if not 0 <= value.weight <= 1:
        raise InputError(f"a weight of {value.weight} between two values; give 0 to 1")
    if value.weight == 0 or value.first == value.second:
        return value.first
    return value.second if value.weight == 1 else value
