"""All that metrics may know of a set of pictures, gathered batch by batch without keeping the pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ditlab.data.rows import RowFile
from ditlab.evaluation.features import Extracted
from ditlab.evaluation.moments import Gaussian, Moments

ROWS = 4096  # features of a file that are looked at at a time
SPLIT = 5000  # consecutive pictures of one inception score, as in ADM's evaluator

Kept = NDArray[Any] | RowFile
"""Features (N, D) themselves; in a file where there may be many, so that a part of them is in memory at a time."""


def as_features(given: ArrayLike) -> Kept:
    """Features as an array, but for those in a file."""
    return given if isinstance(given, RowFile) else np.asarray(given)


def all_finite(features: Kept) -> bool:
    """Whether every value is a number."""
    return all(np.isfinite(features[start : start + ROWS]).all() for start in range(0, len(features), ROWS))


class Sums(Protocol):
    """What is gathered of pictures that are numbered from 0; that of different pictures can be merged, in any order."""

    def add(self, indices: Tensor, extracted: Extracted, labels: Tensor | None) -> None:
        """Take in pictures.

        Args:
            indices: (B,) their numbers, rising.
            extracted: of the pictures.
            labels: (B,) what they were asked to show, if the features' classes are those of the pictures.
        """

    def merge(self, other: Self) -> None:
        """Take in the sums of other pictures."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays, for a file."""

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The inverse of `arrays`, into sums of nothing."""


@dataclass
class Statistics:
    """Of one set of pictures in the features of one network."""

    name: str  # of the features
    features: Gaussian
    spatial: Gaussian | None = None
    kept: Kept | None = None  # (N, D) features themselves
    scores: NDArray[np.float64] | None = None  # inception score of each split
    read_rightly: float | None = None  # share of pictures read as their label

    @property
    def distance_name(self) -> str:
        """FID is the name of the distance in Inception's features alone."""
        return "fid" if self.name == "inception" else f"fd_{self.name}"


class Totals:
    """Running sums over pictures that are numbered from 0; sums of different pictures can be merged."""

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.splits: dict[int, tuple[int, NDArray[np.float64], float]] = {}  # count, sum of p, sum of p log p
        self.labelled = self.right = 0

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
                self.labelled += len(labels)
                self.right += int((extracted.probabilities.argmax(1) == labels).sum())

    def merge(self, other: Self) -> None:
        for name, moments in other.moments.items():
            self.moments.setdefault(name, Moments(len(moments.mean))).merge(moments)
        for split, sums in other.splits.items():
            self._add_split(split, sums)
        self.labelled += other.labelled
        self.right += other.right

    def _add_split(self, split: int, sums: tuple[int, NDArray[np.float64], float]) -> None:
        count, p, terms = self.splits.get(split, (0, np.zeros(len(sums[1])), 0.0))
        self.splits[split] = (count + sums[0], p + sums[1], terms + sums[2])

    def statistics(self, name: str, kept: Kept | None = None) -> Statistics:
        """The sums as metrics want them; `kept` are the features themselves, where they were kept."""
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
            self.right / self.labelled if self.labelled else None,
        )

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        found: dict[str, NDArray[np.float64]] = {"labels": np.array([self.labelled, self.right], np.float64)}
        for name, moments in self.moments.items():
            found |= {
                f"{name}.count": np.array([moments.count], np.float64),
                f"{name}.mean": moments.mean,
                f"{name}.scatter": moments.scatter,
            }
        for split, (count, p, terms) in self.splits.items():
            found[f"split.{split}"] = np.array([count, terms, *p])
        return found

    def load(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        self.labelled, self.right = (int(value) for value in arrays["labels"])
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
"""(of the generated pictures, of the reference) -> named results."""


@dataclass(frozen=True)
class Metric:
    """A named way to judge."""

    needs: Needs
    """What of `Statistics`, beside the features' Gaussian, must be there: of the generated, and `kept` of both."""
    compute: Compute
    of_reference: Needs = frozenset()
    """The same of the reference."""
