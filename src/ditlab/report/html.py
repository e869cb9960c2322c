"""Self-contained HTML pages with curves as SVG."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any


def page(title: str, body: str, style: str = "") -> str:
    """A complete HTML page that adapts to the width and the light or dark theme of the screen.

    Args:
        title: title of the page as plain text.
        body: content of the page as HTML.
        style: additional CSS rules.
    """
    parts = {"STYLE": style, "TITLE": html.escape(title), "BODY": body}
    # In one pass, because the title or the body can contain these words too.
    return re.sub("|".join(parts), lambda word: parts[word[0]], PAGE)


def curves(lines: list[dict[str, Any]]) -> Iterator[str]:
    """One figure for each metric in `CURVES`, plotted over the images seen in training."""
    for key, name in CURVES.items():
        points = [(line["images"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            yield figure(f"{name} over images", *zip(*points, strict=True))


def figure(title: str, xs: Sequence[float], ys: Sequence[float]) -> str:
    """A curve as an HTML figure with an SVG image; the ends of both axes are labeled."""
    width, height = 640, 160
    low, high = min(ys), max(ys)
    x_range, y_range = (xs[-1] - xs[0]) or 1, (high - low) or 1
    points = " ".join(
        f"{(x - xs[0]) / x_range * width:.1f},{height - (y - low) / y_range * height:.1f}"
        for x, y in zip(xs, ys, strict=True)
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"<svg viewBox='-4 -4 {width + 90} {height + 28}' role='img' aria-label='{html.escape(title)}'>"
        f"<polyline points='{points}'/><text x='{width + 6}' y='10'>{high:.4g}</text>"
        f"<text x='{width + 6}' y='{height}'>{low:.4g}</text><text x='0' y='{height + 20}'>{xs[0]:,.6g}</text>"
        f"<text x='{width}' y='{height + 20}' text-anchor='end'>{xs[-1]:,.6g}</text></svg></figure>"
    )


CURVES = {"loss": "loss", "grad_norm": "gradient norm", "lr": "learning rate", "images_per_second": "images/s"}


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
