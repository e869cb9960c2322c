"""Evaluation: features, metrics, references, protocols, and the cost of a network."""

from ditlab.backbones.cost import Cost, measure
from ditlab.evaluation.digits import Score, score_digits
from ditlab.evaluation.metrics import frechet_distance, inception_score, kernel_distance, precision_recall

__all__ = [
    "Cost",
    "Score",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "measure",
    "precision_recall",
    "score_digits",
]
