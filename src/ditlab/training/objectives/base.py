"""The contract of a training objective: how a batch becomes losses."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Batch
from ditlab.diffusion.guidance import Conditional
from ditlab.diffusion.objective import Network
from ditlab.training.rng import Randomness

if TYPE_CHECKING:  # it holds an objective
    from ditlab.training.context import TrainingContext


class TrainingObjective(ABC):
    """Computes the losses of a batch. A run has one; its name is `train.objective` in the recipe."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The objective of a run; without arguments if not overridden."""
        return cls()

    def setup(self, run: "TrainingContext") -> None:  # noqa: B027 - most objectives need none
        """Called once before the first step, for a teacher, a frozen encoder, or a check of the network.

        Raises:
            InputError: a network or settings that this objective cannot train.
        """

    @abstractmethod
    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The losses of each image, by name: (B,) float32 each. Their sum is trained, and each is logged.

        It runs under autocast in the precision of training. Everything random must come from `randomness`, so that a
        resumed run repeats it; `randomness.times` should be set to the times (B,) for the log.
        """

    @abstractmethod
    def denoiser(self, net: Network) -> Conditional:
        """The trained network as a function (x_t, t, s, condition) -> Prediction, which samplers call."""
