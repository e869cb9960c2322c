"""Metrics from nearest neighbors: precision and recall (Kynkaanniemi et al. 2019), and the memorization ratio.

Distances are computed in float64, so that equal distances stay equal, and tile by tile, so that memory is constant.
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
    """Precision: share of generated features on the reference manifold; recall: the reverse.

    The manifold of a set is the union of balls around its features, with the distance to the k-th nearest neighbor as
    radius.

    Args:
        reference, generated: (N, D) and (M, D), more than k rows each; features in a file are read tile by tile.
        k: number of the neighbor that determines the radius.

    Raises:
        InputError: the shapes do not match, there are too few rows, or values are not finite.
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
    """Precision and recall with k = 3, as published."""
    assert generated.kept is not None
    assert reference.kept is not None
    precision, recall = precision_recall(reference.kept, generated.kept)
    return {"precision": precision, "recall": recall}


def tiles(features: Kept) -> Iterator[tuple[int, Tensor]]:
    """Split features (N, D) into tiles (n, D) float64, each with the index of its first row."""
    for start in range(0, len(features), TILE):
        yield start, torch.from_numpy(np.require(features[start : start + TILE], np.float64, "W"))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (N, M) between the rows of two float64 matrices (N, D) and (M, D)."""
    square = torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1)[:, None])
    return square.clamp_(min=0)


def radii(features: Kept, k: int) -> Tensor:
    """Squared distance (N,) of each row to its k-th nearest neighbor; the row itself does not count."""
    return torch.cat([neighbors_of(tile, features, k + 1).squares[:, k] for _, tile in tiles(features)])


class Near(NamedTuple):
    """The k nearest features of each of Q queries, nearest first; equal distances are ordered by index."""

    squares: Tensor  # (Q, k) squared distances, float64; infinite if there were fewer features
    places: Tensor  # (Q, k) indices of the features, int64


def no_neighbors(count: int, k: int) -> Near:
    """The result before any feature was compared."""
    return Near(torch.full((count, k), torch.inf, dtype=torch.float64), torch.full((count, k), -1))


def nearest(distances: Tensor, numbers: Tensor, k: int) -> Near:
    """The k nearest features of each query.

    Args:
        distances: (Q, M) squared distances; changed in place.
        numbers: (M,) increasing indices of the features.
        k: number of neighbors.
    """
    minima = []
    for _ in range(min(k, len(numbers))):  # faster than sorting for a small k
        minima.append(distances.min(dim=1))  # the first one of equal distances
        distances.scatter_(1, minima[-1].indices[:, None], torch.inf)
    squares, columns = (torch.stack(parts, 1) for parts in zip(*minima, strict=True))
    return Near(squares, numbers[columns])


def merged(a: Near, b: Near) -> Near:
    """Merge two results over different features; k is that of the first result."""
    squares, places = (torch.cat(pair, 1) for pair in zip(a, b, strict=True))
    order = places.argsort(dim=1)
    order = order.gather(1, squares.gather(1, order).argsort(dim=1, stable=True))[:, : a.squares.shape[1]]
    return Near(squares.gather(1, order), places.gather(1, order))


def neighbors_of(queries: Tensor, features: Kept, k: int) -> Near:
    """The k nearest features of each query (Q, D) float64."""
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
        The ratio of their medians, and the probability that a sample is closer than an unseen image. Without copies
        of training images they are about 1 and 0.5; the more copies, the closer to 0 and 1.
    """
    samples, sorted_held = samples.contiguous(), held_out.sort().values
    above = len(held_out) - torch.searchsorted(sorted_held, samples, right=True)
    equal = torch.searchsorted(sorted_held, samples, right=True) - torch.searchsorted(sorted_held, samples)
    closer = (above + equal / 2).double().mean().item() / len(held_out)
    return (samples.median() / held_out.median()).item(), closer
