"""The report of a training run: curves and the newest preview, in the terminal or as an HTML page without a server."""

import base64
import html
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ditlab.core.errors import InputError, nothing_at
from ditlab.core.formats import interpreting, read_json_lines, read_object
from ditlab.core.io import in_use, replace_text
from ditlab.core.progress import outlook
from ditlab.core.units import counted, duration
from ditlab.core.weights import CONFIG, checkpoints
from ditlab.report.html import CURVES, curves, figure, page

BARS = " ▁▂▃▄▅▆▇█"
REPORT = "report.html"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics of a run; incomplete and damaged lines are ignored.

    Raises:
        InputError: the folder is not a training run.
    """
    file = run / "metrics.jsonl"
    if not file.exists():
        require_run(run)
        return []  # it has just started
    return [line for line in read_json_lines(file) if _is_metrics(line)]


def _is_metrics(line: dict[str, Any]) -> bool:
    """Whether a line holds the images seen, and nothing but numbers."""
    by_time = line.get("loss_by_time") or []
    if not isinstance(by_time, list):
        return False
    values = [*by_time, *(value for key, value in line.items() if key != "loss_by_time")]
    return isinstance(line.get("images"), int) and all(isinstance(value, int | float | None) for value in values)


def require_run(run: Path) -> None:
    """Check that a folder is a training run.

    Raises:
        InputError: it is not, or does not exist; the message names the nearest existing path.
    """
    if not run.exists():
        raise nothing_at(run, "run", "give the folder of a run")
    if not (run / "recipe.toml").exists():
        raise InputError(f"{run} is not a training run: there is no recipe.toml; give the folder of a run")


State = Literal["running", "stopped", "finished", "unknown"]


class Length(Protocol):
    """The length of a run: the settings of its recipe's [train]."""

    @property
    def images(self) -> int:
        """Images to see at most."""

    @property
    def minutes(self) -> float:
        """Training time at most; 0 is no limit."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, and whether a process trains it."""

    state: State
    """unknown: the run is not complete, and its file system has no locks, which show whether a process trains it."""
    images: int
    """Images seen, according to the last line of metrics, or to the newest checkpoint if that is later."""
    total: int
    """Images to see."""
    seconds_left: float | None
    """Estimated; None unless the run is running."""
    age: float | None
    """Seconds since the last line of metrics; None before the first line."""

    def __str__(self) -> str:
        seen = f"{self.images:,} of {self.total:,} images"
        if self.state == "running":
            return f"running, {seen}" + (f", about {duration(self.seconds_left)} left" if self.seconds_left else "")
        if self.state == "finished":
            return f"finished, {seen}"
        if self.state == "stopped":
            return f"stopped at {seen}"
        age = "no metrics yet" if self.age is None else f"last line of metrics {duration(self.age)} ago"
        return f"{seen}, {age} (locks, which show whether a process trains the run, do not work here)"


def progress(run: Path, length: Length, lines: Sequence[dict[str, Any]] | None = None) -> Progress:
    """The progress of a run. The process that trains it holds a lock on its folder, which ends with the process.

    Args:
        run: the run folder.
        length: length of the run, in images or time.
        lines: its lines of metrics (default: read them).
    """
    working = in_use(run)  # before the metrics, so that a run that ends in between does not seem to be stopped
    lines = read_metrics(run) if lines is None else lines
    last: dict[str, Any] = lines[-1] if lines else {}
    saved = max((int(folder.name) for folder in checkpoints(run)), default=0)
    seen, rate = max(last.get("images", 0), saved), last.get("images_per_second") or math.nan
    # The last line of metrics is written before the last checkpoint, without which the run is not finished.
    finished = saved >= length.images or (
        length.minutes > 0 and saved > 0 and trained_seconds(run) >= 60 * length.minutes
    )
    idle: State = "finished" if finished else "stopped" if working is False else "unknown"
    file = run / "metrics.jsonl"
    age = max(0.0, time.time() - file.stat().st_mtime) if lines else None
    total, left, seconds = length.images, None, math.inf
    if length.minutes:
        since = age if working and age else 0.0
        seconds = max(0.0, 60 * length.minutes - last.get("seconds", 0.0) - since)
    if math.isfinite(rate):
        total, left = outlook(seen, length.images, rate, seconds)
    if finished and length.minutes:
        total = seen
    return Progress("running" if working else idle, seen, total, left if working else None, age)


def trained_seconds(run: Path) -> float:
    """Training time of a run up to its newest checkpoint, or up to a given checkpoint; there must be one.

    Raises:
        InputError: the checkpoint is damaged.
    """
    newest = [run, *checkpoints(run)][-1]
    with interpreting(newest / CONFIG, f"remove {newest} to train it again from the checkpoint before it"):
        return float(read_object(newest / CONFIG)["train_seconds"])


