"""The contract of a training objective, which computes the losses of a batch."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from PIL import Image
from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Batch
from ditlab.data import Dataset
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.parametrizations import make_objective
from ditlab.inference.pipeline import Pipeline
from ditlab.training.parallel import Place
from ditlab.training.preview import preview
from ditlab.training.rng import Randomness

if TYPE_CHECKING:  # it holds an objective
    from ditlab.training.context import TrainingContext


class TrainingObjective(ABC):
    """Computes the losses of a batch. A run has one objective, named by `train.objective` in the recipe."""

    parametrization: type[Objective] = Objective
    """How samplers read a network that was trained with this objective: `Objective`, or a registered subclass of it,
    whose name is saved with the model."""

    distill: tuple[str, ...] = ()
    """The settings of [distill] that it uses; others are refused."""
    follow_up: str = "sample"
    """The command that uses a trained model."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The objective of a run; by default, the class is called without arguments."""
        return cls()

    @classmethod
    def reading(cls, recipe: Recipe) -> Objective:
        """How samplers read the model of a recipe: its `parametrization`, with the settings of [diffusion].

        Raises:
            InputError: a setting is invalid, or the parametrization is not registered.
        """
        return make_objective(recipe.diffusion, cls.parametrization)

    def setup(self, run: "TrainingContext") -> None:  # noqa: B027 - most objectives need none
        """Called once before the first step, to load a teacher, add modules to `run.trained`, or check the network.

        Raises:
            InputError: the objective does not support the network or the settings.
        """

    @abstractmethod
    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        """The losses of each image by name, (B,) float32 each. Their sum is minimized, and each is logged.

        The method runs under autocast in the precision of training. All random values must come from `randomness`, so
        that a resumed run repeats them. Set `randomness.times` to the sampled times (B,) for the log.
        """

    def preview(self, pipes: list[Pipeline], dataset: Dataset, place: Place) -> Image.Image | None:
        """An image that shows what the model can do; by default, samples from fixed seeds.

        All processes call this, and the first one returns the image.

        Args:
            pipes: the model with the averaged weights, and with the raw weights.
            dataset: the training data.
            place: the place of this process.
        """
        return preview(pipes, place)
