"""Inception score (Salimans et al. 2016): high if single images are classified with certainty, and classes vary."""

import numpy as np
from numpy.typing import ArrayLike

from ditlab.core.errors import InputError
from ditlab.evaluation.statistics import Statistics, entropy_terms


def inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean KL divergence of each image's class distribution from the mean distribution, over one split.

    Args:
        probabilities: (N, K), rows that sum to 1.

    Raises:
        InputError: the shape is another one, or rows do not sum to 1.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise InputError(f"probabilities of shape {p.shape}; give (N, K) with rows that sum to 1")
    return float(np.exp(entropy_terms(p).sum() / len(p) - entropy_terms(p.mean(0)).sum()))


def mean_inception_score(generated: Statistics, reference: Statistics) -> dict[str, float]:
    """Mean inception score over consecutive splits of 5,000 images."""
    assert generated.scores is not None
    return {"inception_score": float(generated.scores.mean())}
