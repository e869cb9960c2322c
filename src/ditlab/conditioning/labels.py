"""Class labels: an index for each class, and one for the null class."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from ditlab.conditioning.base import Conditioner, Described
from ditlab.core.errors import InputError, nearest
from ditlab.core.spelling import all_nfc, nfc
from ditlab.core.types import Condition


class ClassLabels(Conditioner):
    """Encodes class indices or names as `Condition.label`. The index of the null class is the class count.

    Args:
        classes: number of classes of the network; 0 is an unconditional model.
        names: names of the first classes.
    """

    what = "class"

    def __init__(self, classes: int, names: Sequence[str] = ()) -> None:
        self.classes, self.names = classes, all_nfc(names)
        self.config = {"kind": "class", "classes": classes, "names": self.names}

    @classmethod
    def for_data(cls, dataset: Described, settings: Mapping[str, Any]) -> Self:
        """Build the conditioner for the classes of a data set; `classes` in the settings may be a larger count.

        Raises:
            InputError: `classes` is smaller than the class count of the data.
        """
        count = settings.get("classes") or len(dataset.classes)
        if count < len(dataset.classes):
            raise InputError(f"data.classes is {count}, but the data has {len(dataset.classes)} classes; leave it out")
        return cls(count, dataset.classes)

    def values(self, given: Sequence[Any]) -> Condition:
        """Encode indices or names; a text that is a class name is that class, even if it looks like a number.

        Raises:
            InputError: an index out of range, an unknown name, or a text prompt.
        """
        return Condition(label=torch.tensor([self.index(value) for value in given], dtype=torch.long))

    def index(self, value: Any) -> int:
        """Return the class index of one value."""
        if value is None:
            return self.classes
        if self.classes == 0:
            raise InputError(f"label {value} for an unconditional model; leave the labels out")
        value = nfc(value) if isinstance(value, str) else value
        if value in self.names:
            return self.names.index(str(value))
        try:
            index = int(value) if isinstance(value, str) else operator.index(value)
        except (ValueError, TypeError):
            raise InputError(self._unknown(str(value))) from None
        if not 0 <= index < self.classes:
            raise InputError(f"label {index} is out of range; this model has the classes 0 to {self.classes - 1}")
        return index

    def _unknown(self, value: str) -> str:
        hint = nearest(value, self.names) if self.names else f"give 0 to {self.classes - 1}"
        if len(value.split()) > 1 and not hint.startswith("did you mean"):
            classes = ", ".join(self.names[:5]) or f"0 to {self.classes - 1}"
            more = ", ..." if len(self.names) > 5 else ""
            return f'text prompt "{value}" for a class-conditional model; its classes are {classes}{more}'
        return f'unknown class "{value}"; {hint}'

    def null(self, count: int) -> Condition:
        return Condition(label=torch.full((count,), self.classes, dtype=torch.long))

    def title(self, value: Any) -> str:
        """Return the name of the class, or its index if it has no name."""
        if value is None:
            return "any"
        index = self.index(value)
        return self.names[index] if index < len(self.names) else str(index)

    def stem(self, value: Any) -> str:
        """Return index and name, which identify the class."""
        clean = super().stem(value)
        if value is None or clean == str(self.index(value)):
            return clean
        return f"{self.index(value)}-{clean}"

    def all_values(self) -> list[Any]:
        return list(range(self.classes)) or [None]

    def network_options(self) -> dict[str, Any]:
        return {"classes": self.classes}
