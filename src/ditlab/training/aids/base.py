"""The contract of a training aid: an extra loss, or a change of the forward pass, that only training has."""

from typing import TYPE_CHECKING, Self

from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.training.rng import Randomness

if TYPE_CHECKING:  # it holds the aids
    from ditlab.training.context import TrainingContext


class Aid:
    """Helps training, and leaves the trained model as it would be without. All methods are optional."""

    taps: tuple[str, ...] = ()
    """Names of values that `Trace` must record, such as "blocks.3"."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        """The aid if the recipe asks for it, else None. If not overridden, naming it in `train.aids` is enough."""
        return cls()

    def setup(self, run: "TrainingContext") -> None:
        """Called once before the first step.

        Raises:
            InputError: a network that this aid cannot help.
        """

    def prepare(self, run: "TrainingContext", trace: Trace, randomness: Randomness) -> None:
        """Called before each forward pass, with the trace that the network is given."""

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        """Further losses (B,) float32 by name, weighted, which are added to those of the objective."""
        return {}
