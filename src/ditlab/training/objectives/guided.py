"""Regression with guidance built in, so that sampling needs one evaluation for each step where it otherwise needs two.

Classifier-free guidance with scale s extrapolates from the null condition: guided = null + s (conditional - null). The
conditional prediction is therefore guided / s + (1 - 1 / s) null, and this combination is trained to equal the target
(Chen et al., "Visual Generation Without Guidance", 2025). The output for the null condition enters as a constant, and
is itself trained by the rows whose condition is dropped.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.diffusion.flow_map import Guided
from ditlab.diffusion.objective import TARGETS, Regression
from ditlab.diffusion.process import per_image
from ditlab.training.objectives.built_in import BuiltInGuidance, check_dropout
from ditlab.training.rng import EPS, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class GuidedRegression(BuiltInGuidance):
    """The losses of `ditlab.diffusion.objective.Objective`, for a model whose output includes guidance."""

    def setup(self, run: "TrainingContext") -> None:
        super().setup(run)
        if run.pipe.objective.learn_variance:
            raise InputError(
                "train.objective guided does not learn the variance of guided steps; set diffusion.learn_variance to "
                "false"
            )
        check_dropout(run)

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        objective, generator = run.pipe.objective, randomness.of_batch()
        assert isinstance(objective, Guided)
        x0 = run.latents(batch, randomness)
        condition = run.condition(batch, randomness, generator)  # before the times: both take from the generator
        t = randomness.part(objective.draw_times(randomness.batch, generator))
        scale = self.scales(randomness.part(torch.rand(randomness.batch, generator=generator, dtype=torch.float64)))
        randomness.times = t
        eps = randomness.noise(EPS)(x0)
        x = objective.process.add_noise(x0, eps, t)
        trace = run.trace(randomness)
        output = objective.split(run.network(x, objective.timesteps_at(t, t, scale, x), condition, trace=trace), x)[0]
        with torch.no_grad():
            timesteps = objective.timesteps_at(t, t, torch.ones_like(t), x)
            null = objective.split(run.net(x, timesteps, run.pipe.null(len(x))), x)[0]
        low, high = self.settings.guidance_interval or (0.0, 1.0)
        share = torch.where((low <= t) & (t <= high), 1 / scale, 1.0)
        estimate = torch.lerp(null, output, per_image(share, x))
        a, b = (per_image(factor, x) for factor in TARGETS[objective.target](objective.process, t))
        forward = Regression(x0, x, t, estimate, a * x0 + b * eps, None)
        return objective.terms(forward) | run.further_losses(forward, trace)
