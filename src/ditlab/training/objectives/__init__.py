"""Training objectives, which compute the losses of a batch. A new one is one file and a line in `OBJECTIVES`."""

from ditlab.core.registry import Registry
from ditlab.training.objectives.base import TrainingObjective
from ditlab.training.objectives.correction import Correction
from ditlab.training.objectives.guidance_input import GuidanceInputRegression
from ditlab.training.objectives.guided import GuidedRegression
from ditlab.training.objectives.halves import Halves
from ditlab.training.objectives.mean_flow import MeanFlow
from ditlab.training.objectives.next_state import NextStateObjective
from ditlab.training.objectives.pairs import Pairs
from ditlab.training.objectives.regression import RegressionObjective

OBJECTIVES: Registry[type[TrainingObjective]] = Registry(
    "objective",
    {
        "regression": RegressionObjective,
        "guided": GuidedRegression,
        "guidance-input": GuidanceInputRegression,
        "halves": Halves,
        "pairs": Pairs,
        "correction": Correction,
        "mean-flow": MeanFlow,
        "next-state": NextStateObjective,
    },
    base=TrainingObjective,
)

__all__ = ["OBJECTIVES", "RegressionObjective", "TrainingObjective"]
