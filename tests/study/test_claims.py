from dataclasses import replace
from math import log10

import numpy as np
import pytest
from scipy import stats

from ditlab.study.claims import (
    FAILS,
    HOLDS,
    MINUS,
    NO_RESULTS,
    NOT_SIGNIFICANT,
    ONE_SEED,
    Entry,
    compare,
    decide,
    fit,
    pareto_front,
)
from ditlab.study.recipe import Claim

GMACS = [0.36, 1.41, 6.06, 1.42, 5.56, 23.01, 5.01, 19.70, 80.71, 7.39, 29.05, 118.64]  # DiT, Table 4
FID = [153.60, 100.41, 68.40, 122.74, 68.38, 43.47, 118.87, 45.64, 23.33, 106.41, 43.01, 19.47]


def entry(name, values, by="fd", **axes):
    """An entry with the values of the seeds 0, 1, ...; None stands for a seed without a value."""
    known = {seed: float(value) for seed, value in enumerate(values) if value is not None}
    return Entry(name, name.split(", ")[0], "", {key: float(value) for key, value in axes.items()}, {by: known})


def test_the_fitted_line_and_r_of_the_dit_paper():
    entries = [entry(str(i), [fid], gmacs=gmacs) for i, (gmacs, fid) in enumerate(zip(GMACS, FID, strict=True))]
    line = fit(entries, "log gmacs", "fd")
    slope, intercept = np.polyfit(np.log10(GMACS), FID, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line.r == pytest.approx(np.corrcoef(np.log10(GMACS), FID)[0, 1])
    assert line.r_other == pytest.approx(np.corrcoef(GMACS, FID)[0, 1])
    assert round(line.r, 2) == -0.93
    assert round(line.r_other, 2) == -0.73
    straight = fit(entries, "gmacs", "fd")
    assert (straight.r, straight.r_other) == pytest.approx((line.r_other, line.r))
    assert straight.slope == pytest.approx(np.polyfit(GMACS, FID, 1)[0])


def test_a_line_needs_three_different_points():
    two = [entry("a", [1], gmacs=1), entry("b", [2], gmacs=2)]
    assert fit(two, "log gmacs", "fd") is None
    assert fit([*two, entry("c", [3])], "log gmacs", "fd") is None  # without a value on the axis
    assert fit([entry(name, [value], gmacs=1) for name, value in (("a", 1), ("b", 2), ("c", 3))], "gmacs", "fd") is None
    zero = [entry(str(x), [x], guidance=x) for x in (0, 1, 2)]
    assert fit(zero, "log guidance", "fd") is None
    assert fit(zero, "guidance", "fd").r == pytest.approx(1)


def test_increases_are_compared_within_each_part():
    rows = {"a, one": [5, 6, 7], "a, two": [6, 7.1, 8], "b, one": [1, 2, 1], "b, two": [4, 5, 4.1]}
    entries = [replace(entry(name, fds), evaluation=name[3:]) for name, fds in rows.items()]
    claim = Claim(order=("a, two", "b, two"), minus="one")
    (found,) = decide(claim, entries).comparisons
    assert found.what == "increase of fd from one of (a, two) − (b, two)"  # noqa: RUF001
    assert found.mean == pytest.approx(np.mean([1 - 3, 1.1 - 3, 1 - 3.1]))
    assert found.verdict == HOLDS
    assert decide(replace(claim, minus=""), entries).comparisons[0].verdict == FAILS


def test_a_law_predicts_a_larger_model():
    def law(gmacs, seed):
        return (3 + seed / 100) * gmacs**-0.2

    rows = [entry(f"{g}", [law(g, 0), law(g, 1), law(g, 2)], by="loss", gmacs=g) for g in (1, 2, 4, 8)]
    claim = Claim(by="loss", predicts="large", along="log gmacs")
    for factor, verdict in ((1.0, HOLDS), (1.2, FAILS)):
        large = entry("large", [factor * law(16, seed) * (1 + seed / 1000) for seed in range(3)], by="loss", gmacs=16)
        found = decide(claim, [*rows, large])
        assert found.verdict == verdict
        (gap,) = found.comparisons
        assert gap.what == "measured / predicted loss of (large) − 1"  # noqa: RUF001
        assert gap.mean == pytest.approx(factor * 1.001 - 1, abs=1e-6)
    spread = entry("large", [0.8 * law(16, 0), law(16, 1), 1.2 * law(16, 2)], by="loss", gmacs=16)
    assert decide(claim, [*rows, spread]).verdict == NOT_SIGNIFICANT
    assert decide(claim, [*rows, entry("large", [], by="loss", gmacs=16)]).verdict == NO_RESULTS


def test_the_pareto_front():
    rows = {"a": (1, 9), "b": (2, 9), "c": (2, 5), "d": (3, 6), "e": (4, 1)}
    entries = [entry(name, [fd], gmacs=gmacs) for name, (gmacs, fd) in rows.items()]
    names = [each.name for each in pareto_front(entries, "gmacs", "fd", lower_is_better=True)]
    assert names == ["a", "c", "e"]
    assert [each.name for each in pareto_front(entries, "gmacs", "fd", lower_is_better=False)] == ["a"]


def test_confidence_intervals_are_students():
    differences = [-0.31, -0.22, -0.35, -0.18]
    found = compare("x", differences)
    error = np.std(differences, ddof=1) / 2
    low, high = stats.t.interval(0.95, 3, np.mean(differences), error)
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.error == pytest.approx(error)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.verdict == HOLDS
    assert str(found) == f"x = −0.265 ± {error:.3f} (95 %: −{-low:.3f} to −{-high:.3f})"  # noqa: RUF001


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-1.0, -1.1, -0.9], HOLDS),
        ([1.0, 1.1, 0.9], FAILS),
        ([-1.0, 0.2, -0.6], NOT_SIGNIFICANT),
        ([-0.30, -0.05, -0.20], NOT_SIGNIFICANT),  # 2.5 standard errors are not significant with three seeds
        ([-1.0, 1.0], NOT_SIGNIFICANT),
        ([-1.0], ONE_SEED),
        ([], NO_RESULTS),
        ([-0.5, -0.5], HOLDS),
        ([0.0, 0.0], NOT_SIGNIFICANT),
    ],
)
def test_verdicts(differences, verdict):
    assert compare("x", differences).verdict == verdict


