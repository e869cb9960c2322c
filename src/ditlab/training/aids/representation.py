"""REPA (Yu et al., "Representation Alignment for Generation", ICLR 2025): align tokens with features of an encoder.

The output of a block passes a projector, and its cosine similarity to the features that a frozen DINOv2 has at the same
place of the clean image is trained to be large. In shapes, B is the batch, N tokens, D the width of the network, E that
of the encoder and s its grid.
"""

import math
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.backbones.dit_blocks import projector
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.diffusion.objective import Regression
from ditlab.evaluation.features.dinov2 import DinoV2
from ditlab.training.aids.base import Aid, blocks_of

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

INNER = 2048  # width of the projector


class RepresentationAlignment(Aid):
    """Adds 1 - cosine similarity of a block's projected tokens to the features of an encoder."""

    encoder: DinoV2
    one_size = "train.repa"

    def __init__(self, source: str, block: int, weight: float) -> None:
        self.source, self.block, self.weight = source, block, weight
        self.taps = (f"blocks.{block}",)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self | None:
        settings = recipe.train
        return cls(settings.repa, settings.repa_block, settings.repa_weight) if settings.repa else None

    def setup(self, run: "TrainingContext") -> None:
        width = self.width(run)
        self.encoder = DinoV2.load(self.source, run.device)
        # From the seed of the run, so that all processes begin with the same projector.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.settings.seed)
            aligned = projector(width, INNER, self.encoder.dimension)
        run.trained["repa"] = aligned.requires_grad_(True).to(run.device)

    def width(self, run: "TrainingContext") -> int:
        """Return the width of the tokens that are aligned, D.

        Raises:
            InputError: the network has no such block, or the output of its blocks is no sequence of image tokens.
        """
        net, trace = run.net, Trace(self.taps)
        name, count = net.config["name"], math.prod(net.grid)
        blocks = blocks_of(net, "train.repa")
        if self.block >= len(blocks):
            raise InputError(
                f"train.repa_block {self.block}: {name} has the blocks 0 to {len(blocks) - 1}; give another"
            )
        with torch.no_grad():
            net(*net.example(1), trace=trace)
        tokens = trace.taps[self.taps[0]]
        if tokens.ndim != 3 or tokens.shape[1] < count:
            raise InputError(
                f"train.repa needs blocks with one token for each patch, which {name} does not have; omit it"
            )
        return tokens.shape[2]

    def losses(self, run: "TrainingContext", forward: Regression, trace: Trace) -> dict[str, Tensor]:
        net, tokens = run.net, trace.taps[self.taps[0]]
        count = math.prod(net.grid)
        if tokens.shape[1] < count:
            raise InputError(
                "train.repa aligns all tokens, and train.route lets some bypass this block; omit one of them"
            )
        tokens = tokens[:, net.extras : net.extras + count]
        images = run.pipe.values.displayed(run.pipe.decode(forward.x0))
        features = features_at(self.encoder, images, net.grid)  # (B, N, E)
        similarity = F.cosine_similarity(run.trained["repa"](tokens).float(), features, dim=-1)
        return {"repa": self.weight * (1 - similarity).mean(1)}


@torch.no_grad()
def features_at(encoder: DinoV2, images: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the features of image patches, resized to a grid: (B, N, E) float32.

    Args:
        encoder: the frozen network.
        images: uint8 images (B, 1 or 3, H, W).
        grid: number of tokens along each side.
    """
    with torch.autocast(encoder.device.type, enabled=False):
        patches = encoder.states(images)[:, 1:]  # (B, s s, E)
    side = math.isqrt(patches.shape[1])
    planes = torch.unflatten(patches.mT, 2, (side, side))
    return F.interpolate(planes, grid, mode="bilinear", antialias=True).flatten(2).mT
