"""The figures of a study, as PNG files for documents and as SVG for the HTML report, where they have its text color."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ditlab.core.io import replacing
from ditlab.report.plotting import plotting
from ditlab.study.claims import MINUS, Entry, Line, fit, pareto_front, signed
from ditlab.study.recipe import AXES, LOG, METRICS, Plot, matching
from ditlab.study.run import Findings

INK = "#1b1c1d"  # replaced by the text color of the page
COLORS = ("#2a78d6", "#d9722e", "#2e9e6b", "#8a63d2", "#d64550", "#1a9ba8", "#b8860b", "#c2569b")
STYLES = ("-", "--", ":", "-.")  # for more curves than colors
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
NAMED = 16  # most points for which names are shown
BESIDE = ((5, 4, "left"), (5, -11, "left"), (-5, 4, "right"), (-5, -11, "right"))  # places of a name: x, y, alignment
WIDER = 9  # width of a figure with the names in a legend beside it, in inches
LARGE = 10_000  # axes with values from here on use k and M


@dataclass(frozen=True)
class Figure:
    """A figure of the report."""

    name: str  # of its PNG file
    title: str
    svg: str
    line: Line | None = None
    fitted: str = ""  # the fitted line as an equation, and the entries on the Pareto front


def write_figures(findings: Findings, folder: Path) -> list[Figure]:
    """Plot all figures of a study.

    Args:
        findings: the results.
        folder: folder for the PNG files.
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
        for figure, canvas in plot_all(findings, pyplot):
            with replacing(folder / f"{figure.name}.png") as draft:
                canvas.savefig(draft, dpi=120, format="png", facecolor="white", metadata={"Software": None})
            figures.append(replace(figure, svg=as_svg(canvas, figure.name, pyplot)))
            pyplot.close(canvas)
    return figures


def plot_all(findings: Findings, pyplot: Any) -> Iterator[tuple[Figure, Any]]:
    """Each figure that has points, without its SVG, and the matplotlib figure of it."""
    with_results, names = [entry for entry in findings.entries if entry.values], dict[str, int]()
    for plot in findings.study.plots:
        points = [entry for entry in with_results if entry.mean(plot.x) is not None and entry.mean(plot.y) is not None]
        if points:
            canvas, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
            line = scatter(plot, points, axes)
            name = f"{plot.y}-over-{plot.x}".replace(" ", "-").replace(".", "-")
            names[name] = names.get(name, 0) + 1
            name += f"-{names[name]}" if names[name] > 1 else ""
            title = f"{label(plot.y, 1)} over {label(plot.x, 1)}"
            parts = [equation(line, plot)] if line else []
            parts += [plot_front(plot, points, axes)] if plot.front else []
            yield Figure(name, title, "", line, ". ".join(parts)), canvas
    if findings.curves:
        canvas, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        plot_curves(findings.curves, axes)
        yield Figure("training", "training loss, mean over the seeds", ""), canvas


