"""Numbers to verdicts: fitted lines, differences taken seed by seed, and whether they are larger than their error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import atanh, log10, tanh
from statistics import StatisticsError, correlation, fmean, linear_regression

from ditlab.core.stats import standard_error
from ditlab.study.recipe import LOG, Claim, matching

CONFIDENCE = 0.95
EXACT = 1 - 1e-9
MINUS = "\N{MINUS SIGN}"
HOLDS, FAILS, WITHIN, OPEN = "holds", "does not hold", "not larger than the error", "not decided"


@dataclass(frozen=True)
class Entry:
    """A part under an evaluation, with its results."""

    name: str
    part: str
    evaluation: str
    axes: Mapping[str, float]
    """What is known of it without training."""
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Result -> seed of training -> value."""

    def at(self, axis: str, seed: int) -> float | None:
        """Its place on an axis with this seed; a result's is of that seed."""
        bare = axis.removeprefix(LOG)
        value = self.values[bare].get(seed) if bare in self.values else self.axes.get(bare)
        if value is None or not axis.startswith(LOG):
            return value
        return log10(value) if value > 0 else None

    def mean(self, axis: str) -> float | None:
        """Its place on an axis, the mean over the seeds where it has several; not in logarithms."""
        bare = axis.removeprefix(LOG)
        known = list(self.values.get(bare, {}).values())
        return fmean(known) if known else self.axes.get(bare)

    def error(self, axis: str) -> float | None:
        """Standard error of that mean; None where it is not known."""
        return standard_error(list(self.values.get(axis.removeprefix(LOG), {}).values()))


@dataclass(frozen=True)
class Line:
    """The line fitted to a result over an axis, both of them means over the seeds."""

    slope: float
    intercept: float
    r: float  # Pearson's
    r_other: float | None  # of the same points, against the logarithm of the axis where this is not, and the reverse


@dataclass(frozen=True)
class Compared:
    """A difference, or a correlation, that is claimed to be below 0, or above it."""

    what: str
    side: int = -1  # of 0 that is claimed: -1 or 1
    mean: float | None = None
    error: float | None = None  # standard error over the seeds
    low: float | None = None  # the interval of confidence
    high: float | None = None
    verdict: str = OPEN

    def __str__(self) -> str:
        if self.mean is None:
            return f"{self.what}: no results"
        if self.error is None or self.low is None or self.high is None:
            return f"{self.what} = {signed(self.mean)}; one seed, so the error is not known"
        within = f"{CONFIDENCE:.0%}: {signed(self.low)} to {signed(self.high)}"
        return f"{self.what} = {signed(self.mean)} ± {self.error:.3f} ({within})"


@dataclass(frozen=True)
class Verdict:
    """A claim and what became of it."""

    claim: Claim
    found: list[Compared]
    verdict: str
    note: str = ""


def signed(value: float, form: str = ".3f") -> str:
    """A number with a true minus."""
    return f"{value:{form}}".replace("-", MINUS)


def compare(what: str, values: Sequence[float], side: int = -1, *, bounded: bool = False) -> Compared:
    """Are these, one for each seed, on this side of 0 by more than their error, or on the other, or neither?

    The interval is Student's for so many seeds: with three of them it reaches 4.3 standard errors to each side.

    Args:
        what: is compared.
        values: differences, or correlations.
        side: -1 or 1.
        bounded: they lie between -1 and 1; the interval is taken of Fisher's z.
    """
    if not values:
        return Compared(what, side)
    mean, error = fmean(values), standard_error(values)
    if error is None:
        return Compared(what, side, mean)
    low, high = interval([fisher(value) for value in values] if bounded else values)
    verdict = WITHIN if low <= 0 <= high else HOLDS if low * side > 0 else FAILS
    return Compared(what, side, mean, error, *((tanh(low), tanh(high)) if bounded else (low, high)), verdict)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where their mean lies with the usual confidence."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    mean, error = fmean(values), standard_error(values) or 0.0
    reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    return mean - reach, mean + reach


def fisher(r: float) -> float:
    """Fisher's z of a correlation, which is nearly normal; of one that is exact, a large one."""
    return atanh(max(-EXACT, min(EXACT, r)))


