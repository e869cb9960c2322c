"""The report of a training run: curves and the newest preview, in the terminal or as an HTML page without a server."""

import base64
import html
import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.report.html import CURVES, curves, figure, page

BARS = " ▁▂▃▄▅▆▇█"
REPORT = "report.html"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics of a run; incomplete lines are ignored.

    Raises:
        InputError: the folder is not a training run.
    """
    file = run / "metrics.jsonl"
    if not file.exists():
        if (run / "recipe.toml").exists():  # it has just started
            return []
        raise InputError(f"{run} is not a training run: there is no metrics.jsonl; give the folder of a run")
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def previews(run: Path) -> list[Path]:
    """The preview files of a run, newest last."""
    return sorted((run / "previews").glob("[0-9]*.png"))


def view(run: Path, images: int) -> RenderableType:
    """Curves, remaining time and newest preview of a run, for the terminal.

    Args:
        run: the run folder.
        images: length of the run in images.
    """
    lines = read_metrics(run)
    if not lines:
        return Text("no metrics yet")
    width = max(20, shutil.get_terminal_size().columns - 40)
    table = Table.grid(padding=(0, 2))
    for key, name in CURVES.items():
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            table.add_row(name, f"{values[-1]:,.4g}", Text(sparkline(values, width)))
    losses = loss_by_time(lines)
    if losses:
        table.add_row("loss from data to noise", "", Text(sparkline(losses, len(losses), 0.0)))
    seen, rate = lines[-1]["images"], lines[-1]["images_per_second"]
    remaining = f"{max(0, images - seen) / max(rate, 1e-9) / 60:,.0f} minutes left" if seen < images else "done"
    parts: list[RenderableType] = [Text(f"{run}: {seen:,} of {images:,} images, {remaining}"), table]
    if files := previews(run):
        parts += [Text(f"preview at {int(files[-1].stem):,} images"), blocks(files[-1], width + 30)]
    return Group(*parts)


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


def write_report(run: Path, title: str, facts: dict[str, str]) -> Path:
    """Write a self-contained page with the curves, the loss over time and the newest preview of a run.

    Args:
        run: the run folder, in which the page is written.
        title: title of the page.
        facts: rows of a table: name -> value.

    Returns:
        The path of the page.
    """
    lines = read_metrics(run)
    parts = [f"<h1>{html.escape(title)}</h1>", "<table>"]
    parts += [f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()]
    parts.append("</table>")
    parts += curves(lines)
    losses = loss_by_time(lines)
    if losses:
        times = [(i + 0.5) / len(losses) for i in range(len(losses))]
        parts.append(figure("latest loss, from data (0) to noise (1)", times, losses))
    if files := previews(run):
        data = base64.b64encode(files[-1].read_bytes()).decode()
        parts.append(
            f"<figure><img alt='samples' src='data:image/png;base64,{data}'>"
            f"<figcaption>preview at {int(files[-1].stem):,} images</figcaption></figure>"
        )
    recipe = html.escape((run / "recipe.toml").read_text(encoding="utf-8"))
    parts.append(f"<details><summary>recipe</summary><pre>{recipe}</pre></details>")
    replace_text(run / REPORT, page(title, "\n".join(parts)))
    return run / REPORT
