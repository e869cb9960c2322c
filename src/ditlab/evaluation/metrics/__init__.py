"""The metrics of an evaluation. A new one is one file and a line in `METRICS`."""

from collections.abc import Iterator, Mapping

from ditlab.core.registry import Registry
from ditlab.evaluation.metrics.accuracy import accuracy
from ditlab.evaluation.metrics.frechet import frechet, frechet_distance, spatial_frechet
from ditlab.evaluation.metrics.inception_score import inception_score, mean_inception_score
from ditlab.evaluation.metrics.kernel import kernel, kernel_distance
from ditlab.evaluation.metrics.motion import motion
from ditlab.evaluation.metrics.neighbors import neighbor_ratio, precision_and_recall, precision_recall
from ditlab.evaluation.metrics.prompted import PROMPT_RESULTS, read_apart
from ditlab.evaluation.metrics.real import real_against_real
from ditlab.evaluation.statistics import Metric, Statistics, canonical_name

NEEDS = ("kept", "spatial", "scores", "accuracy", "prompts", "clips", "motion")
KEPT, SPATIAL, SCORES, ACCURACY, PROMPTS, CLIPS, IN_MOTION = (frozenset({name}) for name in NEEDS)

METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "frechet": Metric(frozenset(), frechet, results={"fd": "lower"}),
        "spatial": Metric(SPATIAL, spatial_frechet, SPATIAL, {"sfd": "lower"}),
        "inception-score": Metric(SCORES, mean_inception_score, results={"inception_score": "higher"}),
        "precision-recall": Metric(KEPT, precision_and_recall, KEPT, {"precision": "higher", "recall": "higher"}),
        "kernel": Metric(KEPT, kernel, KEPT, {"kd": "lower"}),
        "accuracy": Metric(ACCURACY, accuracy, results={"accuracy": "higher"}),
        "prompts": Metric(PROMPTS, read_apart, results=PROMPT_RESULTS),
        "real-vs-real": Metric(CLIPS, real_against_real, KEPT),
        "motion": Metric(
            IN_MOTION,
            motion,
            results={"same_digit": "higher", "speed_deviation": "lower", "acceleration_deviation": "lower"},
        ),
    },
)


class Results(Mapping[str, str]):
    """Name of a result -> name of the metric in `METRICS` that computes it, including metrics of plug-ins."""

    def __getitem__(self, result: str) -> str:
        for name, metric in METRICS.items():
            if result in metric.results:
                return name
        raise KeyError(result)

    def __iter__(self) -> Iterator[str]:
        return (result for metric in METRICS.values() for result in metric.results)

    def __len__(self) -> int:
        return sum(len(metric.results) for metric in METRICS.values())

    def lower_is_better(self, result: str) -> bool:
        """Whether a lower value of this result is better."""
        return METRICS[self[result]].results[result] == "lower"


RESULTS = Results()
"""All results of metrics. Distances have the same name in all features: "fd", "sfd", "kd"."""

__all__ = [
    "METRICS",
    "RESULTS",
    "Metric",
    "Statistics",
    "canonical_name",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "neighbor_ratio",
    "precision_recall",
]
