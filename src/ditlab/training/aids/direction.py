"""Velocity direction loss (Yao et al., "Reconstruction vs. Generation" (LightningDiT), CVPR 2025, section 3.4)."""

from typing import TYPE_CHECKING, Self

import torch.nn.functional as F
from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.training.aids.base import Aid

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class Direction(Aid):
    """Adds 1 - cosine similarity of output and target, over the channels of each position, to the loss."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        return cls(recipe.diffusion.direction) if recipe.diffusion.direction else None

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        distance = 1 - F.cosine_similarity(forward.output, forward.wanted, dim=1)
        return {"direction": self.weight * distance.flatten(1).mean(1)}
