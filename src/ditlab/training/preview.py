"""Previews: samples that a run generates from fixed seeds while it trains."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

from PIL import Image

from ditlab.core.errors import InputError, RunError
from ditlab.core.units import sides_of
from ditlab.inference.base import PROMPTS
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.sizes import trained_sizes
from ditlab.report.sheets import STRIP, contact_sheet, film_strip, side_by_side, stacked
from ditlab.training.parallel import Place

COLUMNS, ROWS = 8, 10
SHEETS = 3  # sizes that are shown of a model that is trained on several
log = logging.getLogger(__name__)


class Guard:
    """Catches the errors of previews, because a run of days must not end for an image that nobody may look at.

    Each type of error is reported in one line when it first occurs; the traceback is logged each time.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.reported: set[type[Exception]] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Catch the errors of the enclosed block, which makes `what`."""
        try:
            yield
        except Exception as error:
            log.info("no %s", what, exc_info=True)
            if type(error) not in self.reported:
                self.reported.add(type(error))
                kind = "" if isinstance(error, InputError | RunError) else f"{type(error).__name__}: "
                self.say(f"no {what} ({kind}{' '.join(str(error).split())}); training continues")


def preview(pipes: Sequence[Pipeline], place: Place) -> Image.Image | None:
    """Generate samples with the averaged and with the raw weights, in a row for each of up to ten classes.

    A model that is trained on several sizes has a sheet for each of the most frequent ones. All processes generate a
    part.

    Args:
        pipes: the model with the averaged weights, and with the raw weights.
        place: the place of this process.

    Returns:
        The image in the first process, None in the others.

    Raises:
        RunError: another process could not generate its part.
    """
    first = pipes[0]
    values: list[Any] = (first.config.get(PROMPTS) or first.classes)[:ROWS]
    titles = [*map(first.conditioner.title, values)]
    sizes: list[tuple[int, ...] | None] = [*trained_sizes(first)[:SHEETS]] or [None]
    if len(sizes) > 1:
        values, titles = values[: ROWS // 2], titles[: ROWS // 2]
    values = values or [None, None]
    columns = COLUMNS if len(first.shape) == 3 else COLUMNS // STRIP  # a video is a strip of several frames
    conditions = [value for value in values for _ in range(columns)]
    seeds = list(range(columns)) * len(values) if titles else list(range(len(conditions)))
    part = range(place.rank, len(conditions), place.world)  # indices of the images that this process generates
    sheets, failure = [], None
    for pipe, size in product(pipes, sizes):
        try:
            chosen = [conditions[i] for i in part]
            generated = images_of(pipe, chosen, [seeds[i] for i in part], size) if part else []
        except Exception as error:  # raised after the images are collected, for which the other processes wait
            generated, failure = [], error
        by_index = dict(place.collect(list(zip(part, generated, strict=failure is None))))
        if not place.first or len(by_index) < len(conditions):
            continue
        images = [by_index[i] for i in range(len(conditions))]
        rows = [images[i * columns : (i + 1) * columns] for i in range(len(values))]
        sheets.append(contact_sheet(rows, titles or None))
    if failure is not None:
        raise failure
    if place.first and len(sheets) < len(pipes) * len(sizes):
        raise RunError("another process could not generate its part")
    if not place.first:
        return None
    if len(sizes) == 1:
        return side_by_side(sheets, ("EMA weights", "raw weights"))
    shown = [sides_of(size or ()) for size in sizes]
    average, raw = sheets[: len(sizes)], sheets[len(sizes) :]
    both = (("EMA weights", average), ("raw weights", raw))
    return stacked([side_by_side(row, [f"{name}, {size}" for size in shown]) for name, row in both])


def images_of(
    pipe: Pipeline, conditions: list[Any], seeds: list[int], size: tuple[int, ...] | None
) -> list[Image.Image]:
    """Generate an image, or the film strip of a video, for each condition."""
    output = pipe(conditions, seeds=seeds, size=size)
    images: list[Image.Image] = [film_strip(video) for video in output.videos] or output.images
    return images
