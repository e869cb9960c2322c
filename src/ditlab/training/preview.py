"""Images that a run generates while it trains, always from the same seeds."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import contact_sheet, side_by_side
from ditlab.training.parallel import Place

COLUMNS, ROWS = 8, 10


def preview(pipes: Sequence[Pipeline], place: Place) -> Image.Image | None:
    """Samples of fixed seeds by the average and by the raw weights: a row for each of up to ten classes.

    All processes generate a part; the first one gets the image.

    Args:
        pipes: the model with the average and with the raw weights.
        place: this process.
    """
    titles = pipes[0].classes[:ROWS]
    values: list[Any] = list(titles) or [None, None]
    conditions = [value for value in values for _ in range(COLUMNS)]
    seeds = list(range(COLUMNS)) * len(values) if titles else list(range(len(conditions)))
    mine = range(place.rank, len(conditions), place.world)
    sheets = []
    for pipe in pipes:
        generated = pipe([conditions[i] for i in mine], seeds=[seeds[i] for i in mine]).images if mine else []
        by_place = dict(place.collect(list(zip(mine, generated, strict=True))))
        if not place.first:
            continue
        images = [by_place[i] for i in range(len(conditions))]
        rows = [images[i * COLUMNS : (i + 1) * COLUMNS] for i in range(len(values))]
        sheets.append(contact_sheet(rows, titles or None))
    return side_by_side(sheets, ("average", "raw weights")) if place.first else None
