"""Statistics of a set of images, from which all metrics are computed; they are gathered batch by batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ditlab.data.rows import RowFile
from ditlab.evaluation.features import Extracted
from ditlab.evaluation.moments import Gaussian, Moments

ROWS = 4096  # feature vectors that are read from a file at a time
SPLIT = 5000  # consecutive images of one inception score, as in ADM's evaluator

Kept = NDArray[Any] | RowFile
"""Feature vectors (N, D), in memory or in a file that is read in parts."""


def as_features(values: ArrayLike) -> Kept:
    """Convert features to an array; features in a file are not read."""
    return values if isinstance(values, RowFile) else np.asarray(values)


def all_finite(features: Kept) -> bool:
    """Whether no value is NaN or infinite."""
    return all(np.isfinite(features[start : start + ROWS]).all() for start in range(0, len(features), ROWS))


class Sums(Protocol):
    """Sums over images with indices from 0; sums of different images can be merged in any order."""

    def add(self, indices: Tensor, extracted: Extracted, labels: Tensor | None) -> None:
        """Add images.

        Args:
            indices: (B,) increasing indices of the images.
            extracted: features of the images.
            labels: (B,) classes that they were conditioned on; None if the feature network has other classes.
        """

    def merge(self, other: Self) -> None:
        """Add the sums of other images."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All sums as arrays, for a file."""

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The inverse of `arrays`, for empty sums."""


@dataclass
class Statistics:
    """Statistics of a set of images in the features of one network."""

    name: str  # name of the feature network
    features: Gaussian
    spatial: Gaussian | None = None
    kept: Kept | None = None  # (N, D) feature vectors
    scores: NDArray[np.float64] | None = None  # inception score of each split
    accuracy: float | None = None  # share of images that are classified as their label


NAMES = {"inception": {"fd": "fid", "sfd": "sfid", "kd": "kid"}, "i3d": {"fd": "fvd", "kd": "kvd"}}
"""Features -> distances, and their usual names in these features."""


def result_name(distance: str, features: str) -> str:
    """Name of a distance ("fd", "sfd" or "kd") in the features of one network, such as "fid" or "fd_digits"."""
    return NAMES.get(features, {}).get(distance, f"{distance}_{features}")


def canonical_name(result: str) -> str:
    """Name of a result without its features, such as "fd" for "fid" and "fd_digits"; other results keep their name."""
    for names in NAMES.values():
        for distance, name in names.items():
            if result.startswith((name, f"{distance}_")):
                return distance
    return result


class Totals:
    """Running sums for `Statistics`."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.splits: dict[int, tuple[int, NDArray[np.float64], float]] = {}  # count, sum of p, sum of p log p
        self.labeled = self.correct = 0

    def add(self, indices: Tensor, extracted: Extracted, labels: Tensor | None) -> None:
        for name, features in (("features", extracted.features), ("spatial", extracted.spatial)):
            if features is not None:
                self.moments.setdefault(name, Moments(features.shape[1])).add(features.numpy())
        if extracted.probabilities is not None:
            p = extracted.probabilities.double().numpy()
            for split in np.unique(indices.numpy() // SPLIT):
                part = p[indices.numpy() // SPLIT == split]
                self._add_split(int(split), (len(part), part.sum(0), float(entropy_terms(part).sum())))
            if labels is not None:
                self.labeled += len(labels)
                self.correct += int((extracted.probabilities.argmax(1) == labels).sum())

    def merge(self, other: Self) -> None:
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments(len(moments.mean))).merge(moments)
        for split, sums in other.splits.items():
            self._add_split(split, sums)
        self.labeled += other.labeled
        self.correct += other.correct

    def _add_split(self, split: int, sums: tuple[int, NDArray[np.float64], float]) -> None:
        count, p, terms = self.splits.get(split, (0, np.zeros(len(sums[1])), 0.0))
        self.splits[split] = (count + sums[0], p + sums[1], terms + sums[2])

    def statistics(self, name: str, kept: Kept | None = None) -> Statistics:
        """Compute the statistics from the sums.

        Args:
            name: name of the feature network.
            kept: (N, D) feature vectors, if they were kept.
        """
        spatial = self.moments.get("spatial")
        scores = [
            np.exp(terms / count - entropy_terms(p / count).sum())
            for _, (count, p, terms) in sorted(self.splits.items())
        ]
        return Statistics(
            name,
            self.moments.get("features", Moments(0)).gaussian(),
            None if spatial is None else spatial.gaussian(),
            kept,
            np.array(scores) if scores else None,
            self.correct / self.labeled if self.labeled else None,
        )

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        arrays: dict[str, NDArray[np.float64]] = {"labels": np.array([self.labeled, self.correct], np.float64)}
        for name, moments in self.moments.items():
            arrays |= {
                f"{name}.count": np.array([moments.count], np.float64),
                f"{name}.mean": moments.mean,
                f"{name}.scatter": moments.scatter,
            }
        for split, (count, p, terms) in self.splits.items():
            arrays[f"split.{split}"] = np.array([count, terms, *p])
        return arrays

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        self.labeled, self.correct = (int(value) for value in arrays["labels"])
        for key, value in arrays.items():
            name, _, what = key.partition(".")
            if name == "split":
                self.splits[int(what)] = (int(value[0]), value[2:], float(value[1]))
            elif what == "mean":
                moments = self.moments[name] = Moments(0)
                moments.count, moments.mean = int(arrays[f"{name}.count"][0]), value
                moments.scatter = arrays[f"{name}.scatter"]


def entropy_terms(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """p log p, which is 0 at p = 0."""
    return p * np.log(np.where(p > 0, p, 1))


Needs = frozenset[str]
Compute = Callable[[Statistics, Statistics], dict[str, float]]
"""Function (statistics of the generated images, statistics of the reference) -> named results."""


Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """A metric: the statistics that it needs, and the results that it returns."""

    needs: Needs
    """Fields of the `Statistics` of generated images that it reads besides `features`, such as kept or scores."""
    compute: Compute
    of_reference: Needs = frozenset()
    """Fields of the `Statistics` of the reference that it reads besides `features`."""
    results: Mapping[str, Direction] = field(default_factory=dict)
    """Name of each result that studies can compare -> whether lower or higher is better. Distances are named "fd",
    "sfd" and "kd" here, regardless of the features."""
