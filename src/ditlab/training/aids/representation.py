"""REPA (Yu et al., "Representation Alignment for Generation", ICLR 2025) and U-REPA (Tian et al., arXiv 2503.18414).

The output of a block passes a projector, and its cosine similarity to the features that a frozen DINOv2 has at the same
place of the clean image is trained to be large. REPA resizes the features to the tokens of the network. In a U-shaped
network, U-REPA takes the output of the middle, and resizes the projected grid to the features, after the projector. It
also trains similarities between images to be those of the features (`manifold_distance`). The weights of U-REPA's code
are not published with the paper; how the similarities are computed is ditlab's reading.

In shapes, B is the batch, N tokens, h x w their grid, D the width of the network, E that of the encoder and s its grid.
"""

import math
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.backbones.dit_blocks import projector
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.data.latents.features import CACHED, FEATURES
from ditlab.diffusion.objective import Regression
from ditlab.evaluation.features.dinov2 import DinoV2
from ditlab.training.aids.base import Aid, blocks_of

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

INNER = 2048  # width of the projector
BLOCK = 7  # of networks without a middle


class RepresentationAlignment(Aid):
    """Adds 1 - cosine similarity of a block's projected tokens to the features of an encoder."""

    encoder: DinoV2 | None = None
    """None if the features are in the cache."""
    one_size = "train.repa"

    def __init__(self, source: str, block: int | None, weight: float, manifold: float) -> None:
        self.source, self.block, self.weight, self.manifold = source, block, weight, manifold

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        settings = recipe.train
        if not settings.repa:
            return None
        return cls(settings.repa, settings.repa_block, settings.repa_weight, settings.repa_manifold)

    def setup(self, run: "TrainingContext") -> None:
        if self.block is None:
            self.block = BLOCK if run.net.middle_block is None else run.net.middle_block
        self.taps = (f"blocks.{self.block}",)
        width = self.width(run)
        if self.source == CACHED:
            if run.device.type == "meta":  # the memory of the network alone is predicted
                return
            if not run.features:
                raise InputError(
                    f'train.repa is "{CACHED}", but the data hold no features; encode the images with the features of '
                    "an encoder, or give its folder"
                )
            dimension = int(run.features["width"])
        else:
            self.encoder = DinoV2.load(self.source, run.device)
            dimension = self.encoder.dimension
        # From the seed of the run, so that all processes begin with the same projector.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.settings.seed)
            aligned = projector(width, INNER, dimension)
        run.trained["repa"] = aligned.requires_grad_(True).to(run.device)

    def width(self, run: "TrainingContext") -> int:
        """Return the width of the tokens that are aligned, D.

        Raises:
            InputError: the network has no such block, or the output of its blocks is no sequence of image tokens.
        """
        net, trace = run.net, Trace(self.taps)
        name, count = net.config["name"], math.prod(net.grid)
        blocks = net.repeated if net.middle_block is not None else blocks_of(net, "train.repa")
        assert self.block is not None
        if self.block >= len(blocks):
            raise InputError(
                f"train.repa_block {self.block}: {name} has the blocks 0 to {len(blocks) - 1}; give another"
            )
        with torch.no_grad():
            net(*net.example(1), trace=trace)
        tokens = trace.taps[self.taps[0]]
        if net.middle_block is not None:
            return grid_of(net, tokens).shape[3]
        if tokens.ndim != 3 or tokens.shape[1] < count:
            raise InputError(
                f"train.repa needs blocks with one token for each patch, which {name} does not have; omit it"
            )
        return tokens.shape[2]

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        net, tokens = run.net, trace.taps[self.taps[0]]
        features = self.features(run, forward)
        if net.middle_block is None:
            count = math.prod(net.grid)
            if tokens.shape[1] < count:
                raise InputError(
                    "train.repa aligns all tokens, and train.route lets some bypass this block; omit one of them"
                )
            projected = run.trained["repa"](tokens[:, net.extras : net.extras + count]).float()
            features = resized(features, net.grid)
        else:
            grid = run.trained["repa"](grid_of(net, tokens)).float()  # (B, h, w, E)
            projected = resized(grid.movedim(3, 1), features.shape[2:])
            features = features.flatten(2).mT
        distance = (1 - F.cosine_similarity(projected, features, dim=-1)).mean(1)
        if self.manifold:
            distance = distance + self.manifold * manifold_distance(projected, features)
        return {"repa": self.weight * distance}

    def features(self, run: "TrainingContext", forward: Regression) -> Tensor:
        """The features (B, E, s, s) of the clean images, float32: those of the cache, or computed."""
        if self.encoder is None:
            assert run.batch is not None
            return run.batch.extra[FEATURES].to(run.device).float()
        return self.encoder.maps(run.pipe.values.displayed(run.pipe.decode(forward.x0)))


def grid_of(net: Backbone, x: Tensor) -> Tensor:
    """The output of a block of a U-shaped network as a grid (B, h, w, D)."""
    return x.movedim(1, 3) if net.channels_first else x


def resized(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Resize maps (B, E, h, w) to a grid, and return its positions as tokens (B, N, E)."""
    return F.interpolate(maps, tuple(grid), mode="bilinear", antialias=True).flatten(2).mT


def manifold_distance(projected: Tensor, features: Tensor) -> Tensor:
    """The squared difference of the similarities between images, in the projected tokens and in the features (B,).

    The similarity of two images is the cosine of their tokens (B, N, E) at each position. Its mean square is over the
    positions and over the images of the batch.
    """
    similarities = [
        torch.einsum("ine,jne->nij", unit, unit) for unit in (F.normalize(x, dim=-1) for x in (projected, features))
    ]
    return (similarities[0] - similarities[1]).square().mean((0, 2))
