"""Training objectives, which compute the losses of a batch. A new one is one file and a line in `OBJECTIVES`."""

from typing import Any

from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.training.objectives.base import TrainingObjective
from ditlab.training.objectives.regression import RegressionObjective


def check(name: str, value: Any) -> None:
    """Check that a registered value is a training objective.

    Raises:
        InputError: it is not a subclass of `TrainingObjective`, or lacks a method.
    """
    if not (isinstance(value, type) and issubclass(value, TrainingObjective)):
        raise InputError(
            f'the objective "{name}" is no subclass of ditlab.training.objectives.TrainingObjective; make it one'
        )
    if missing := sorted(value.__abstractmethods__):
        raise InputError(f'the objective "{name}" has no {", ".join(missing)}; define it')


OBJECTIVES: Registry[type[TrainingObjective]] = Registry("objective", {"regression": RegressionObjective}, check)

__all__ = ["OBJECTIVES", "RegressionObjective", "TrainingObjective"]
