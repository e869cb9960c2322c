"""Token routing (Krause et al., "TREAD", ICCV 2025): a share of the tokens bypasses the middle blocks in training."""

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.training.aids.base import Aid
from ditlab.training.rng import ROUTE, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class TokenRouting(Aid):
    """Selects at random, for each image, the tokens that pass all blocks."""

    one_size = "train.route"

    def __init__(self, share: float) -> None:
        self.share = share  # share of the tokens that bypass the middle blocks

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        return cls(recipe.train.route) if recipe.train.route else None

    def setup(self, run: "TrainingContext") -> None:
        if len(run.net.routable) < 3:
            raise InputError(
                f"train.route needs 3 blocks or more between which tokens can be routed, which "
                f"{run.net.config['name']} does not have; leave train.route out, or take a DiT without exits"
            )

    def prepare(self, run: "TrainingContext", trace: Trace, randomness: Randomness) -> None:
        trace.kept = self.kept(run.net, randomness).to(run.device)

    def kept(self, net: Backbone, randomness: Randomness) -> Tensor:
        """Indices (B, K) of the tokens that pass all blocks; they include all tokens that are not of the image."""
        image_tokens = net.tokens - net.joined
        count = max(1, round(image_tokens * (1 - self.share)))
        order = randomness.normal(ROUTE, image_tokens).argsort(dim=1)
        joined = torch.arange(image_tokens, net.tokens).expand(randomness.count, -1)
        return torch.cat([order[:, :count], joined], dim=1)
