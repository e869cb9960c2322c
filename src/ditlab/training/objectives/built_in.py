"""What objectives share whose models have guidance built in; see `ditlab.diffusion.flow_map`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from torch import Tensor

from ditlab.config.distill import Distill
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.diffusion.flow_map import Guided
from ditlab.training.objectives.base import TrainingObjective

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class BuiltInGuidance(TrainingObjective):
    """Trains a model with the guidance scale, or the range of scales, of `distill.guidance`."""

    parametrization = Guided
    distill: tuple[str, ...] = ("guidance", "guidance_interval")

    def __init__(self, settings: Distill) -> None:
        self.settings = settings

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        return cls(recipe.distill)

    @classmethod
    def reading(cls, recipe: Recipe) -> Guided:
        plain = super().reading(recipe)
        assert isinstance(plain, Guided)
        check_interval(recipe.distill.guidance_interval)
        return replace(plain, guidance=guidance_range(recipe.distill))

    def setup(self, run: "TrainingContext") -> None:
        if not run.pipe.conditional and guidance_range(self.settings) != (1.0, 1.0):
            raise InputError(
                f"distill.guidance is {self.settings.guidance[-1]:g}, but the model is unconditional; set it to 1"
            )

    def scales(self, uniform: Tensor) -> Tensor:
        """Guidance scales of the model's range, from uniform random numbers of 0 to 1."""
        low, high = guidance_range(self.settings)
        return low + (high - low) * uniform


def check_interval(interval: tuple[float, float] | None) -> None:
    """Check that guidance acts at some times.

    Raises:
        InputError: the interval is empty.
    """
    if interval is not None and not interval[0] < interval[1]:
        raise InputError(
            f"distill.guidance_interval {interval[0]:g} to {interval[1]:g} is empty; give the smaller time first"
        )


def guidance_range(settings: Distill) -> tuple[float, float]:
    """Lowest and highest guidance scale of the model.

    Raises:
        InputError: no scale, or more than two.
    """
    if len(settings.guidance) not in (1, 2):
        given = ", ".join(f"{scale:g}" for scale in settings.guidance) or "empty"
        raise InputError(f"distill.guidance is {given}; give one scale, or the lowest and the highest one")
    return settings.guidance[0], settings.guidance[-1]


def check_dropout(run: "TrainingContext") -> None:
    """Check that a run trains the null condition.

    Raises:
        InputError: it does not.
    """
    if not run.settings.label_dropout:
        raise InputError(
            f"train.objective {run.settings.objective} needs the null condition, but train.label_dropout is 0; set it "
            "to 0.1"
        )


def check_no_aids(run: "TrainingContext") -> None:
    """Check that a run has no training aids.

    Raises:
        InputError: it has.
    """
    if run.aids:
        raise InputError(
            f'train.objective "{run.settings.objective}" uses no training aids, and the recipe has '
            f"{', '.join(type(aid).__name__ for aid in run.aids)}; remove their settings"
        )
