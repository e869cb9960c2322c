"""The compute budget of a dynamic network (Zhao et al., "Dynamic Diffusion Transformer", ICLR 2025, section 3.3)."""

from dataclasses import replace
from typing import TYPE_CHECKING, Self

from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.training.aids.base import Aid
from ditlab.training.rng import GATES, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

WEIGHT = 2.0


class ComputeBudget(Aid):
    """Adds 2 (mean share of the compute - target)² to the loss, and makes the decisions of the network random.

    The mean is over the images that a process computes at a time, so single images may differ freely. In the first
    stage of training, the losses of the complete network are added too.
    """

    taps = ("compute",)

    def __init__(self, budget: float, ramp: int, complete: int) -> None:
        self.budget, self.ramp, self.complete = budget, ramp, complete
        self.target = 1.0

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        budget, settings = recipe.model.budget, recipe.train
        if budget is not None:
            return cls(budget, settings.budget_ramp, settings.budget_complete)
        for key in ("budget_ramp", "budget_complete"):
            if getattr(settings, key):
                raise InputError(f"train.{key} has no effect without model.budget; set model.budget, or omit it")
        return None

    def prepare(self, run: "TrainingContext", trace: Trace, randomness: Randomness) -> None:
        if not run.net.gates:  # a network from outside the package whose budget is something else
            return
        trace.noise = randomness.normal(GATES, run.net.gates).to(run.device)
        self.target = self.target_at(randomness.seen)
        if randomness.seen < self.complete:
            trace.wanted |= {"complete"}

    def target_at(self, seen: int) -> float:
        """The target after a number of images: it falls from 1 to the budget over the first `ramp` images."""
        return 1 - (1 - self.budget) * min(1.0, seen / self.ramp if self.ramp else 1.0)

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        if (share := trace.taps.get("compute")) is None:
            return {}
        losses = {"budget": WEIGHT * (share.mean() - self.target).square().expand(len(share))}
        if (complete := trace.taps.get("complete")) is not None:
            output, variance = run.pipe.objective.split(complete, forward.x)
            terms = run.pipe.objective.terms(replace(forward, output=output, variance=variance))
            losses |= {f"complete_{name}": value for name, value in terms.items()}
        return losses
