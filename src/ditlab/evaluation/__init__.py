"""Judging models: distances between distributions of features, the features, and the cost of a network."""

from ditlab.evaluation.cost import Cost, measure
from ditlab.evaluation.digits import Score, score_digits
from ditlab.evaluation.metrics import frechet_distance

__all__ = ["Cost", "Score", "frechet_distance", "measure", "score_digits"]
