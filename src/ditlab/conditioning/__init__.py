"""What the network receives beside x and the timestep. A new kind is one file and one line in `CONDITIONERS`."""

from typing import Any

from ditlab.conditioning.base import Conditioner
from ditlab.conditioning.labels import ClassLabels
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry


def check(name: str, kind: type[Conditioner]) -> None:
    """Refuse what is no conditioner.

    Raises:
        InputError: another class, or one that lacks a method.
    """
    if not (isinstance(kind, type) and issubclass(kind, Conditioner)):
        raise InputError(f'the conditioner "{name}" is no subclass of ditlab.conditioning.Conditioner; make it one')
    if missing := sorted(kind.__abstractmethods__):
        raise InputError(f'the conditioner "{name}" has no {", ".join(missing)}; define it')


CONDITIONERS: Registry[type[Conditioner]] = Registry("conditioner", {"class": ClassLabels}, check)

__all__ = ["CONDITIONERS", "ClassLabels", "Conditioner", "create_conditioner"]


def create_conditioner(kind: str, **options: Any) -> Conditioner:
    """Build a conditioner from its saved `config`."""
    return CONDITIONERS.find(kind)(**options)
