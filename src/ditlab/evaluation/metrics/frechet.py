"""Frechet distance between Gaussians (Heusel et al. 2017, eq. 6), in float64."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditlab.core.errors import InputError
from ditlab.evaluation.moments import Gaussian, Moments
from ditlab.evaluation.statistics import Kept, Statistics, all_finite, result_name


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared Frechet distance between the Gaussians fitted to two sets of features.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with unbiased covariances.

    Args:
        features_a, features_b: (N, D) and (M, D), at least two rows each.

    Raises:
        InputError: the shapes do not match, values are not finite, or all rows of a set are equal.
    """
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    check_features(a, b)
    gaussians = []
    for features in (a, b):
        moments = Moments(features.shape[1])
        moments.add(features)
        gaussians.append(moments.gaussian())
    return gaussian_distance(*gaussians)


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance between two Gaussians.

    The trace of the matrix root is computed from the eigenvalues of a symmetric matrix, which are real.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"{len(a.mean)} features against {len(b.mean)}; make the reference with the same features")
    root = _sqrt(a.covariance)
    cross = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0)).sum()
    shift = float(np.square(a.mean - b.mean).sum())
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def frechet(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Frechet distance in the features: "fid" for Inception's, "fd_NAME" for all others."""
    return {result_name("fd", generated.name): gaussian_distance(generated.features, reference.features)}


def spatial_frechet(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Frechet distance in spatial features (sFID, Nash et al. 2021)."""
    assert generated.spatial is not None
    assert reference.spatial is not None
    return {result_name("sfd", generated.name): gaussian_distance(generated.spatial, reference.spatial)}


def check_features(a: Kept, b: Kept) -> None:
    """Check that two sets are finite features (N, D) and (M, D).

    Raises:
        InputError: they are not.
    """
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"features of shape {a.shape} and {b.shape}; give (N, D) and (M, D) with N and M at least 2")
    if not (all_finite(a) and all_finite(b)):
        raise InputError("features hold NaN or infinity; check the images they come from")


def _sqrt(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T)
