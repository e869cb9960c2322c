"""Training objectives: how a batch becomes losses. A new one is one file and one line in `OBJECTIVES`."""

from typing import Any

from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.training.objectives.base import TrainingObjective
from ditlab.training.objectives.regression import RegressionObjective


def check(name: str, kind: Any) -> None:
    """Refuse what is no training objective.

    Raises:
        InputError: another class, or one that lacks a method.
    """
    if not (isinstance(kind, type) and issubclass(kind, TrainingObjective)):
        raise InputError(f'the objective "{name}" is no subclass of ditlab.training.objectives.TrainingObjective')
    if missing := sorted(kind.__abstractmethods__):
        raise InputError(f'the objective "{name}" has no {", ".join(missing)}; define it')


OBJECTIVES: Registry[type[TrainingObjective]] = Registry("objective", {"regression": RegressionObjective}, check)

__all__ = ["OBJECTIVES", "RegressionObjective", "TrainingObjective"]
