"""Kernel distance (KID, Binkowski et al. 2018), which is unbiased for any number of images."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.evaluation.metrics.frechet import check_features
from ditlab.evaluation.statistics import Kept, Statistics, as_features, result_name

SUBSETS, SIZE = 100, 1000  # as in published implementations


def kernel_distance(
    features_a: ArrayLike, features_b: ArrayLike, *, subsets: int = SUBSETS, size: int = SIZE, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, over random subsets.

    Args:
        features_a, features_b: (N, D) and (M, D).
        subsets: number of random subsets.
        size: rows of a subset, at most half of the smaller set.
        seed: seed of the random subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        InputError: the shapes do not match, values are not finite, or `subsets` or `size` is too small.
    """
    a, b = as_features(features_a), as_features(features_b)
    check_features(a, b)
    if subsets < 1 or size < 2:
        raise InputError(
            f"{counted(subsets, 'subset')} of {counted(size, 'row')}; give 1 or more subsets of 2 or more rows"
        )
    size = max(2, min(size, len(a) // 2, len(b) // 2))  # larger subsets would hardly differ from each other
    rng = np.random.default_rng(seed)

    def subset(features: Kept) -> NDArray[np.float64]:
        return features[rng.choice(len(features), size, replace=False)].astype(np.float64)

    values = [_unbiased(subset(a), subset(b)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def _unbiased(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    pairs = len(a) * (len(a) - 1)
    of_a, of_b = ((k.sum() - np.trace(k)) / pairs for k in (kernel(a, a), kernel(b, b)))
    return float(of_a + of_b - 2 * kernel(a, b).mean())


def kernel(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Kernel distance with its standard deviation: "kid" for Inception's features, "kd_NAME" for others."""
    assert generated.kept is not None
    assert reference.kept is not None
    name = result_name("kd", generated.name)
    value, deviation = kernel_distance(generated.kept, reference.kept)
    return {name: value, f"{name}_error": deviation}
