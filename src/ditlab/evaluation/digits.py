"""The score of a model of the bundled digits: a small classifier gives features (64) and reads the labels.

Distances in its features are comparable with each other only, and are named `fd`, never FID. They are biased by the
number of pictures, so the floor is the distance of equally many real training digits to the same held-out ones.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation.features.digits import digit_reader
from ditlab.evaluation.metrics import frechet_distance

FLOOR_DRAWS = 10  # a single draw of real digits varies by a tenth


@dataclass(frozen=True)
class Score:
    """How good samples of digits are."""

    accuracy: float  # share of samples read as the class asked for
    fd: float  # Frechet distance of the samples to held-out real digits
    fd_floor: float  # the same for as many real training digits, mean of ten draws
    classifier_accuracy: float  # on held-out real digits


@torch.no_grad()
def score_digits(samples: Tensor, labels: Tensor) -> Score:
    """Score samples (N, 1, 8, 8) uint8 that were asked to show the digits `labels` (N,).

    Raises:
        InputError: pictures that are not 8x8 grey, or more of them than there are training digits.
    """
    train, held_out = digits(), held_out_digits()
    if samples.shape[1:] != (1, 8, 8):
        raise InputError(f"pictures of {tuple(samples.shape[1:])}; digits are (1, 8, 8)")
    if not 65 <= len(samples) <= len(train):
        raise InputError(f"{len(samples)} samples; give 65 (to determine 64 features) to {len(train)} (all real ones)")
    classifier = digit_reader()
    real = classifier.embed(held_out.images).numpy()
    known = classifier.embed(train.images).numpy()
    chance = torch.Generator().manual_seed(0)
    draws = [torch.randperm(len(train), generator=chance)[: len(samples)].numpy() for _ in range(FLOOR_DRAWS)]
    return Score(
        accuracy=(classifier(samples).argmax(1) == labels).float().mean().item(),
        fd=frechet_distance(classifier.embed(samples).numpy(), real),
        fd_floor=fmean(frechet_distance(known[draw], real) for draw in draws),
        classifier_accuracy=(classifier(held_out.images).argmax(1) == held_out.labels).float().mean().item(),
    )
