"""Regression for networks that read the guidance scale, such as Flux.1 dev, at scale 1.

This is how such models are fine-tuned: the data are what the model should generate without guidance, and the embedding
of the scale keeps what the distillation taught it.
"""

from typing import TYPE_CHECKING

from ditlab.core.errors import InputError
from ditlab.diffusion.flow_map import GuidanceInput
from ditlab.training.objectives.regression import RegressionObjective

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class GuidanceInputRegression(RegressionObjective):
    """The losses of `ditlab.diffusion.objective.Objective`, for a network that also receives the guidance scale 1."""

    parametrization = GuidanceInput

    def setup(self, run: "TrainingContext") -> None:
        if not run.settings.init_from:
            raise InputError(
                "train.objective guidance-input is for a model that reads the guidance scale, and the recipe starts "
                "from initial weights; set train.init_from to one, or train.objective to guided"
            )
