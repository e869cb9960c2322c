"""Running mean and covariance, in float64, for any batches and any number of processes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditlab.core.errors import InputError
from ditlab.core.units import counted

Array = NDArray[np.float64]

ROUNDING = 1e-6  # relative difference of float32 features of one image between batches


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features, from which the Frechet distance is computed."""

    mean: Array  # (D,)
    covariance: Array  # (D, D), unbiased
    count: int | None = None  # number of features; None for external files without it


class Moments:
    """Count, mean and scatter of vectors (N, D), merged pairwise without cancellation (Chan, Golub & LeVeque 1979)."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))  # sum of (x - mean)(x - mean)^T

    def add(self, features: ArrayLike) -> None:
        """Add a batch (B, D)."""
        x = np.asarray(features, np.float64)
        other = Moments(0)
        other.count, other.mean = len(x), x.mean(0)
        other.scatter = (x - other.mean).T @ (x - other.mean)
        self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Add the vectors of another instance."""
        total = self.count + other.count
        if not other.count:
            return
        shift = other.mean - self.mean
        self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
        self.mean += shift * (other.count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance.

        Raises:
            InputError: there are fewer than two vectors, or they differ only by rounding errors.
        """
        if self.count < 2:
            raise InputError(f"{counted(self.count, 'image')}; give 2 or more")
        if np.trace(self.scatter) / self.count <= ROUNDING**2 * np.square(self.mean).sum():
            raise InputError(f"all {self.count} images have the same features; check the images")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)
