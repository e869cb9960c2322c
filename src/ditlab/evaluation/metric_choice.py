"""Select the metrics that a feature network and a reference allow to compute."""

import torch

from ditlab.core.errors import InputError
from ditlab.data import Dataset
from ditlab.evaluation.features import Extracted, Features
from ditlab.evaluation.metrics import Metric
from ditlab.evaluation.references import Reference
from ditlab.evaluation.seen import seen_channels


def blank(features: Features, images: Dataset) -> Extracted:
    """The features of one black image."""
    return features(torch.zeros(1, seen_channels(images), *images.size, dtype=torch.uint8))


def available_statistics(features: Features, images: Dataset, example: Extracted | None = None) -> dict[str, bool]:
    """Field of `Statistics` -> whether a feature network provides it for images like these.

    Args:
        features: the feature network.
        images: the images.
        example: features of one image (default: of a black image).
    """
    example = example or blank(features, images)
    return {
        "kept": True,
        "spatial": example.spatial is not None,
        "scores": example.probabilities is not None,
        "accuracy": features.classes is not None and features.classes == images.classes,
        "prompts": False,  # images of prompts are read, not compared by features
        "clips": features.clips,
        "motion": features.measures_motion,
    }


def choose(
    requested: dict[str, Metric], images: Dataset, features: Features, reference: Reference, *, strict: bool
) -> tuple[dict[str, Metric], list[str]]:
    """Select the metrics that can be computed, with notes on those that need more than the reference holds.

    Args:
        requested: the metrics by name.
        images: the images to evaluate.
        features: the feature network.
        reference: the reference.
        strict: whether a metric that cannot be computed is an error.

    Raises:
        InputError: `strict` is set and a metric cannot be computed, or the reference has other features.
    """
    example, expected = blank(features, images), reference.statistics
    for actual, gaussian in ((example.features, expected.features), (example.spatial, expected.spatial)):
        if actual is not None and gaussian is not None and actual.shape[1] != len(gaussian.mean):
            raise InputError(
                f"the reference has {len(gaussian.mean)} features where {features.name} has {actual.shape[1]}; "
                "make one with these features"
            )
    available = available_statistics(features, images, example)
    chosen, notes = {}, []
    for name, metric in requested.items():
        missing = [need for need in metric.needs if not available[need]]
        missing_in_reference = [need for need in metric.of_reference if getattr(expected, need) is None]
        if not missing and not missing_in_reference:
            chosen[name] = metric
        elif strict:
            origin = f"the features {features.name} do not provide" if missing else "the reference does not hold"
            raise InputError(f"{name} needs {', '.join(missing or missing_in_reference)}, which {origin}; omit it")
        elif not missing:
            notes.append(f"{name} is not computed: the reference does not hold {', '.join(missing_in_reference)}")
    return chosen, notes
