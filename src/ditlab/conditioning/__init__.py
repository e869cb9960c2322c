"""What the network is told beside x and the timestep. A new kind is one file and one line in `CONDITIONERS`."""

from typing import Any

from ditlab.conditioning.base import Conditioner
from ditlab.conditioning.labels import ClassLabels
from ditlab.core.errors import lookup

CONDITIONERS: dict[str, type[Conditioner]] = {"class": ClassLabels}

__all__ = ["CONDITIONERS", "ClassLabels", "Conditioner", "create_conditioner"]


def create_conditioner(kind: str, **options: Any) -> Conditioner:
    """Build a conditioner from its saved `config`."""
    return lookup(CONDITIONERS, kind, "conditioner")(**options)
