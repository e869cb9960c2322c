"""What nearest neighbours tell: precision and recall (Kynkaanniemi et al. 2019), and copies of training pictures.

Distances are float64, block by block, so that ties are ties and memory does not grow with the sets.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ditlab.errors import InputError
from ditlab.evaluation.metrics.frechet import check_features
from ditlab.evaluation.statistics import Statistics

BLOCK = 2048  # rows whose distances are held at a time


def precision_recall(reference: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Share of generated features on the reference's manifold, and of reference features on the generated one.

    A set's manifold is the union of balls around its members, each reaching to its k-th nearest neighbour.

    Args:
        reference, generated: (N, D) and (M, D), more than k rows each.
        k: neighbour that the balls reach to.

    Raises:
        InputError: other shapes, too few rows, or values that are not finite.
    """
    real, made = np.asarray(reference), np.asarray(generated)
    check_features(real, made)
    if k < 1 or min(len(real), len(made)) <= k:
        raise InputError(f"{len(real)} and {len(made)} features with k {k}; give more than k of each")
    a, b = (torch.from_numpy(each if each.flags.writeable else each.copy()) for each in (real, made))
    radii_a, radii_b = radii(a, k), radii(b, k)
    precise, recalled = torch.zeros(len(b), dtype=torch.bool), torch.zeros(len(a), dtype=torch.bool)
    for i in range(0, len(a), BLOCK):
        for j in range(0, len(b), BLOCK):
            distances = squared_distances(a[i : i + BLOCK], b[j : j + BLOCK])
            precise[j : j + BLOCK] |= (distances <= radii_a[i : i + BLOCK, None]).any(0)
            recalled[i : i + BLOCK] |= (distances <= radii_b[j : j + BLOCK]).any(1)
    return precise.double().mean().item(), recalled.double().mean().item()


def precision_and_recall(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """With k = 3, as published."""
    assert generated.kept is not None
    assert reference.kept is not None
    precision, recall = precision_recall(reference.kept, generated.kept)
    return {"precision": precision, "recall": recall}


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) -> (N, M) float64."""
    a, b = a.double(), b.double()
    square = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1)[:, None])
    return square.clamp_(min=0)


def radii(features: Tensor, k: int) -> Tensor:
    """Squared distance (N,) of each to its k-th nearest neighbour; the nearest of all, itself, does not count."""
    return torch.cat([distances[:, k] for distances, _ in _nearest(features, features, k + 1)])


def nearest_neighbours(queries: Tensor, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances (Q, k) to the k nearest of the features, nearest first, and their numbers."""
    distances, places = (torch.cat(parts) for parts in zip(*_nearest(queries, features, k), strict=True))
    return distances.sqrt(), places


def _nearest(queries: Tensor, features: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
    found = []
    for part in torch.split(queries, BLOCK):
        near = torch.empty(len(part), 0, dtype=torch.float64)
        places = torch.empty(len(part), 0, dtype=torch.long)
        for start in range(0, len(features), BLOCK):
            block = squared_distances(part, features[start : start + BLOCK])
            numbers = torch.arange(start, start + block.shape[1]).expand(len(part), -1)
            near, order = torch.cat([near, block], 1).sort(1)
            near, order = near[:, :k], order[:, :k]
            places = torch.cat([places, numbers], 1).gather(1, order)
        found.append((near, places))
    return found


def neighbour_ratio(samples: Tensor, held_out: Tensor) -> tuple[float, float]:
    """How much closer samples lie to the training set than unseen real pictures do (Meehan et al. 2020).

    Args:
        samples, held_out: (N,) and (M,) distances to the nearest training picture.

    Returns:
        The ratio of their medians, and the chance that a sample is closer than an unseen picture: about 1 and 0.5
        where nothing is copied, towards 0 and 1 where training pictures are.
    """
    samples, sorted_held = samples.contiguous(), held_out.sort().values
    above = len(held_out) - torch.searchsorted(sorted_held, samples, right=True)
    equal = torch.searchsorted(sorted_held, samples, right=True) - torch.searchsorted(sorted_held, samples)
    closer = (above + equal / 2).double().mean().item() / len(held_out)
    return (samples.median() / held_out.median()).item(), closer
