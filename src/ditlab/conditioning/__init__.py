"""Conditioners: they encode class labels or other conditions for the network.

To add a kind, write a file with a subclass of `Conditioner` and a line in `CONDITIONERS`.
"""

from typing import Any

from ditlab.conditioning.base import Conditioner
from ditlab.conditioning.labels import ClassLabels
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry


def check(name: str, kind: type[Conditioner]) -> None:
    """Check that a class is a conditioner.

    Raises:
        InputError: it is no subclass of `Conditioner`, or lacks a method.
    """
    if not (isinstance(kind, type) and issubclass(kind, Conditioner)):
        raise InputError(
            f'the conditioner "{name}" is no subclass of ditlab.conditioning.Conditioner; derive it from this class'
        )
    if missing := sorted(kind.__abstractmethods__):
        raise InputError(f'the conditioner "{name}" has no {", ".join(missing)}; define it')


CONDITIONERS: Registry[type[Conditioner]] = Registry("conditioner", {"class": ClassLabels}, check)

__all__ = ["CONDITIONERS", "ClassLabels", "Conditioner", "create_conditioner"]


def create_conditioner(kind: str, **options: Any) -> Conditioner:
    """Build a conditioner from its saved `config`.

    Raises:
        InputError: an unknown kind.
    """
    return CONDITIONERS.find(kind)(**options)
