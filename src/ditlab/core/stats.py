"""Small statistics."""

from collections.abc import Sequence
from math import sqrt
from statistics import stdev


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean; None for a single value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
