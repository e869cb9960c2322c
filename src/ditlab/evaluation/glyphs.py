"""Score samples of rendered letters with a small classifier that has 64 features.

Images of any size are resized to 32x32 pixels. The classifier is trained once from a fixed seed and stored in the
user's cache. As for digits, distances are named `fd` and never FID, and a real-vs-real FD is computed.
"""

from statistics import fmean

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.builtin.glyphs import Glyphs
from ditlab.evaluation.digits import REAL_SUBSETS, Score
from ditlab.evaluation.features.glyphs import SIDE, glyph_classifier
from ditlab.evaluation.features.small import SmallClassifier
from ditlab.evaluation.metrics import frechet_distance

HELD_OUT = 2600  # letters to which samples are compared


@torch.no_grad()
def score_glyphs(images: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 3, H, W) uint8 that were conditioned on the letters `labels` (N,), 0 to 25.

    Raises:
        InputError: N is 64 or less, which does not determine the covariance of 64 features.
    """
    if len(images) <= 64:
        raise InputError(f"{counted(len(images), 'sample')}; give more than 64 for a Frechet distance in 64 features")
    net = glyph_classifier()
    held_out = _embed(net, Glyphs(SIDE, HELD_OUT, held_out=True))
    truth = Glyphs(SIDE, HELD_OUT, held_out=True).labels
    real = _embed(net, Glyphs(SIDE, REAL_SUBSETS * len(images), seed=1))
    features = torch.cat([net.embed(part) for part in torch.split(images, 256)])
    real_distances = [frechet_distance(part.numpy(), held_out.numpy()) for part in torch.split(real, len(images))]
    return Score(
        accuracy=(net.head(features).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(features.numpy(), held_out.numpy()),
        fd_floor=fmean(real_distances),
        classifier_accuracy=(net.head(held_out).argmax(1) == truth).float().mean().item(),
    )


def _embed(net: SmallClassifier, data: Glyphs) -> Tensor:
    return torch.cat([net.embed(data.fetch(part).x) for part in torch.split(torch.arange(len(data)), 256)])
