"""Previews: samples that a run generates from fixed seeds while it trains."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image

from ditlab.core.errors import InputError, RunError
from ditlab.inference.base import PROMPTS
from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import STRIP, contact_sheet, film_strip, side_by_side
from ditlab.training.parallel import Place

COLUMNS, ROWS = 8, 10
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

    All processes generate a part.

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
    values = values or [None, None]
    columns = COLUMNS if len(first.shape) == 3 else COLUMNS // STRIP  # a video is a strip of several frames
    conditions = [value for value in values for _ in range(columns)]
    seeds = list(range(columns)) * len(values) if titles else list(range(len(conditions)))
    part = range(place.rank, len(conditions), place.world)  # indices of the images that this process generates
    sheets, failure = [], None
    for pipe in pipes:
        try:
            generated = images_of(pipe, [conditions[i] for i in part], [seeds[i] for i in part]) if part else []
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
    if place.first and len(sheets) < len(pipes):
        raise RunError("another process could not generate its part")
    return side_by_side(sheets, ("average", "raw weights")) if place.first else None


def images_of(pipe: Pipeline, conditions: list[Any], seeds: list[int]) -> list[Image.Image]:
    """Generate an image, or the film strip of a video, for each condition."""
    output = pipe(conditions, seeds=seeds)
    images: list[Image.Image] = [film_strip(video) for video in output.videos] or output.images
    return images
