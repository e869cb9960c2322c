"""A run as one looks at it: curves and the newest preview in the terminal, or a page of its own, without a server."""

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
from ditlab.report.html import CURVES, curves, figure, page

BARS = " ▁▂▃▄▅▆▇█"
REPORT = "report.html"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; a last one that is being written is left out.

    Raises:
        InputError: no run there.
    """
    file = run / "metrics.jsonl"
    if not file.exists():
        if (run / "recipe.toml").exists():  # it has just begun
            return []
        raise InputError(f"{run} is not a training run: there is no metrics.jsonl")
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def previews(run: Path) -> list[Path]:
    """The previews of a run, the newest last."""
    return sorted((run / "previews").glob("[0-9]*.png"))


def view(run: Path, images: int) -> RenderableType:
    """The run so far, for the terminal.

    Args:
        run: its folder.
        images: at which it ends.
    """
    lines = read_metrics(run)
    if not lines:
        return Text("nothing yet")
    width = max(20, shutil.get_terminal_size().columns - 40)
    table = Table.grid(padding=(0, 2))
    for key, name in CURVES.items():
        values = [line[key] for line in lines if line.get(key) is not None]
        if values:
            table.add_row(name, f"{values[-1]:,.4g}", Text(sparkline(values, width)))
    spans = lines[-1].get("loss_by_time")
    if spans:
        table.add_row("loss from data to noise", "", Text(sparkline([each or 0.0 for each in spans], len(spans), 0.0)))
    seen, rate = lines[-1]["images"], lines[-1]["images_per_second"]
    left = f"{max(0, images - seen) / max(rate, 1e-9) / 60:,.0f} minutes left" if seen < images else "done"
    shown: list[RenderableType] = [Text(f"{run}: {seen:,} of {images:,} images, {left}"), table]
    if files := previews(run):
        shown += [Text(f"preview at {int(files[-1].stem):,} images"), blocks(files[-1], width + 30)]
    return Group(*shown)


def sparkline(values: Sequence[float], width: int, lowest: float | None = None) -> str:
    """A curve in one line of text, means of neighbours where there are more values than places."""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low = min(means) if lowest is None else lowest
    span = (max(means) - low) or 1.0
    return "".join(BARS[1 + round((value - low) / span * (len(BARS) - 2))] for value in means)


def blocks(file: Path, width: int) -> Text:
    """A picture as text: each character is two pixels, one above the other."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    columns = min(width, picture.width)
    rows = round(picture.height * columns / picture.width) // 2 * 2
    picture = picture.resize((columns, max(2, rows)), Image.Resampling.BOX)
    text = Text()
    for y in range(0, picture.height, 2):
        for x in range(columns):
            above, below = (picture.getpixel((x, y + i)) for i in range(2))
            text.append("▀", style=f"rgb{above} on rgb{below}".replace(" ", "").replace("onrgb", " on rgb"))
        text.append("\n")
    return text


def write_report(run: Path, title: str, told: dict[str, str]) -> Path:
    """A page with the curves, the loss over time and the newest preview of a run; it needs nothing but itself.

    Args:
        run: the folder, into which it goes.
        title: of the page.
        told: what else to say: name -> value.
    """
    lines = read_metrics(run)
    parts = [f"<h1>{html.escape(title)}</h1>", "<table>"]
    parts += [f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in told.items()]
    parts.append("</table>")
    parts += curves(lines)
    spans = [each or 0.0 for each in (lines[-1].get("loss_by_time") or [])] if lines else []
    if spans:
        times = [(i + 0.5) / len(spans) for i in range(len(spans))]
        parts.append(figure("loss of the last line, from data (0) to noise (1)", times, spans))
    if files := previews(run):
        data = base64.b64encode(files[-1].read_bytes()).decode()
        parts.append(
            f"<figure><img alt='samples' src='data:image/png;base64,{data}'>"
            f"<figcaption>preview at {int(files[-1].stem):,} images</figcaption></figure>"
        )
    recipe = html.escape((run / "recipe.toml").read_text(encoding="utf-8"))
    parts.append(f"<details><summary>recipe</summary><pre>{recipe}</pre></details>")
    (run / REPORT).write_text(page(title, "\n".join(parts)), encoding="utf-8")
    return run / REPORT
