"""The figures of a study: as PNG files for documents, and as SVG in the page, where the ink is that of its text."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.report.plotting import plotting
from ditlab.study.claims import MINUS, Entry, Line, fit, signed
from ditlab.study.recipe import AXES, LOG, METRICS, Plot, matching
from ditlab.study.run import Findings

INK = "#1b1c1d"  # becomes the colour of the page's text
COLOURS = ("#2a78d6", "#d9722e", "#2e9e6b", "#8a63d2", "#d64550", "#1a9ba8", "#b8860b", "#c2569b")
STYLES = ("-", "--", ":", "-.")  # when the colours have been used up
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
NAMED = 16  # points that can bear their names
LARGE = 10_000  # from here on an axis counts in k and M


@dataclass(frozen=True)
class Figure:
    """One that was drawn."""

    name: str
    title: str
    svg: str
    line: Line | None = None
    fitted: str = ""  # the line in words


def draw_all(findings: Findings, folder: Path) -> list[Figure]:
    """Every figure of a study.

    Args:
        findings: what it shows.
        folder: where the PNG files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pyplot = plotting()
    figures = []
    style: dict[str, Any] = {
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    style |= {"svg.fonttype": "none", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(style):
        for drawn, figure in drawings(findings, pyplot):
            figure.savefig(folder / f"{drawn.name}.png", dpi=120, facecolor="white", metadata={"Software": None})
            figures.append(replace(drawn, svg=as_svg(figure, drawn.name, pyplot)))
            pyplot.close(figure)
    return figures


def drawings(findings: Findings, pyplot: Any) -> Iterator[tuple[Figure, Any]]:
    """Each that has something to show, without its SVG, and matplotlib's figure of it."""
    shown, drawn = [entry for entry in findings.entries if entry.values], dict[str, int]()
    for plot in findings.study.plots:
        points = [entry for entry in shown if entry.mean(plot.x) is not None and entry.mean(plot.y) is not None]
        if points:
            figure, place = pyplot.subplots(figsize=(6, 4), layout="constrained")
            line = scatter(plot, points, place)
            name = f"{plot.y}-over-{plot.x}".replace(" ", "-").replace(".", "-")
            drawn[name] = drawn.get(name, 0) + 1
            name += f"-{drawn[name]}" if drawn[name] > 1 else ""
            title = f"{label(plot.y, 1)} over {label(plot.x, 1)}"
            yield Figure(name, title, "", line, in_words(line, plot) if line else ""), figure
    if findings.curves:
        figure, place = pyplot.subplots(figsize=(6, 4), layout="constrained")
        curves(findings.curves, place)
        yield Figure("training", "loss of training, mean over the seeds", ""), figure


def scatter(plot: Plot, entries: Sequence[Entry], place: Any) -> Line | None:
    """Means with their errors, joined or named, and the fitted line."""
    scale = unit(plot.x, entries)
    groups = [(pattern, matching(pattern, [entry.name for entry in entries])) for pattern in plot.lines]
    for number, (pattern, names) in enumerate(groups or [("", [entry.name for entry in entries])]):
        some = [entry for entry in entries if entry.name in names]
        if groups and plot.x not in METRICS:  # a result need not rise along a line
            some.sort(key=lambda entry: position(entry, plot.x))
        x, y = ([e.mean(axis) or 0.0 for e in some] for axis in (plot.x, plot.y))
        place.errorbar(
            [value * scale for value in x], y,
            xerr=[(e.error(plot.x) or 0.0) * scale for e in some], yerr=[e.error(plot.y) or 0.0 for e in some],
            color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)], markersize=5, capsize=3,
            linestyle="-" if groups else "none", label=pattern.strip(", *") or None,
        )  # fmt: skip
    if groups:
        place.legend(frameon=False, labelcolor=INK)
    elif len(entries) <= NAMED:
        heights = [position(entry, plot.y) for entry in entries]
        near = 0.06 * (max(heights) - min(heights))
        for entry, height in zip(entries, heights, strict=True):
            covered = any(0 < other - height < near for other in heights)  # by a point just above: go below
            at = (position(entry, plot.x) * scale, height)
            beside = (5, -11 if covered else 4)
            place.annotate(entry.name, at, xytext=beside, textcoords="offset points", fontsize=8, color=INK)
    if plot.x.startswith(LOG):
        place.set_xscale("log")
        plain_ticks(place.xaxis)
    if plot.y.startswith(LOG):
        place.set_yscale("log")
        plain_ticks(place.yaxis)
    line = fit(entries, plot.x, plot.y) if plot.fit else None
    if line is not None:
        draw_line(line, plot, entries, scale, place)
    finish(place, label(plot.x, scale), label(plot.y, 1))
    return line


