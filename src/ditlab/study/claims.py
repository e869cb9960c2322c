"""From scores to verdicts: fitted lines, differences paired by seed, correlations, and their confidence intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import atanh, log10, tanh
from statistics import StatisticsError, correlation, fmean, linear_regression

from ditlab.core.stats import standard_error
from ditlab.study.recipe import LOG, Claim, matching

CONFIDENCE = 0.95
PERCENT = f"{100 * CONFIDENCE:.0f} %"
EXACT = 1 - 1e-9  # largest |r| for which Fisher's z is computed
MINUS = "\N{MINUS SIGN}"
HOLDS, FAILS, NOT_SIGNIFICANT = "holds", "does not hold", "not significant"
ONE_SEED, NO_RESULTS = "one seed, no error", "no results"
WORST_FIRST = (FAILS, NO_RESULTS, ONE_SEED, NOT_SIGNIFICANT, HOLDS)


@dataclass(frozen=True)
class Entry:
    """A part under an evaluation, with its results."""

    name: str
    part: str
    evaluation: str
    axes: Mapping[str, float]
    """Axis -> value that is known without training."""
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Result -> training seed -> value."""

    def at(self, axis: str, seed: int) -> float | None:
        """The value on an axis with this seed; None if there is none, or no logarithm of it."""
        bare = axis.removeprefix(LOG)
        value = self.values[bare].get(seed) if bare in self.values else self.axes.get(bare)
        if value is None or not axis.startswith(LOG):
            return value
        return log10(value) if value > 0 else None

    def mean(self, axis: str) -> float | None:
        """The value on an axis, averaged over the seeds if it is a result; never its logarithm."""
        bare = axis.removeprefix(LOG)
        values = list(self.values.get(bare, {}).values())
        return fmean(values) if values else self.axes.get(bare)

    def error(self, axis: str) -> float | None:
        """Standard error of that mean; None with one seed, and for axes that are not results."""
        return standard_error(list(self.values.get(axis.removeprefix(LOG), {}).values()))


@dataclass(frozen=True)
class Line:
    """The line fitted to a result over an axis, both as means over the seeds."""

    slope: float
    intercept: float
    r: float  # Pearson's r
    r_other: float | None  # r with the logarithm of the axis if `r` is with the axis itself, and the reverse


@dataclass(frozen=True)
class Comparison:
    """A difference or correlation that is claimed to be below 0, or above 0."""

    what: str
    side: int = -1  # of 0 that is claimed: -1 or 1
    mean: float | None = None
    error: float | None = None  # standard error over the seeds
    low: float | None = None  # confidence interval
    high: float | None = None
    verdict: str = NO_RESULTS

    def __str__(self) -> str:
        if self.mean is None:
            return f"{self.what}: {NO_RESULTS}"
        if self.error is None or self.low is None or self.high is None:
            return f"{self.what} = {signed(self.mean)} ({ONE_SEED})"
        interval = f"{PERCENT}: {signed(self.low)} to {signed(self.high)}"
        return f"{self.what} = {signed(self.mean)} ± {self.error:.3f} ({interval})"


@dataclass(frozen=True)
class Verdict:
    """A claim, its comparisons, and whether it holds."""

    claim: Claim
    comparisons: list[Comparison]
    verdict: str
    note: str = ""


def signed(value: float, form: str = ".3f") -> str:
    """A number with a typographic minus sign."""
    return f"{value:{form}}".replace("-", MINUS)


