"""A run as one looks at it: curves and the newest preview in the terminal, or a page of its own, without a server."""

import base64
import html
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ditlab.errors import InputError

BARS = " ▁▂▃▄▅▆▇█"
CURVES = {"loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate", "images_per_second": "images/s"}
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


def page(title: str, body: str, style: str = "") -> str:
    """A whole page, for light and dark screens of any width.

    Args:
        title: as text.
        body: as HTML.
        style: more of it.
    """
    return PAGE.replace("STYLE", style).replace("TITLE", html.escape(title)).replace("BODY", body)


def curves(lines: list[dict[str, Any]]) -> Iterator[str]:
    """A figure for each number over the images."""
    for key, name in CURVES.items():
        points = [(line["images"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            yield figure(f"{name} over images", *zip(*points, strict=True))


def figure(title: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    """A curve as SVG, with its ends named."""
    width, height = 640, 160
    low, high = min(ys), max(ys)
    across, up = (xs[-1] - xs[0]) or 1, (high - low) or 1
    places = " ".join(
        f"{(x - xs[0]) / across * width:.1f},{height - (y - low) / up * height:.1f}"
        for x, y in zip(xs, ys, strict=True)
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"<svg viewBox='-4 -4 {width + 90} {height + 28}' role='img' aria-label='{html.escape(title)}'>"
        f"<polyline points='{places}'/><text x='{width + 6}' y='10'>{high:.4g}</text>"
        f"<text x='{width + 6}' y='{height}'>{low:.4g}</text><text x='0' y='{height + 20}'>{xs[0]:,.6g}</text>"
        f"<text x='{width}' y='{height + 20}' text-anchor='end'>{xs[-1]:,.6g}</text></svg></figure>"
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>TITLE</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }
th { text-align: left; padding-right: 1rem; }
figure { margin: 1.5rem 0; }
figcaption { font-size: 0.9rem; opacity: 0.8; }
svg, img { max-width: 100%; height: auto; }
svg { width: 100%; overflow: visible; }
polyline { fill: none; stroke: #2a78d6; stroke-width: 2; vector-effect: non-scaling-stroke; }
text { font-size: 12px; fill: currentColor; }
pre { overflow-x: auto; }
STYLE</style></head>
<body>
BODY
</body></html>
"""