def test_differences_are_paired_by_seed():
    """The seeds differ far more than the parts."""
    a, b = entry("a", [10.0, 20.0, 30.0]), entry("b", [10.5, 20.6, 30.4])
    claim = Claim("a is better", order=("a", "b"))
    found = decide(claim, [b, a])
    assert found.verdict == HOLDS
    assert found.comparisons[0].what == f"fd of (a) {MINUS} (b)"
    assert found.comparisons[0].mean == pytest.approx(-0.5)
    assert a.error("fd") > 5
    assert decide(Claim("b is", order=("b", "a")), [a, b]).verdict == FAILS


def test_only_seeds_of_both_entries_are_compared():
    a, b = entry("a", [1.0, None, 3.0]), entry("b", [1.5, 9.0, 3.6])
    found = decide(Claim("", order=("a", "b")), [a, b]).comparisons[0]
    assert found.mean == pytest.approx(-0.55)


def test_the_verdict_on_an_order_is_that_of_its_worst_pair():
    a, b, c = entry("a", [1.0, 1.1, 0.9]), entry("b", [2.0, 2.1, 1.9]), entry("c", [2.0, 2.2, 1.8])
    found = decide(Claim("", order=("a", "b", "c")), [a, b, c])
    assert [each.verdict for each in found.comparisons] == [HOLDS, NOT_SIGNIFICANT]
    assert found.verdict == NOT_SIGNIFICANT
    assert decide(Claim("", order=("b", "c", "a")), [a, b, c]).verdict == FAILS
    nothing = decide(Claim("", order=("a", "d")), [a, entry("d", [])])
    assert nothing.verdict == NO_RESULTS
    assert nothing.note == "without d: no results"
    assert str(nothing.comparisons[0]) == f"fd of (a) {MINUS} (d): no results"


def test_a_pattern_stands_for_the_lowest_entry_of_each_seed():
    small = [
        entry("small, 8 steps", [5.0, 3.0]),
        entry("small, 16 steps", [4.0, 4.0]),
        entry("smaller, 8 steps", [0, 0]),
    ]
    large = entry("large, 8 steps", [1.0, 1.1])
    found = decide(Claim("", order=("large, 8 steps", "small, *")), [*small, large]).comparisons[0]
    assert found.mean == pytest.approx(((1 - 4) + (1.1 - 3)) / 2)


def test_correlations_are_computed_per_seed():
    gmacs = [1, 10, 100, 1000]
    noise = [(0.1, -0.2, 0.05), (-0.1, 0.1, 0.2), (0.15, 0.0, -0.1), (0.0, 0.2, 0.1)]
    entries = [
        entry(f"p{g}", [5 - log10(g) + each for each in own], gmacs=g) for g, own in zip(gmacs, noise, strict=True)
    ]
    rs = [np.corrcoef(np.log10(gmacs), [e.values["fd"][seed] for e in entries])[0, 1] for seed in range(3)]
    found = decide(Claim("", falls_with="log gmacs"), entries)
    assert found.verdict == HOLDS
    assert found.comparisons[0].mean == pytest.approx(np.mean(rs))
    assert found.comparisons[0].error == pytest.approx(stats.sem(rs))
    z = np.arctanh(rs)
    limits = np.tanh(stats.t.interval(0.95, 2, z.mean(), stats.sem(z)))
    assert (found.comparisons[0].low, found.comparisons[0].high) == pytest.approx(tuple(limits))
    rises = decide(Claim("", rises_with="log gmacs"), entries)
    assert rises.verdict == FAILS
    assert rises.comparisons[0].mean == found.comparisons[0].mean  # the sign of r does not change
    linear = [np.corrcoef(gmacs, [e.values["fd"][seed] for e in entries])[0, 1] for seed in range(3)]
    more = decide(Claim("", falls_with="log gmacs", more_than="gmacs"), entries)
    assert more.comparisons[0].mean == pytest.approx(np.mean(rs) - np.mean(linear))
    assert more.verdict == HOLDS
    assert decide(Claim("", falls_with="gmacs", more_than="log gmacs"), entries).verdict == FAILS


def test_entries_without_results_are_named():
    entries = [entry(str(x), [x, x + 0.1, x], gmacs=x) for x in (1, 2, 3)]
    found = decide(Claim("", rises_with="gmacs"), [*entries, entry("gone", [], gmacs=9)])
    assert found.verdict == HOLDS
    assert found.note == "without gone: no results"
    torn = decide(Claim("", rises_with="gmacs"), [*entries, entry("half", [9, None, None], gmacs=9)])
    assert torn.verdict == ONE_SEED  # only one seed has all entries
    assert decide(Claim("", rises_with="gmacs", among="[12]"), entries).verdict == NO_RESULTS


def test_a_result_can_be_an_axis():
    both = [
        Entry(str(i), "", "", {}, {"recall": {0: r, 1: r}, "precision": {0: 1 - r, 1: 1 - r * 0.9}})
        for i, r in enumerate((0.2, 0.5, 0.9))
    ]
    assert decide(Claim("", by="precision", falls_with="recall"), both).verdict == HOLDS
    assert fit(both, "recall", "precision").slope == pytest.approx(-0.95)