def judge(claim: Claim, entries: Sequence[Entry]) -> Verdict:
    """What the results say of a claim: the worst of its comparisons."""
    found = order(claim, entries) if claim.order else correlations(claim, entries)
    verdicts = [each.verdict for each in found]
    worst = next(each for each in (FAILS, OPEN, WITHIN, HOLDS) if each in verdicts)
    missing = [entry.name for entry in concerned(claim, entries) if not entry.values.get(claim.by)]
    return Verdict(claim, found, worst, f"without {', '.join(missing)}, of which there is nothing" if missing else "")


def concerned(claim: Claim, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that a claim is about."""
    names = {name for pattern in claim.order or (claim.among,) for name in matching(pattern, [e.name for e in entries])}
    return [entry for entry in entries if entry.name in names]


def order(claim: Claim, entries: Sequence[Entry]) -> list[Compared]:
    """Each of the order against the next, seed by seed."""
    lowest = {name: lowest_of(name, claim.by, entries) for name in claim.order}
    found = []
    for low, high in zip(claim.order, claim.order[1:], strict=False):
        a, b = lowest[low], lowest[high]
        found.append(compare(f"{claim.by} of ({low}) {MINUS} ({high})", [a[seed] - b[seed] for seed in a if seed in b]))
    return found


def lowest_of(pattern: str, by: str, entries: Sequence[Entry]) -> dict[int, float]:
    """Seed -> the lowest value among the entries that match, where all that have any have one."""
    names = matching(pattern, [entry.name for entry in entries])
    values = [entry.values[by] for entry in entries if entry.name in names and entry.values.get(by)]
    seeds = set.intersection(*(set(each) for each in values)) if values else set()
    return {seed: min(each[seed] for each in values) for seed in sorted(seeds)}


def correlations(claim: Claim, entries: Sequence[Entry]) -> list[Compared]:
    """r of each seed, or how much more it is than with another axis."""
    axis, side = (claim.falls_with, -1) if claim.falls_with else (claim.rises_with, 1)
    own = r_by_seed(claim, axis, entries)
    told = f"r of {claim.by} with {axis}"
    if not claim.more_than:
        return [compare(told, list(own.values()), side, bounded=True)]
    other = r_by_seed(claim, claim.more_than, entries)
    more = [own[seed] - other[seed] for seed in own if seed in other]
    return [compare(f"{told} {MINUS} r with {claim.more_than}", more, side)]


def r_by_seed(claim: Claim, axis: str, entries: Sequence[Entry]) -> dict[int, float]:
    """Seed -> r over the entries that count, where all that have any result have one with this seed."""
    counted = [entry for entry in concerned(claim, entries) if entry.values.get(claim.by)]
    seeds = sorted({seed for entry in counted for seed in entry.values[claim.by]})
    found = {}
    for seed in seeds:
        places = [(entry.at(axis, seed), entry.values[claim.by].get(seed)) for entry in counted]
        points = [(x, y) for x, y in places if x is not None and y is not None]
        if len(points) == len(counted) and (r := pearson(points)) is not None:
            found[seed] = r
    return found


def pearson(points: Sequence[tuple[float, float]]) -> float | None:
    """r of points (x, y); None of fewer than three, or where all x or all y are equal."""
    try:
        return correlation(*zip(*points, strict=True)) if len(points) > 2 else None
    except StatisticsError:
        return None


def fit(entries: Sequence[Entry], x: str, y: str) -> Line | None:
    """The line through the means of a result over an axis; None where there are fewer than three.

    Args:
        entries: the points.
        x: an axis; with "log " the line is over its logarithm to base 10.
        y: another one, or a result.
    """
    points = [(a, b) for entry in entries if (a := entry.mean(x)) is not None and (b := entry.mean(y)) is not None]
    if any(a <= 0 for a, _ in points) and x.startswith(LOG):
        return None
    logs = [(log10(a), b) for a, b in points if a > 0]
    first, second = (logs, points) if x.startswith(LOG) else (points, logs)
    r = pearson(first)
    if r is None:
        return None
    slope, intercept = linear_regression(*zip(*first, strict=True))
    return Line(slope, intercept, r, pearson(second) if len(second) == len(first) else None)
