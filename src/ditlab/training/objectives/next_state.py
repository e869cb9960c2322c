"""Regression of the next state of a field from the present one, as PDE-Transformer is trained (ICML 2025).

The loss is the mean squared error in the scale of the network. There is no noise and no timestep: the network receives
the timestep of the data.
"""

from typing import TYPE_CHECKING, Self

import torch
from PIL import Image
from torch import Tensor

from ditlab.autoencoders import Pixel
from ditlab.config.fields import shown
from ditlab.config.sections import Diffusion, Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data import Dataset
from ditlab.data.trajectories.base import NEXT, Trajectories
from ditlab.diffusion.next_state import NextState
from ditlab.diffusion.objective import Regression
from ditlab.evaluation.rollouts import rolled_out
from ditlab.inference.pipeline import Pipeline
from ditlab.report.fields import comparison
from ditlab.training.objectives.base import TrainingObjective
from ditlab.training.parallel import Place
from ditlab.training.rng import Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

UNUSED = ("time", "time_mean", "time_scale", "stratified", "weight", "direction")
"""Settings of [diffusion] without effect, beside process and target."""
SHOWN = 8  # states of a preview


class NextStateObjective(TrainingObjective):
    """Trains a network on pairs of states, see `ditlab.data.trajectories`."""

    parametrization = NextState
    follow_up = "rollout"

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        given, plain = recipe.diffusion, Diffusion()
        values = {key: (getattr(given, key), getattr(plain, key)) for key in UNUSED}
        values |= {"process": (given.process or "linear", "linear"), "target": (given.target or "velocity", "velocity")}
        values |= {"learn_variance": (bool(given.learn_variance), False)}
        for key, (value, default) in values.items():
            if value != default:
                raise InputError(
                    f"diffusion.{key} is {shown(value)}, which has no effect on train.objective next-state, because "
                    "there is no noise; remove it"
                )
        return cls()

    def setup(self, run: "TrainingContext") -> None:
        if not isinstance(run.autoencoder, Pixel):
            raise InputError("train.objective next-state predicts fields and not latents; remove data.autoencoder")

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        if NEXT not in batch.extra:
            raise InputError(
                "train.objective next-state needs pairs of states, which the data do not have; set data.trajectories "
                "for files of trajectories, or choose waves-SIZE"
            )
        objective, generator = run.pipe.objective, randomness.of_batch()
        assert isinstance(objective, NextState)
        state, wanted = run.latents(batch, randomness), batch.extra[NEXT].to(run.device)
        condition = run.condition(batch, randomness, generator)
        trace = run.trace(randomness)
        output = objective.advanced(run.network, state, condition, trace=trace)
        forward = Regression(wanted, state, torch.zeros(len(state), dtype=torch.float64), output, wanted, None)
        error = (output - wanted).square().flatten(1).mean(1)
        return {"next_state": error} | run.further_losses(forward, trace)

    def preview(self, pipes: list[Pipeline], dataset: Dataset, place: Place) -> Image.Image | None:
        """Predictions of the averaged weights beside the truth, from the first state of the first trajectory."""
        if not place.first or not isinstance(dataset, Trajectories):
            return None
        truth, predicted = rolled_out(pipes[0], dataset, 1, SHOWN - 1)
        return comparison(truth[0], predicted[0], pipes[0].values)
