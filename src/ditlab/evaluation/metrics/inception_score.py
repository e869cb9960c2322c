"""Inception Score (Salimans et al. 2016): are the images clear, and of many classes?"""

import numpy as np
from numpy.typing import ArrayLike

from ditlab.core.errors import InputError
from ditlab.evaluation.statistics import Statistics, entropy_terms


def inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean divergence of each image's class distribution from the mean one, over one split.

    Args:
        probabilities: (N, K), rows summing to 1.

    Raises:
        InputError: another shape, or rows that do not sum to 1.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise InputError(f"probabilities of shape {p.shape}; give (N, K) with rows that sum to 1")
    return float(np.exp(entropy_terms(p).sum() / len(p) - entropy_terms(p.mean(0)).sum()))


def mean_inception_score(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Mean over consecutive splits of 5,000."""
    assert generated.scores is not None
    return {"inception_score": float(generated.scores.mean())}
