"""Score of a model of the bundled digits, from a small classifier with 64 features.

Distances in its features are comparable only with each other, and are named `fd`, never FID. They depend on the number
of images, so the real-vs-real FD is measured with the same number of real training digits.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.metrics import frechet_distance

REAL_SUBSETS = 10  # the distance of a single random subset of real digits varies by a tenth


@dataclass(frozen=True)
class Score:
    """How good samples of digits are."""

    accuracy: float  # share of samples classified as the class that they were conditioned on
    fd: float  # Frechet distance of the samples to held-out real digits
    fd_floor: float  # real-vs-real FD: of the same number of real training digits, mean of ten subsets
    classifier_accuracy: float  # on held-out real digits


@torch.no_grad()
def score_digits(samples: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 1, 8, 8) uint8 that were conditioned on the digits `labels` (N,).

    Raises:
        InputError: images that are not 8x8 and gray, or more of them than there are training digits.
    """
    train, held_out = digits(), held_out_digits()
    if samples.shape[1:] != (1, 8, 8):
        raise InputError(f"images of {tuple(samples.shape[1:])}; digits are (1, 8, 8)")
    if not 65 <= len(samples) <= len(train):
        raise InputError(f"{len(samples)} samples; give 65 (to determine 64 features) to {len(train)} (all real ones)")
    classifier = digit_classifier()
    real = classifier.embed(held_out.images).numpy()
    training = classifier.embed(train.images).numpy()
    generator = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(len(train), generator=generator)[: len(samples)].numpy() for _ in range(REAL_SUBSETS)]
    return Score(
        accuracy=(classifier(samples).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(classifier.embed(samples).numpy(), real),
        fd_floor=fmean(frechet_distance(training[subset], real) for subset in subsets),
        classifier_accuracy=(classifier(held_out.images).argmax(1) == held_out.labels).float().mean().item(),
    )
