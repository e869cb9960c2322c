"""The score of a model of the built-in letters: a small classifier gives features (64) and reads the letters.

It looks at 32x32 pixels, whatever the size of the pictures, is trained once from a fixed seed and kept in the user's
cache. As for the digits: distances in its features are named `fd`, never FID, and come with their floor.
"""

from statistics import fmean

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.evaluation.digits import FLOOR_DRAWS, Score
from ditlab.evaluation.features.glyphs import SIDE, glyph_reader
from ditlab.evaluation.features.small import Reader
from ditlab.evaluation.metrics import frechet_distance

HELD_OUT = 2600  # letters to which samples are compared


@torch.no_grad()
def score_glyphs(images: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 3, H, W) uint8 that were asked to show the letters `labels` (N,), 0 to 25.

    Raises:
        InputError: fewer samples than features: their covariance would mean nothing.
    """
    if len(images) <= 64:
        raise InputError(f"{len(images)} samples; draw more than 64 for a Frechet distance in 64 features")
    net = glyph_reader()
    held_out = _embed(net, Glyphs(SIDE, HELD_OUT, held_out=True))
    truth = Glyphs(SIDE, HELD_OUT, held_out=True).labels
    real = _embed(net, Glyphs(SIDE, FLOOR_DRAWS * len(images), seed=1))
    features = torch.cat([net.embed(part) for part in torch.split(images, 256)])
    floors = [frechet_distance(part.numpy(), held_out.numpy()) for part in torch.split(real, len(images))]
    return Score(
        accuracy=(net.head(features).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(features.numpy(), held_out.numpy()),
        fd_floor=fmean(floors),
        classifier_accuracy=(net.head(held_out).argmax(1) == truth).float().mean().item(),
    )


def _embed(net: Reader, data: Glyphs) -> Tensor:
    return torch.cat([net.embed(data.fetch(part).x) for part in torch.split(torch.arange(len(data)), 256)])