def scatter(plot: Plot, entries: Sequence[Entry], axes: Any) -> Line | None:
    """Means with their standard errors, connected or labeled with their names, and the fitted line."""
    scale = unit(plot.x, entries)
    groups = [(pattern, matching(pattern, [entry.name for entry in entries])) for pattern in plot.lines]
    for number, (pattern, names) in enumerate(groups):
        some = [entry for entry in entries if entry.name in names]
        if plot.x not in METRICS:  # if x is a result, the order of the recipe connects the points
            some.sort(key=lambda entry: position(entry, plot.x))
        plot_points(plot, some, scale, axes, number, linestyle="-", label=pattern.partition(", *")[0].strip(", *"))
    if groups:
        axes.legend(frameon=False, labelcolor=INK, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above the axes
    else:
        points = plot_points(plot, entries, scale, axes, linestyle="none")
    if plot.x.startswith(LOG):
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    if plot.y.startswith(LOG):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    line = fit(entries, plot.x, plot.y) if plot.fit else None
    if line is not None:
        plot_line(line, plot, entries, scale, axes)
    finish(axes, label(plot.x, scale), label(plot.y, 1))
    places = {entry.name: (position(entry, plot.x) * scale, position(entry, plot.y)) for entry in entries}
    if not groups and len(entries) <= NAMED and not name_points(places, axes):
        points.remove()
        for number, entry in enumerate(entries):
            plot_points(plot, [entry], scale, axes, number, linestyle="none", label=entry.name)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        axes.figure.set_figwidth(WIDER)
    return line


def plot_points(plot: Plot, entries: Sequence[Entry], scale: float, axes: Any, number: int = 0, **options: Any) -> Any:
    """The means of entries with their standard errors, in the color and with the mark of a number."""
    x, y = ([position(entry, axis) for entry in entries] for axis in (plot.x, plot.y))
    mark = MARKS[(number + number // len(COLORS)) % len(MARKS)]  # another one where colors repeat
    return axes.errorbar(
        [value * scale for value in x], y,
        xerr=[(e.error(plot.x) or 0.0) * scale for e in entries], yerr=[e.error(plot.y) or 0.0 for e in entries],
        color=COLORS[number % len(COLORS)], marker=mark, markersize=5, capsize=3, **options,
    )  # fmt: skip


def name_points(places: Mapping[str, tuple[float, float]], axes: Any) -> bool:
    """Write the name of each point beside it, where it covers no other name and no point.

    Args:
        places: name -> point.
        axes: the axes, to which nothing else is added later.

    Returns:
        Whether every name has a place; otherwise none is written.
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # decides the layout
    frame, radius = axes.bbox, 3
    points = [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius)
        for x, y in map(axes.transData.transform, places.values())
    ]
    texts, boxes = [], list(points)
    for name, point in places.items():
        for x, y, side in BESIDE:
            text = axes.annotate(
                name, point, xytext=(x, y), textcoords="offset points", fontsize=8, color=INK, horizontalalignment=side
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in boxes):
                texts.append(text)
                boxes.append(box)
                break
            text.remove()
        else:
            for text in texts:
                text.remove()
            return False
    return True


def plot_front(plot: Plot, entries: Sequence[Entry], axes: Any) -> str:
    """Plot the Pareto front as steps behind the points; returns the names of its entries in a sentence."""
    better = METRICS.lower_is_better(plot.y.removeprefix(LOG))
    front, scale = pareto_front(entries, plot.x, plot.y, lower_is_better=better), unit(plot.x, entries)
    x, y = ([position(entry, axis) for entry in front] for axis in (plot.x, plot.y))
    most = max(position(entry, plot.x) for entry in entries)
    steps = [value * scale for value in (*x, most)]
    axes.step(steps, [*y, y[-1]], where="post", color=INK, alpha=0.35, linewidth=3, zorder=0)
    return f"Pareto front, from the cheapest on: {'; '.join(entry.name for entry in front)}"


def plot_line(line: Line, plot: Plot, entries: Sequence[Entry], scale: float, axes: Any) -> None:
    """The fitted line from the first point to the last, with Pearson's r above the plot."""
    ends = [position(entry, plot.x) for entry in entries]
    logarithmic = plot.x.startswith(LOG)
    x = np.geomspace(min(ends), max(ends), 50) if logarithmic else np.linspace(min(ends), max(ends), 50)
    y = line.intercept + line.slope * (np.log10(x) if logarithmic else x)
    visible = y > 0 if plot.y.startswith(LOG) else y == y
    axes.plot(x[visible] * scale, y[visible], color=INK, alpha=0.6, linewidth=1, linestyle="--")
    axes.set_title(correlation_text(line, logarithmic), fontsize=10, loc="left", color=INK)


def equation(line: Line, plot: Plot) -> str:
    """The fitted line as an equation, and Pearson's r."""
    logarithmic = plot.x.startswith(LOG)
    x = f"log10({label(plot.x, 1)})" if logarithmic else label(plot.x, 1)
    slope, sign = f"{abs(line.slope):.4g}", MINUS if line.slope < 0 else "+"
    first = signed(line.intercept, ".4g")
    return f"{label(plot.y, 1)} = {first} {sign} {slope} x {x}; {correlation_text(line, logarithmic)}"


def correlation_text(line: Line, logarithmic: bool) -> str:
    """Pearson's r with the axis of the plot, and with its logarithm (or without it)."""
    names = ("the logarithm", "the value") if logarithmic else ("the value", "the logarithm")
    pairs = [(name, r) for name, r in zip(names, (line.r, line.r_other), strict=True) if r is not None]
    return ", ".join(f"r = {signed(r, '.2f')} with {name}" for name, r in pairs)


def plain_ticks(axis: Any) -> None:
    """Tick labels 1, 2, 5, 10 instead of powers of ten, and more of them if the axis spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_data_interval()
    fine = (1, 1.5, 2, 3, 5) if high > 3 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else fine))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def plot_curves(curves: dict[str, list[tuple[float, float]]], axes: Any) -> None:
    """Loss over images, one curve per part; on a log axis, because the first values are far above the others."""
    for number, (name, points) in enumerate(curves.items()):
        x, y = zip(*points, strict=True)
        style = STYLES[number // len(COLORS) % len(STYLES)]
        axes.plot(x, y, color=COLORS[number % len(COLORS)], linestyle=style, linewidth=1.3, label=name)
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=1 + (len(curves) > 6))
    finish(axes, "training images", "loss")


def finish(axes: Any, x: str, y: str) -> None:
    """Axis labels, large numbers in k and M, and grid lines below the curves."""
    from matplotlib.ticker import EngFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_data_interval()[1] >= LARGE:
            axis.set_major_formatter(EngFormatter())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)


def position(entry: Entry, axis: str) -> float:
    """Coordinate of an entry on an axis."""
    return entry.mean(axis) or 0.0


def unit(axis: str, entries: Sequence[Entry]) -> float:
    """Factor for the values of an axis: 1000 if they are shown in MMACs, because all are below 1 GMAC."""
    most = max(position(entry, axis) for entry in entries)
    return 1e3 if axis.endswith("gmacs") and 0 < most < 1 else 1.0


def label(axis: str, scale: float) -> str:
    """Label of an axis."""
    bare = axis.removeprefix(LOG)
    name = AXES.get(bare, bare.replace("_", " "))
    return name.replace("GMACs", "MMACs") if scale != 1 else name


def as_svg(figure: Any, name: str, pyplot: Any) -> str:
    """The figure as a part of a page: nothing before <svg>, and the text color of the page."""
    file = io.StringIO()
    with pyplot.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")
