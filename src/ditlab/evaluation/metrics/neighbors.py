"""Metrics from nearest neighbors: precision and recall (Kynkaanniemi et al. 2019), and copies of training images.

Distances are computed in float64, tile by tile: ties stay ties and memory does not grow with the sets.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.evaluation.metrics.frechet import check_features
from ditlab.evaluation.statistics import Kept, Statistics, as_features

TILE = 2048  # rows of each set whose distances are in memory at a time


def precision_recall(reference: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Share of generated features on the reference's manifold, and of reference features on the generated one.

    The manifold of a set is the union of balls around its members, each with its k-th nearest neighbor on its surface.

    Args:
        reference, generated: (N, D) and (M, D), more than k rows each; features in a file are read tile by tile.
        k: the neighbor on the surface of each ball.

    Raises:
        InputError: other shapes, too few rows, or values that are not finite.
    """
    real, generated_rows = as_features(reference), as_features(generated)
    check_features(real, generated_rows)
    if k < 1 or min(len(real), len(generated_rows)) <= k:
        raise InputError(f"{len(real)} and {len(generated_rows)} features with k {k}; give more than k of each")
    radii_a, radii_b = radii(real, k), radii(generated_rows, k)
    precise, recalled = torch.zeros(len(generated_rows), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for i, a in tiles(real):
        for j, b in tiles(generated_rows):
            distances = squared_distances(a, b)
            precise[j : j + TILE] |= (distances <= radii_a[i : i + TILE, None]).any(0)
            recalled[i : i + TILE] |= (distances <= radii_b[j : j + TILE]).any(1)
    return precise.double().mean().item(), recalled.double().mean().item()


def precision_and_recall(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """With k = 3, as published."""
    assert generated.kept is not None
    assert reference.kept is not None
    precision, recall = precision_recall(reference.kept, generated.kept)
    return {"precision": precision, "recall": recall}


def tiles(features: Kept) -> Iterator[tuple[int, Tensor]]:
    """Features (N, D) in tiles (n, D) of float64, each with the number of its first row."""
    for start in range(0, len(features), TILE):
        yield start, torch.from_numpy(np.require(features[start : start + TILE], np.float64, "W"))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, D), (M, D) float64 -> (N, M)."""
    square = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1)[:, None])
    return square.clamp_(min=0)


def radii(features: Kept, k: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest neighbor; the row itself does not count."""
    return torch.cat([neighbors_of(tile, features, k + 1).squares[:, k] for _, tile in tiles(features)])


class Near(NamedTuple):
    """The k features nearest to each of Q queries so far, nearest first; ties are ordered by number."""

    squares: Tensor  # (Q, k) squared distances, float64; infinite where fewer were seen
    places: Tensor  # (Q, k) numbers of the features, int64


def no_neighbors(count: int, k: int) -> Near:
    """The state before any feature was compared."""
    return Near(torch.full((count, k), torch.inf, dtype=torch.float64), torch.full((count, k), -1))


def nearest(distances: Tensor, numbers: Tensor, k: int) -> Near:
    """The k nearest of features with increasing numbers (M,), from squared distances (Q, M), which are changed."""
    minima = []
    for _ in range(min(k, len(numbers))):  # for a small k much faster than sorting
        minima.append(distances.min(dim=1))  # the first of equal ones
        distances.scatter_(1, minima[-1].indices[:, None], torch.inf)
    squares, columns = (torch.stack(parts, 1) for parts in zip(*minima, strict=True))
    return Near(squares, numbers[columns])


def merged(a: Near, b: Near) -> Near:
    """The nearest features of two results over different features; k is that of the first."""
    squares, places = (torch.cat(pair, 1) for pair in zip(a, b, strict=True))
    order = places.argsort(dim=1)
    order = order.gather(1, squares.gather(1, order).argsort(dim=1, stable=True))[:, : a.squares.shape[1]]
    return Near(squares.gather(1, order), places.gather(1, order))


def neighbors_of(queries: Tensor, features: Kept, k: int) -> Near:
    """The k features nearest to each query (Q, D) float64."""
    near = no_neighbors(len(queries), k)
    for start, tile in tiles(features):
        distances = squared_distances(queries, tile)
        near = merged(near, nearest(distances, torch.arange(start, start + len(tile)), k))
    return near


def neighbor_ratio(samples: Tensor, held_out: Tensor) -> tuple[float, float]:
    """How much closer samples lie to the training set than unseen real images do (Meehan et al. 2020).

    Args:
        samples, held_out: (N,) and (M,) distances to the nearest training image.

    Returns:
        The ratio of their medians, and the chance that a sample is closer than an unseen image: about 1 and 0.5
        without copies, towards 0 and 1 with copies of training images.
    """
    samples, sorted_held = samples.contiguous(), held_out.sort().values
    above = len(held_out) - torch.searchsorted(sorted_held, samples, right=True)
    equal = torch.searchsorted(sorted_held, samples, right=True) - torch.searchsorted(sorted_held, samples)
    closer = (above + equal / 2).double().mean().item() / len(held_out)
    return (samples.median() / held_out.median()).item(), closer