def draw_line(line: Line, plot: Plot, entries: Sequence[Entry], scale: float, place: Any) -> None:
    """The fitted line from the first point to the last, with its r's above."""
    ends = [position(entry, plot.x) for entry in entries]
    logarithmic = plot.x.startswith(LOG)
    x = np.geomspace(min(ends), max(ends), 50) if logarithmic else np.linspace(min(ends), max(ends), 50)
    y = line.intercept + line.slope * (np.log10(x) if logarithmic else x)
    seen = y > 0 if plot.y.startswith(LOG) else y == y
    place.plot(x[seen] * scale, y[seen], color=INK, alpha=0.6, linewidth=1, linestyle="--")
    place.set_title(r_in_words(line, logarithmic), fontsize=10, loc="left", color=INK)


def in_words(line: Line, plot: Plot) -> str:
    """The line as an equation, and its r's."""
    logarithmic = plot.x.startswith(LOG)
    x = f"log10({label(plot.x, 1)})" if logarithmic else label(plot.x, 1)
    slope, sign = f"{abs(line.slope):.4g}", MINUS if line.slope < 0 else "+"
    first = signed(line.intercept, ".4g")
    return f"{label(plot.y, 1)} = {first} {sign} {slope} x {x}; {r_in_words(line, logarithmic)}"


def r_in_words(line: Line, logarithmic: bool) -> str:
    """Pearson's r on this axis, and on the other kind of it."""
    kinds = ("logarithm", "value") if logarithmic else ("value", "logarithm")
    both = [(kind, r) for kind, r in zip(kinds, (line.r, line.r_other), strict=True) if r is not None]
    return ", ".join(f"r = {signed(r, '.2f')} with its {kind}" for kind, r in both)


def plain_ticks(axis: Any) -> None:
    """1, 2, 5, 10 as numbers rather than powers, and more of them within a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    fine = (1, 1.5, 2, 3, 5) if high > 3 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else fine))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def curves(found: dict[str, list[tuple[float, float]]], place: Any) -> None:
    """Loss over images, a line for each part; the first values would hide the rest."""
    for number, (name, points) in enumerate(found.items()):
        x, y = zip(*points, strict=True)
        style = STYLES[number // len(COLOURS) % len(STYLES)]
        place.plot(x, y, color=COLOURS[number % len(COLOURS)], linestyle=style, linewidth=1.3, label=name)
    place.set_yscale("log")
    plain_ticks(place.yaxis)
    place.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=1 + (len(found) > 6))
    finish(place, "pictures seen", "loss")


def finish(place: Any, x: str, y: str) -> None:
    """Names of the axes, large numbers in k and M, and a grid that stays behind."""
    from matplotlib.ticker import EngFormatter

    for axis in (place.xaxis, place.yaxis):
        if axis.get_data_interval()[1] >= LARGE:
            axis.set_major_formatter(EngFormatter())
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.grid(color=INK, alpha=0.15, linewidth=0.6)
    place.set_axisbelow(True)


def position(entry: Entry, axis: str) -> float:
    """Where the entry is drawn."""
    return entry.mean(axis) or 0.0


def unit(axis: str, entries: Sequence[Entry]) -> float:
    """What values are multiplied by to be told in MMACs, where GMACs would be fractions."""
    most = max(position(entry, axis) for entry in entries)
    return 1e3 if axis.endswith("gmacs") and 0 < most < 1 else 1.0


def label(axis: str, scale: float) -> str:
    """What an axis is called."""
    bare = axis.removeprefix(LOG)
    name = AXES.get(bare, bare.replace("_", " "))
    return name.replace("GMACs", "MMACs") if scale != 1 else name


def as_svg(figure: Any, name: str, pyplot: Any) -> str:
    """The figure as a part of a page: nothing before <svg>, and no colour where the page has its own."""
    file = io.StringIO()
    with pyplot.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
