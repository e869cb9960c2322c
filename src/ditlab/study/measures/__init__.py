"""Measures of a trained model itself, for studies. A new one is one file and a line in `MEASURES`.

An evaluation with a measure has no other metrics, because it compares no images with a reference.
"""

from collections.abc import Iterator, Mapping
from itertools import chain

from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.evaluation.metrics import RESULTS
from ditlab.study.measures.base import Measure
from ditlab.study.measures.loss import LOSS
from ditlab.study.measures.prompts import PROMPTS
from ditlab.study.measures.similarity import SIMILARITY
from ditlab.study.measures.spectrum import SPECTRUM

MEASURES: Registry[Measure] = Registry(
    "measure",
    {"prompts": PROMPTS, "held-out-loss": LOSS, "block-similarity": SIMILARITY, "spectrum": SPECTRUM},
)


class StudyResults(Mapping[str, str]):
    """Name of a result -> the measure or metric that computes it."""

    def __getitem__(self, result: str) -> str:
        for name, measure in MEASURES.items():
            if result in measure.results:
                return name
        return RESULTS[result]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(chain(RESULTS, *(measure.results for measure in MEASURES.values()))))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def lower_is_better(self, result: str) -> bool:
        """Whether a lower value of this result is better."""
        name = self[result]
        return MEASURES[name].results[result] == "lower" if name in MEASURES else RESULTS.lower_is_better(result)


def measure_of(settings: Evaluation) -> Measure | None:
    """The measure of an evaluation; None if it has metrics that compare images with a reference.

    Raises:
        InputError: it has a measure beside other metrics.
    """
    names = [name for name in settings.metrics if name in MEASURES]
    if names and len(settings.metrics) > 1:
        raise InputError(
            f"metrics is {', '.join(settings.metrics)}, but {names[0]} measures the model itself; "
            "give it an evaluation of its own"
        )
    return MEASURES[names[0]] if names else None
