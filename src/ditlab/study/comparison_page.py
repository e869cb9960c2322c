"""A comparison of two sides as lines for the terminal, and as a self-contained HTML page."""

import html
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image

from ditlab.core.io import replace_text
from ditlab.data import Dataset
from ditlab.evaluation.results import SHOWN
from ditlab.report.html import page
from ditlab.report.sheets import contact_sheet, thumbnails
from ditlab.study.claims import FAILS, HOLDS, PERCENT, signed
from ditlab.study.comparison import A, B, Contest, Difference
from ditlab.study.report import CLASSES, STYLE, Row, html_table, inline

LEVEL = {
    "folder of runs": "over the training seeds",
    "model": "over sets of samples, which does not include the variation between trainings",
    "images": "over parts of the images, which does not include the variation between trainings",
}


def lines(contest: Contest) -> Iterator[str]:
    """The verdicts for the terminal."""
    yield f"{A}: {contest.a}"
    yield f"{B}: {contest.b}"
    for difference in contest.differences:
        yield f"{difference.result} {means(difference)}: {difference.verdict}"
        yield f"  {difference.comparison}"
    yield f"± is the standard error {LEVEL[contest.kind]}"
    yield from contest.notes


def means(difference: Difference) -> str:
    """The means of both sides."""
    return f"{signed(fmean(difference.a.values()))} against {signed(fmean(difference.b.values()))}"


def publish(contest: Contest, file: Path) -> None:
    """Write the comparison as one HTML file that needs no other file."""
    replace_text(file, page(f"{contest.a} against {contest.b}", "\n".join(body(contest)), STYLE))


def body(contest: Contest) -> Iterator[str]:
    """The body of the page, in parts."""
    first, pairs = contest.differences[0], list(contest.differences[0].a)
    yield f"<h1>{html.escape(first.verdict)}</h1>"
    yield f"<p>{A} is {html.escape(contest.a)}.<br>{B} is {html.escape(contest.b)}.</p>"
    yield from map(card, contest.differences)
    yield (
        f"<p class='small'>One side is better if the {PERCENT} confidence interval of the difference (Student's t, "
        f"{len(pairs)} pairs) does not contain 0; ± is the standard error {LEVEL[contest.kind]}. "
        f"{' '.join(f'{html.escape(note)}.' for note in contest.notes)}</p>"
    )
    yield "<h2>Pairs</h2>" + html_table(table(contest))
    yield "<h2>Images</h2><div class='grids'>"
    for name, images in zip((A, B), contest.images, strict=True):
        yield f"<figure><figcaption>{name}</figcaption>{inline(sheet(images), name)}</figure>"
    settings = "\n".join(f"{key}: {value}" for key, value in contest.protocol.items())
    yield f"</div><h2>Protocol</h2><pre style='white-space: pre-wrap'>{html.escape(settings)}</pre>"


def card(difference: Difference) -> str:
    """A result with its means, its difference and the verdict."""
    kind = CLASSES[HOLDS if difference.comparison.verdict in (HOLDS, FAILS) else difference.comparison.verdict]
    return (
        f"<section class='claim {kind}'><h3>{html.escape(difference.result)}: {means(difference)}</h3>"
        f"<p class='verdict'>{html.escape(difference.verdict)}</p><p>{html.escape(str(difference.comparison))}</p>"
        "</section>"
    )


def table(contest: Contest) -> list[Row]:
    """A heading, and the results of both sides in each pair."""
    heading = ("", *(f"{difference.result}, {side}" for difference in contest.differences for side in (A, B)))
    rows = [
        (pair, *(f"{side[pair]:.3f}" for difference in contest.differences for side in (difference.a, difference.b)))
        for pair in contest.differences[0].a
    ]
    return [heading, *rows]


def sheet(images: Dataset) -> Image.Image:
    """The first images in rows of ten."""
    shown = thumbnails(images.values.displayed(images.fetch(torch.arange(min(SHOWN, len(images)))).x))
    return contact_sheet([shown[i : i + 10] for i in range(0, len(shown), 10)])
