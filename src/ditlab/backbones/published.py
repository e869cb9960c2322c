"""What families with published weights share."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

SIT_CLOCK = {"clock_rate": -1.0, "clock_start": 1.0}  # SiT's timestep input is 1 - t


def sit_objective(process: str = "linear") -> dict[str, Any]:
    """Return the objective, as in `config.json`, of networks that are trained as SiT on this process.

    SiT's velocity is the negative of ditlab's, see `negated`.
    """
    return {"process": {"name": process, **SIT_CLOCK}, "target": "velocity"}


def negated(tensors: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Change the sign of some tensors, such as the output layer of a network that predicts SiT's velocity."""
    return tensors | {name: -tensors[name] for name in names}


def count_of(tensors: dict[str, Tensor], prefix: str) -> int:
    """Return the number of modules in the list that has this prefix ("blocks.")."""
    start = len(prefix)
    return len({key[start:].split(".")[0] for key in tensors if key.startswith(prefix)})
