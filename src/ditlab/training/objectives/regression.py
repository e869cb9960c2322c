"""Regression of a target (velocity, noise, data, v) at one time for each image: diffusion and flow matching."""

from typing import TYPE_CHECKING

from torch import Tensor

from ditlab.core.types import Batch
from ditlab.training.objectives.base import TrainingObjective
from ditlab.training.rng import EPS, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class RegressionObjective(TrainingObjective):
    """The losses of `ditlab.diffusion.objective.Objective`, which [diffusion] in the recipe describes."""

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        objective, generator = run.pipe.objective, randomness.of_batch()
        x0 = run.latents(batch, randomness)
        condition = run.condition(batch, randomness, generator)  # before the times: both take from the generator
        times = randomness.part(objective.draw_times(randomness.batch, generator))
        randomness.times = times
        trace = run.trace(randomness)
        forward = objective.regress(run.network, x0, condition, times, randomness.noise(EPS)(x0), trace)
        return objective.terms(forward) | run.further_losses(forward, trace)
