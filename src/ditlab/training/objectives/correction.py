"""A correction of a student's images that needs no data: their velocity field must equal the teacher's.

The student's images are noised again to a random time. A further network learns, by flow matching, by how much the
velocity of their distribution differs from the teacher's. The difference says in which direction the images must move
so that both distributions agree. This is the correction of FreeFlow (Tong et al., "Flow Map Distillation Without Data",
2025), and up to a weight the gradient of distribution matching (Yin et al., "One-step Diffusion with Distribution
Matching Distillation", 2024). The steps of the student stay tied to the teacher's trajectories by the loss of `pairs`,
without which errors of the further network would add up.

The further network has new weights, with which most families return zero. A copy of the teacher that learns the whole
velocity would differ from the teacher by the noise of its own training, which is larger than this difference.
"""

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.backbones import create
from ditlab.core.types import Batch, Condition
from ditlab.diffusion.flow_map import FlowMap, Guided
from ditlab.diffusion.samplers.flow_map import moved
from ditlab.training.objectives.built_in import guidance_range
from ditlab.training.objectives.pairs import Pairs
from ditlab.training.rng import EPS, RENOISED, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

FIRST = 0.1  # share of the run in which only the further network learns from the images
NAME = "correction"  # of the further network in checkpoints


class Correction(Pairs):
    """Trains the steps of `distill.steps` on the teacher's trajectories, and the last one by its distribution."""

    early = 0.0

    def setup(self, run: "TrainingContext") -> None:
        super().setup(run)
        if run.device.type == "meta":  # a network without weights, whose memory is predicted
            return
        self.reads = Guided(run.pipe.objective.process, guidance=guidance_range(self.settings))
        further = create(**run.net.config | {"size": tuple(run.net.size), "inputs": self.reads.inputs})
        run.trained[NAME] = further.to(run.device).train()

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        objective, generator = run.pipe.objective, randomness.of_batch()
        jump = self.jump(run, randomness, generator)
        times = randomness.part(objective.draw_times(randomness.batch, generator))
        images = self.images(run, randomness.noise(EPS)(jump.x), jump.condition, jump.scale)
        velocity, correction = self.differences(run, images, jump.condition, jump.scale, times, randomness)
        begun = randomness.seen >= FIRST * run.settings.images
        return {"pairs": self.error(run, jump), "velocity": velocity, "correction": correction * begun}

    def images(self, run: "TrainingContext", noise: Tensor, condition: Condition, scale: Tensor) -> Tensor:
        """Generate images (B, C, ...) with the student; only its last step has gradients."""
        objective = run.pipe.objective
        assert isinstance(objective, FlowMap)
        times, x = objective.times(self.settings.steps), noise
        for i, (t, s) in enumerate(pairwise(times.expand(len(x), -1).unbind(1))):
            with torch.set_grad_enabled(i == self.settings.steps - 1):
                x = moved(objective.process, x, t, s, self.predict(run, x, t, s, condition, scale))
        return x

    def differences(
        self,
        run: "TrainingContext",
        images: Tensor,
        condition: Condition,
        scale: Tensor,
        times: Tensor,
        randomness: Randomness,
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses (B,) of the further network, and of the student's images (B, C, ...).

        The gradient of the second one moves the images by the difference of the velocities; its value is the squared
        difference.
        """
        x0 = images.detach()
        eps = randomness.noise(RENOISED)(x0)
        x = run.pipe.objective.process.add_noise(x0, eps, times)
        output = run.trained[NAME](x, self.reads.timesteps_at(times, times, scale, x), condition)
        difference = self.reads.split(output, x)[0]
        taught = self.teacher.predict(x, times, condition, scale)
        error = taught.eps - taught.x0 + difference - (eps - x0)
        return mean_square(error), mean_square(images - (x0 + difference.detach()))


def mean_square(values: Tensor) -> Tensor:
    """The mean square (B,) of each image (B, C, ...)."""
    return values.square().flatten(1).mean(1)