def compare(what: str, values: Sequence[float], side: int = -1, *, bounded: bool = False) -> Comparison:
    """Test whether the mean of one value per seed lies on the claimed side of 0.

    The interval is Student's t interval. With three seeds it extends 4.3 standard errors to each side.

    Args:
        what: name of the difference or correlation.
        values: differences or correlations, one per seed.
        side: the claimed side of 0, -1 or 1.
        bounded: the values are correlations, so that the interval is computed with Fisher's z.
    """
    if not values:
        return Comparison(what, side)
    mean, error = fmean(values), standard_error(values)
    if error is None:
        return Comparison(what, side, mean, verdict=ONE_SEED)
    low, high = confidence_interval([fisher_z(value) for value in values] if bounded else values)
    verdict = NOT_SIGNIFICANT if low <= 0 <= high else HOLDS if low * side > 0 else FAILS
    return Comparison(what, side, mean, error, *((tanh(low), tanh(high)) if bounded else (low, high)), verdict)


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's t interval of the mean."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    mean, error = fmean(values), standard_error(values) or 0.0
    reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    return mean - reach, mean + reach


def fisher_z(r: float) -> float:
    """Fisher's z of a correlation, which is nearly normal; finite for r = ±1, too."""
    return atanh(max(-EXACT, min(EXACT, r)))


def decide(claim: Claim, entries: Sequence[Entry]) -> Verdict:
    """The verdict on a claim: the worst of its comparisons."""
    if claim.predicts:
        comparisons = [prediction(claim, entries)]
    else:
        comparisons = ordered_pairs(claim, entries) if claim.order else correlations(claim, entries)
    verdicts = [comparison.verdict for comparison in comparisons]
    worst = next(verdict for verdict in WORST_FIRST if verdict in verdicts)
    missing = [entry.name for entry in concerned(claim, entries) if not entry.values.get(claim.by)]
    return Verdict(claim, comparisons, worst, f"without {', '.join(missing)}: {NO_RESULTS}" if missing else "")


