"""Conditioners: they encode class labels or other conditions for the network.

To add a kind, write a file with a subclass of `Conditioner` and a line in `CONDITIONERS`.
"""

from typing import Any

from ditlab.conditioning.base import Conditioner
from ditlab.conditioning.encoders import ENCODERS, Encoder
from ditlab.conditioning.labels import ClassLabels
from ditlab.conditioning.text import Text
from ditlab.core.registry import Registry

CONDITIONERS: Registry[type[Conditioner]] = Registry(
    "conditioner", {"class": ClassLabels, "text": Text}, base=Conditioner
)

__all__ = ["CONDITIONERS", "ENCODERS", "ClassLabels", "Conditioner", "Encoder", "Text", "create_conditioner"]


def create_conditioner(kind: str, **options: Any) -> Conditioner:
    """Build a conditioner from its saved `config`.

    Raises:
        InputError: an unknown kind.
    """
    return CONDITIONERS.find(kind)(**options)
