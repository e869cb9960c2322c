"""The metrics. A new one is one file and one line in `METRICS`."""

from ditlab.evaluation.metrics.frechet import frechet, frechet_distance, spatial_frechet
from ditlab.evaluation.metrics.inception_score import inception_score, mean_inception_score
from ditlab.evaluation.metrics.kernel import kernel, kernel_distance
from ditlab.evaluation.metrics.neighbours import neighbour_ratio, precision_and_recall, precision_recall
from ditlab.evaluation.statistics import Metric, Statistics

KEPT, SPATIAL, SCORES = frozenset({"kept"}), frozenset({"spatial"}), frozenset({"scores"})

METRICS: dict[str, Metric] = {
    "frechet": Metric(frozenset(), frechet),
    "spatial": Metric(SPATIAL, spatial_frechet, SPATIAL),
    "inception-score": Metric(SCORES, mean_inception_score),
    "precision-recall": Metric(KEPT, precision_and_recall, KEPT),
    "kernel": Metric(KEPT, kernel, KEPT),
    "accuracy": Metric(frozenset({"read_rightly"}), lambda generated, _: {"accuracy": generated.read_rightly or 0.0}),
}

__all__ = [
    "METRICS",
    "Metric",
    "Statistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "neighbour_ratio",
    "precision_recall",
]