def concerned(claim: Claim, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that a claim is about."""
    patterns = claim.order or (claim.among, *filter(None, [claim.predicts]))
    names = {name for pattern in patterns for name in matching(pattern, [e.name for e in entries])}
    return [entry for entry in entries if entry.name in names]


def ordered_pairs(claim: Claim, entries: Sequence[Entry]) -> list[Comparison]:
    """Each entry of the claimed order compared with the next one, paired by seed."""
    lowest = {name: lowest_of(name, claim, entries) for name in claim.order}
    comparisons = []
    for low, high in zip(claim.order, claim.order[1:], strict=False):
        a, b = lowest[low], lowest[high]
        differences = [a[seed] - b[seed] for seed in a if seed in b]
        by = f"increase of {claim.by} from {claim.minus}" if claim.minus else claim.by
        comparisons.append(compare(f"{by} of ({low}) {MINUS} ({high})", differences))
    return comparisons


def lowest_of(pattern: str, claim: Claim, entries: Sequence[Entry]) -> dict[int, float]:
    """Seed -> the lowest value of the matching entries, for seeds that all matching entries with results have."""
    names = matching(pattern, [entry.name for entry in entries])
    all_values = [increases(entry, claim, entries) for entry in entries if entry.name in names]
    values = [by_seed for by_seed in all_values if by_seed]
    seeds = set.intersection(*(set(by_seed) for by_seed in values)) if values else set()
    return {seed: min(by_seed[seed] for by_seed in values) for seed in sorted(seeds)}


def increases(entry: Entry, claim: Claim, entries: Sequence[Entry]) -> Mapping[int, float]:
    """Seed -> the result of an entry, minus that of the same part under the evaluation `claim.minus` if it is set."""
    values = entry.values.get(claim.by, {})
    if not claim.minus:
        return values
    bases = [base for base in entries if (base.part, base.evaluation) == (entry.part, claim.minus)]
    first = bases[0].values.get(claim.by, {}) if bases else {}
    return {seed: value - first[seed] for seed, value in values.items() if seed in first}


def pareto_front(entries: Sequence[Entry], x: str, y: str, *, lower_is_better: bool) -> list[Entry]:
    """The entries for which no other one costs no more and has a better result, from the cheapest on.

    Args:
        entries: entries with a mean for both axes.
        x: the cost.
        y: the result.
        lower_is_better: whether a lower result is better.
    """
    sign = 1 if lower_is_better else -1
    by_cost = sorted(entries, key=lambda entry: (entry.mean(x) or 0.0, sign * (entry.mean(y) or 0.0)))
    front: list[Entry] = []
    for entry in by_cost:
        if not front or sign * (entry.mean(y) or 0.0) < sign * (front[-1].mean(y) or 0.0):
            front.append(entry)
    return front


def correlations(claim: Claim, entries: Sequence[Entry]) -> list[Comparison]:
    """The correlation with the claimed axis, one value per seed, or its difference from that with another axis."""
    axis, side = (claim.falls_with, -1) if claim.falls_with else (claim.rises_with, 1)
    own = r_by_seed(claim, axis, entries)
    what = f"r of {claim.by} with {axis}"
    if not claim.more_than:
        return [compare(what, list(own.values()), side, bounded=True)]
    other = r_by_seed(claim, claim.more_than, entries)
    differences = [own[seed] - other[seed] for seed in own if seed in other]
    return [compare(f"{what} {MINUS} r with {claim.more_than}", differences, side)]


def prediction(claim: Claim, entries: Sequence[Entry]) -> Comparison:
    """The measured result of an entry, compared with what a law predicts that is fitted to other entries.

    The law is a line through the logarithms of the result, fitted for each seed. The claim holds if the confidence
    interval of measured / predicted - 1 lies within the accepted share, and does not hold if it lies outside.
    """
    among = {entry.name for entry in concerned(claim, entries)} - {claim.predicts}
    fitted, (target,) = [e for e in entries if e.name in among], [e for e in entries if e.name == claim.predicts]
    gaps = []
    for seed, measured in target.values.get(claim.by, {}).items():
        pairs = [(entry.at(claim.along, seed), entry.values.get(claim.by, {}).get(seed)) for entry in fitted]
        points = [(x, log10(y)) for x, y in pairs if x is not None and y is not None and y > 0]
        x = target.at(claim.along, seed)
        if x is not None and len(points) == len(fitted) and pearson(points) is not None:
            slope, intercept = linear_regression(*zip(*points, strict=True))
            gaps.append(measured / 10 ** (intercept + slope * x) - 1)
    comparison = compare(f"measured / predicted {claim.by} of ({claim.predicts}) {MINUS} 1", gaps)
    if comparison.low is None or comparison.high is None:
        return comparison
    inside = -claim.within <= comparison.low and comparison.high <= claim.within
    outside = comparison.low > claim.within or comparison.high < -claim.within
    return replace(comparison, verdict=HOLDS if inside else FAILS if outside else NOT_SIGNIFICANT)


def r_by_seed(claim: Claim, axis: str, entries: Sequence[Entry]) -> dict[int, float]:
    """Seed -> r over the entries of the claim, for seeds that all entries with results have."""
    with_results = [entry for entry in concerned(claim, entries) if entry.values.get(claim.by)]
    seeds = sorted({seed for entry in with_results for seed in entry.values[claim.by]})
    by_seed = {}
    for seed in seeds:
        pairs = [(entry.at(axis, seed), entry.values[claim.by].get(seed)) for entry in with_results]
        points = [(x, y) for x, y in pairs if x is not None and y is not None]
        if len(points) == len(with_results) and (r := pearson(points)) is not None:
            by_seed[seed] = r
    return by_seed


def pearson(points: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's r of points (x, y); None with fewer than three points, or if all x or all y are equal."""
    try:
        return correlation(*zip(*points, strict=True)) if len(points) > 2 else None
    except StatisticsError:
        return None


def fit(entries: Sequence[Entry], x: str, y: str) -> Line | None:
    """The least-squares line through the means of a result over an axis; None with fewer than three points.

    Args:
        entries: the points.
        x: an axis; with the prefix "log " the line is fitted over its logarithm to base 10.
        y: a result, or another axis.
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
