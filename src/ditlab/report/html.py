"""HTML pages that stand alone: curves as SVG, style inside."""

import html
from collections.abc import Iterator, Sequence
from typing import Any


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
