"""LayerSync ("LayerSync: Self-aligning Intermediate Layers", 2025): align the tokens of an early and a late block."""

from typing import TYPE_CHECKING, Self

import torch.nn.functional as F
from torch import Tensor

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.training.aids.base import Aid, blocks_of

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class LayerSync(Aid):
    """Adds the distance between the outputs of two blocks to the loss."""

    def __init__(self, early: int, late: int, weight: float) -> None:
        self.early, self.late, self.weight = early, late, weight
        self.taps = (f"blocks.{early}", f"blocks.{late}")

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        if not recipe.train.layer_sync:
            return None
        early, late = recipe.train.layer_sync
        return cls(early, late, recipe.train.layer_sync_weight)

    def setup(self, run: "TrainingContext") -> None:
        name, net = run.net.config["name"], run.net
        blocks = blocks_of(net, "train.layer_sync")
        if not 0 <= self.early < self.late < len(blocks):
            raise InputError(
                f"train.layer_sync {self.early} {self.late}: {name} has the blocks 0 to {len(blocks) - 1}; "
                "give the numbers of an early and a late block"
            )

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        early, late = (trace.taps[tap] for tap in self.taps)
        return {"layer_sync": self.weight * distance(early, late)}


def distance(early: Tensor, late: Tensor) -> Tensor:
    """1 - cosine similarity of the tokens (B, N, D) of two blocks, mean for each image (B,).

    Gradients reach the early block only.

    Raises:
        InputError: the blocks differ in width or number of tokens.
    """
    if early.shape != late.shape:
        sizes = ["x".join(map(str, tokens.shape[1:])) for tokens in (early, late)]
        raise InputError(
            f"train.layer_sync needs two blocks of one width and grid; these have {sizes[0]} and {sizes[1]}; "
            "give other blocks"
        )
    return (1 - F.cosine_similarity(early.float(), late.detach().float(), dim=-1)).flatten(1).mean(1)
