"""The contract of a training objective: how a batch becomes losses."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Batch
from ditlab.diffusion.objective import Objective
from ditlab.training.rng import Randomness

if TYPE_CHECKING:  # it holds an objective
    from ditlab.training.context import TrainingContext


class TrainingObjective(ABC):
    """Computes the losses of a batch. A run has one; its name is `train.objective` in the recipe."""

    parametrization: type[Objective] = Objective
    """How samplers read a network that was trained with this objective: `Objective`, or a registered subclass of it,
    whose `denoiser` is saved with the model by name."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The objective of a run; without arguments if not overridden."""
        return cls()

    def setup(self, run: "TrainingContext") -> None:  # noqa: B027 - most objectives need none
        """Called once before the first step, for a teacher, a projector (in `run.trained`), or a check.

        Raises:
            InputError: a network or settings that this objective cannot train.
        """

    @abstractmethod
    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The losses of each image, by name: (B,) float32 each. Their sum is trained, and each is logged.

        It runs under autocast in the precision of training. Everything random must come from `randomness`, so that a
        resumed run repeats it; `randomness.times` should be set to the times (B,) for the log.
        """
