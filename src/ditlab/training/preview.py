"""Previews: samples that a run generates from fixed seeds while it trains."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import contact_sheet, side_by_side
from ditlab.training.parallel import Place

COLUMNS, ROWS = 8, 10


def preview(pipes: Sequence[Pipeline], place: Place) -> Image.Image | None:
    """Generate samples with the averaged and with the raw weights, in a row for each of up to ten classes.

    All processes generate a part.

    Args:
        pipes: the model with the averaged weights, and with the raw weights.
        place: the place of this process.

    Returns:
        The image in the first process, None in the others.
    """
    titles = pipes[0].classes[:ROWS]
    values: list[Any] = list(titles) or [None, None]
    conditions = [value for value in values for _ in range(COLUMNS)]
    seeds = list(range(COLUMNS)) * len(values) if titles else list(range(len(conditions)))
    part = range(place.rank, len(conditions), place.world)  # indices of the images that this process generates
    sheets = []
    for pipe in pipes:
        generated = pipe([conditions[i] for i in part], seeds=[seeds[i] for i in part]).images if part else []
        by_index = dict(place.collect(list(zip(part, generated, strict=True))))
        if not place.first:
            continue
        images = [by_index[i] for i in range(len(conditions))]
        rows = [images[i * COLUMNS : (i + 1) * COLUMNS] for i in range(len(values))]
        sheets.append(contact_sheet(rows, titles or None))
    return side_by_side(sheets, ("average", "raw weights")) if place.first else None
