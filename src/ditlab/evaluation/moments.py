"""Running mean and covariance, in float64, whatever the batches and however many processes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditlab.core.errors import InputError

Array = NDArray[np.float64]

ROUNDING = 1e-6  # by which float32 networks give the same picture other features in another batch


@dataclass(frozen=True)
class Gaussian:
    """What the Frechet distance sees of a set of features."""

    mean: Array  # (D,)
    covariance: Array  # (D, D), unbiased
    count: int | None = None  # None where a foreign file does not say


class Moments:
    """Count, mean and scatter of vectors (N, D), merged pairwise (Chan, Golub & LeVeque 1979) to lose no digits."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))  # sum of (x - mean)(x - mean)^T

    def add(self, features: ArrayLike) -> None:
        """Take in a batch (B, D)."""
        x = np.asarray(features, np.float64)
        other = Moments(0)
        other.count, other.mean = len(x), x.mean(0)
        other.scatter = (x - other.mean).T @ (x - other.mean)
        self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Take in what another one has seen."""
        total = self.count + other.count
        if not other.count:
            return
        away = other.mean - self.mean
        self.scatter += other.scatter + np.outer(away, away) * (self.count * other.count / total)
        self.mean += away * (other.count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises:
            InputError: fewer than two vectors, or all of them equal but for rounding.
        """
        if self.count < 2:
            raise InputError(f"{self.count} pictures; give 2 or more")
        if np.trace(self.scatter) / self.count <= ROUNDING**2 * np.square(self.mean).sum():
            raise InputError(f"all {self.count} pictures have the same features; look at them")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)
