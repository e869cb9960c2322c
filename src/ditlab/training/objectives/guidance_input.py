"""Regression for networks that read the guidance scale, such as Flux.1 dev, at scale 1.

This is how such models are fine-tuned: the data are what the model should generate without guidance, and the embedding
of other scales keeps what the distillation taught it.
"""

from ditlab.diffusion.flow_map import GuidanceInput
from ditlab.training.objectives.regression import RegressionObjective


class GuidanceInputRegression(RegressionObjective):
    """The losses of `ditlab.diffusion.objective.Objective`, for a network that also receives the guidance scale 1."""

    parametrization = GuidanceInput
