"""The contract of a training aid: an extra loss, or a change of the forward pass in training."""

from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from ditlab.backbones import Backbone
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.training.rng import Randomness

if TYPE_CHECKING:  # it holds the aids
    from ditlab.training.context import TrainingContext


class Aid:
    """An extra loss or a change of the forward pass in training only. All methods are optional."""

    taps: tuple[str, ...] = ()
    """Names of values that `Trace` must record, such as "blocks.3"."""
    one_size: str = ""
    """The setting of an aid that works with images of one size only; empty if sizes may differ between batches."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        """The aid if the settings of the recipe activate it, else None; by default, its name in `train.aids` does."""
        return cls()

    def setup(self, run: "TrainingContext") -> None:
        """Called once before the first step, to check the network or to add modules to `run.trained`.

        Raises:
            InputError: the aid does not support the network.
        """

    def prepare(self, run: "TrainingContext", trace: Trace, randomness: Randomness) -> None:
        """Called before each forward pass, with the trace that the network will receive."""

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        """Further losses by name, (B,) float32 each and already weighted, which are added to the objective's losses."""
        return {}


def blocks_of(net: Backbone, setting: str) -> list[nn.Module]:
    """Return the blocks of a network whose outputs an aid uses, without the head.

    Args:
        net: the network.
        setting: the setting of the aid, for the message.

    Raises:
        InputError: it has none that all images pass.
    """
    blocks = [block for block in net.repeated if type(block) is type(net.repeated[0])]
    if net.dynamic_depth or not blocks:
        raise InputError(
            f"{setting} needs blocks that all images pass, which {net.config['name']} does not have; omit it"
        )
    return blocks