def previews(run: Path) -> list[Path]:
    """The preview files of a run, newest last."""
    return sorted((run / "previews").glob("[0-9]*.png"))


def view(run: Path, length: Length) -> RenderableType:
    """Curves, remaining time and newest preview of a run, for the terminal.

    Args:
        run: the run folder.
        length: length of the run, in images or time.
    """
    state = progress(run, length)
    lines = read_metrics(run)
    if not lines:
        return Text(f"{run}: {state}; no metrics yet")
    width = max(20, shutil.get_terminal_size().columns - 40)
    table = Table.grid(padding=(0, 2))
    for key, name in CURVES.items():
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            table.add_row(name, f"{values[-1]:,.4g}", Text(sparkline(values, width)))
    losses = loss_by_time(lines)
    if losses:
        table.add_row("loss from data to noise", "", Text(sparkline(losses, len(losses), 0.0)))
    parts: list[RenderableType] = [Text(f"{run}: {state}"), table]
    if files := previews(run):
        parts += [Text(f"preview at {counted(int(files[-1].stem), 'image')}"), blocks(files[-1], width + 30)]
    return Group(*parts)


def plain(run: Path, length: Length) -> Iterator[str]:
    """The state of a run in lines of text, for files and pipes.

    Args:
        run: the run folder.
        length: length of the run, in images or time.
    """
    yield f"{run}: {progress(run, length)}"
    if lines := read_metrics(run):
        for key, name in CURVES.items():
            if lines[-1].get(key) is not None:
                yield f"{name}: {lines[-1][key]:,.4g}"
    if files := previews(run):
        yield f"preview: {files[-1]}"


def loss_by_time(lines: Sequence[dict[str, Any]]) -> list[float]:
    """The latest loss in equal intervals of time t, from data to noise; 0 for intervals without images."""
    return [loss or 0.0 for loss in (lines[-1].get("loss_by_time") or [])] if lines else []


def sparkline(values: Sequence[float], width: int, lowest: float | None = None) -> str:
    """A curve in one line of text; adjacent values are averaged if there are more than `width`."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low = min(means) if lowest is None else lowest
    span = (max(means) - low) or 1.0
    return "".join(BARS[1 + round((value - low) / span * (len(BARS) - 2))] for value in means)


def blocks(file: Path, width: int) -> Text:
    """An image as text: each character shows two pixels, one above the other."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    columns = min(width, image.width)
    rows = round(image.height * columns / image.width) // 2 * 2
    image = image.resize((columns, max(2, rows)), Image.Resampling.BOX)
    text = Text()
    for y in range(0, image.height, 2):
        for x in range(columns):
            above, below = (image.getpixel((x, y + i)) for i in range(2))
            text.append("▀", style=f"rgb{above} on rgb{below}".replace(" ", "").replace("onrgb", " on rgb"))
        text.append("\n")
    return text


def write_report(run: Path, title: str, facts: dict[str, str], samples: Path | None = None) -> Path:
    """Write a self-contained page with the curves, the loss over time and the newest preview of a run.

    Args:
        run: the run folder, in which the page is written.
        title: title of the page.
        facts: rows of a table: name -> value.
        samples: contact sheet of the trained model, which is shown first and in place of the preview.

    Returns:
        The path of the page.
    """
    lines = read_metrics(run)
    parts = [f"<h1>{html.escape(title)}</h1>", "<table>"]
    parts += [f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()]
    parts.append("</table>")
    parts += [embedded(samples, "samples of the trained model")] if samples is not None else []
    parts += curves(lines)
    losses = loss_by_time(lines)
    if losses:
        times = [(i + 0.5) / len(losses) for i in range(len(losses))]
        parts.append(figure("latest loss, from data (0) to noise (1)", times, losses))
    if samples is None and (files := previews(run)):
        parts.append(embedded(files[-1], f"preview at {counted(int(files[-1].stem), 'image')}"))
    recipe = html.escape((run / "recipe.toml").read_text(encoding="utf-8"))
    parts.append(f"<details><summary>recipe</summary><pre>{recipe}</pre></details>")
    replace_text(run / REPORT, page(title, "\n".join(parts)))
    return run / REPORT


def embedded(file: Path, caption: str) -> str:
    """A PNG file as a figure that contains its data."""
    data = base64.b64encode(file.read_bytes()).decode()
    return (
        f"<figure><img alt='samples' src='data:image/png;base64,{data}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
