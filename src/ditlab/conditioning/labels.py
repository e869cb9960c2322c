"""Class labels: an index for each class, and one for the null class.

Everything that converts a label to a class index calls `ClassLabels.index`: requests, recipes, class maps, data.
"""

import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, Self

import torch

from ditlab.conditioning.base import Conditioner, Described, file_name
from ditlab.core.errors import InputError, nearest
from ditlab.core.spelling import all_nfc, nfc
from ditlab.core.types import Condition
from ditlab.core.units import counted


class ClassLabels(Conditioner):
    """Encodes class names or indices as `Condition.label`. The index of the null class is the class count.

    A name is always accepted, and so is "index:3". A plain number is an index too, unless class names are numbers that
    differ from their index: for classes 1 to 10, the label 1 is the class of this name, and the label 0 is rejected.

    Args:
        classes: number of classes of the network; 0 is an unconditional model.
        names: names of the first classes.
    """

    what = "class"

    def __init__(self, classes: int, names: Sequence[str] = ()) -> None:
        self.classes, self.names = classes, all_nfc(names)
        self.config = {"kind": "class", "classes": classes, "names": self.names}
        self._index = {nfc(name): i for i, name in reversed([*enumerate(self.names)])}
        self._numbers = {i: number for i, name in enumerate(self.names) if (number := as_number(name)) is not None}
        self.names_are_other_numbers = any(number != i for i, number in self._numbers.items())

    @classmethod
    def for_data(cls, dataset: Described, settings: Mapping[str, Any]) -> Self:
        """Build the conditioner for the classes of a data set; `classes` in the settings may be a larger count.

        Raises:
            InputError: `classes` is smaller than the class count of the data.
        """
        count = settings.get("classes") or len(dataset.classes)
        if count < len(dataset.classes):
            raise InputError(
                f"data.classes is {count}, but the data has {counted(len(dataset.classes), 'class')}; leave it out"
            )
        return cls(count, dataset.classes)

    def values(self, given: Sequence[Any]) -> Condition:
        """Encode names or indices; see `index`.

        Raises:
            InputError: an index out of range, an unknown name, an ambiguous number, or a text prompt.
        """
        return Condition(label=torch.tensor([self.index(value) for value in given], dtype=torch.long))

    def index(self, value: Any) -> int:
        """Return the class index of one value: a name, "index:3", a number, or None for the null class.

        Raises:
            InputError: an index out of range, an unknown name, an ambiguous number, or a text prompt.
        """
        if value is None:
            return self.classes
        text = value if isinstance(value, str) else plain_number(value)
        if self.classes == 0:
            raise InputError(f"label {text} for an unconditional model; leave the labels out")
        if (known := self._index.get(nfc(text))) is not None:
            return known
        if explicit := INDEX.fullmatch(text):
            return self._in_range(int(explicit[1]), text)
        if self.names_are_other_numbers and (number := as_number(text)) is not None:
            return self._only_reading(text, number)
        try:
            index = int(text)
        except ValueError:
            raise InputError(self._unknown(text)) from None
        return self._in_range(index, str(index))

    def _in_range(self, index: int, label: str) -> int:
        if not 0 <= index < self.classes:
            what = "indices" if self.names_are_other_numbers else "classes"
            raise InputError(f"label {label} is out of range; this model has the {what} 0 to {self.classes - 1}")
        return index

    def _only_reading(self, text: str, number: Decimal) -> int:
        """Return the index for a number that is no class name, if the class of this value and the index agree.

        Raises:
            InputError: they differ, or only one of them exists; the message names all readings.
        """
        same = [i for i, value in self._numbers.items() if value == number]
        names = ", ".join(f'"{self.names[i]}"' for i in same)
        index = int(number) if 0 <= number < self.classes and number == int(number) else None
        if index is None:
            raise InputError(f'unknown class "{text}"; give {names}' if same else self._unknown(text))
        if same == [index]:
            return index
        other = self.title(f"index:{index}")
        if not same:
            raise InputError(
                f"label {text} is no class name, and class names of this model are numbers; "
                f'give index:{index} for the class "{other}"'
            )
        raise InputError(
            f'label {text} is ambiguous: it may be the class {names}, or index {index}, which is the class "{other}"; '
            f"give {names} or index:{index}"
        )

    def _unknown(self, value: str) -> str:
        hint = nearest(value, self.names) if self.names else f"give 0 to {self.classes - 1}"
        if len(value.split()) > 1 and not hint.startswith("did you mean"):
            classes = ", ".join(self.names[:5]) or f"0 to {self.classes - 1}"
            more = ", ..." if len(self.names) > 5 else ""
            return f'text prompt "{value}" for a class-conditional model; its classes are {classes}{more}'
        return f'unknown class "{value}"; {hint}'

    def null(self, count: int) -> Condition:
        return Condition(label=torch.full((count,), self.classes, dtype=torch.long))

    def value(self, index: int) -> int | str:
        """Return the index, or where a number may be another class, the name or "index:3"."""
        if not self.names_are_other_numbers:
            return index
        named = index < len(self.names) and self._index[nfc(self.names[index])] == index
        return self.names[index] if named else f"index:{index}"

    def title(self, value: Any) -> str:
        """Return the name of the class, or its index if it has no name."""
        if value is None:
            return "any"
        index = self.index(value)
        return self.names[index] if index < len(self.names) else str(self.value(index))

    def stem(self, value: Any) -> str:
        """Return the name of the class, with its index if other names differ in special characters or case only."""
        clean = super().stem(value)
        shared = value is not None and self._stems[clean.casefold()] > 1
        return f"{clean}-index{self.index(value)}" if shared else clean

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(file_name(name).casefold() for name in self.names)

    def all_values(self) -> list[Any]:
        return [self.value(index) for index in range(self.classes)] or [None]

    def about(self) -> str:
        return counted(self.classes, "class") if self.classes else "no condition"

    def network_options(self) -> dict[str, Any]:
        return {"classes": self.classes}


INDEX = re.compile(r"index:\s*0*([0-9]{1,18})")  # the conversion of more digits takes long, or is refused by Python
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def as_number(text: str) -> Decimal | None:
    """Return the value of a text that is a number, such as "1", "001" or "1.0"; None for other texts."""
    return Decimal(text.strip()) if NUMBER.fullmatch(text.strip()) else None


def plain_number(value: Any) -> str:
    """Return an integer of any type (of NumPy, PyTorch) as text; other values are formatted as they are."""
    try:
        return str(int(operator.index(value)))
    except TypeError:
        return str(value)
