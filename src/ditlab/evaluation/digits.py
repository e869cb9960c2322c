"""Score samples of handwritten digits with a small classifier that has 64 features.

Frechet distances in these features are comparable only with each other, and are therefore named `fd` and never FID.
They depend on the number of images, so the real-vs-real FD is measured with the same number of training digits.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation.features.digits import digit_classifier
from ditlab.evaluation.metrics import frechet_distance

REAL_SUBSETS = 10  # random subsets whose distances are averaged; single distances vary by about 10 %


@dataclass(frozen=True)
class Score:
    """The scores of samples of a built-in data set."""

    accuracy: float  # share of samples that are classified as the class that they were conditioned on
    fd: float  # Frechet distance between the samples and held-out real images
    fd_floor: float  # real-vs-real FD: the same distance for equally many training images, mean of ten subsets
    classifier_accuracy: float  # accuracy of the classifier on held-out real images


@torch.no_grad()
def score_digits(samples: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 1, 8, 8) uint8 that were conditioned on the digits `labels` (N,).

    Raises:
        InputError: the images are not 8x8 and gray, or N is not between 65 and the number of training digits.
    """
    train, held_out = digits(), held_out_digits()
    if samples.shape[1:] != (1, 8, 8):
        raise InputError(f"images of {tuple(samples.shape[1:])}; give digits (1, 8, 8)")
    if not 65 <= len(samples) <= len(train):
        raise InputError(
            f"{counted(len(samples), 'sample')}; give 65 (to determine 64 features) to {len(train)} (all real ones)"
        )
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
