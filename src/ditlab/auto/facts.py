"""What a data source holds, as far as the choice of a recipe depends on it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.units import none_can
from ditlab.data.base import spread
from ditlab.data.parse import parse_source
from ditlab.data.ranges import sampled
from ditlab.data.scan import Header, read_header
from ditlab.data.sources.base import Source, Unreadable, unreadable

LOOKED_AT = 2000  # images whose headers are read; the sizes of more images hardly change a median
TRIED = 20  # files among which animations are counted
ALIKE = 1.1  # images have one aspect ratio if those of nine in ten differ from the median by less than this factor


@dataclass(frozen=True)
class Facts:
    """A data source before training."""

    source: str
    images: int
    size: tuple[int, int]
    """Median height and width in pixels."""
    one_size: bool
    """Whether all images that were looked at have this size."""
    one_aspect: bool
    """Whether nine in ten images have nearly the same aspect ratio."""
    channels: int
    classes: dict[str, int]
    """Class -> images; empty if there are no classes."""
    resizable: bool
    """Whether images can be resized when they are read; built-in data sets cannot."""
    held_out: str
    """Source of the held-out images, for a data set that is divided; otherwise empty."""
    captions: bool = False
    """Whether images have captions."""


def look(text: str, settings: Preparation) -> Facts:
    """Look at a data source: list its images, and read the headers of up to 2,000.

    Args:
        text: the data source.
        settings: how it is read.

    Raises:
        InputError: it does not exist, it holds clips, or no image can be read.
    """
    spec = parse_source(text, settings)
    held_out = spec.held_out()
    if not spec.resizable:
        dataset = spec.open(settings)
        check_images(text, len(dataset.size) == 2)
        height, width = dataset.size
        counts = count_classes(dataset.classes, dataset.labels.tolist())
        held_out_text = "" if held_out is None else held_out.text
        captions = bool(dataset.captions(0))
        return Facts(
            text, len(dataset), (height, width), True, True, dataset.channels, counts, False, held_out_text, captions
        )
    source = spec.images(settings)
    indices = sampled(len(source), LOOKED_AT).tolist()
    check_images(text, settings.frames is None and not are_animations(source, indices[:TRIED]))
    with ThreadPoolExecutor() as pool:
        headers = [*spread(pool, lambda i: read_header(source, indices[i], settings.channels), len(indices))]
    readable = [header for header in headers if isinstance(header, Header)]
    sizes = [header.size for header in readable]
    if not sizes:
        raise InputError(f"{none_can(len(source), 'image')} be read: {source.name(0)} ({headers[0]}); check the files")
    aspects = sorted(height / width for height, width in sizes)
    middle = median(aspects)
    alike = sum(middle / ALIKE < aspect < middle * ALIKE for aspect in aspects)
    return Facts(
        source=text,
        images=len(source),
        size=(round(median(height for height, _ in sizes)), round(median(width for _, width in sizes))),
        one_size=len(set(sizes)) == 1,
        one_aspect=alike >= 0.9 * len(aspects),
        channels=settings.channels or (1 if settings.gray else max(header.channels for header in readable)),
        classes=count_classes(source.classes, source.labels.tolist()),
        resizable=True,
        held_out="" if held_out is None else held_out.text,
        captions="caption" in source.columns,
    )


def check_images(text: str, are_images: bool) -> None:
    """Check that a source holds images.

    Raises:
        InputError: it holds clips.
    """
    if not are_images:
        raise InputError(
            f"{text} holds clips, and only images can be trained on without a recipe; write a recipe with data.frames "
            '(the recipe "moving-digits" is an example)'
        )


def are_animations(source: Source, indices: list[int]) -> bool:
    """Whether more than half of some files are animations."""
    return sum(is_animation(source, i) for i in indices) > len(indices) / 2


def is_animation(source: Source, i: int) -> bool:
    """Whether a file has several frames that are not pages or previews, as Pillow reads it."""
    try:
        with unreadable():
            image = source.raw(i)
    except Unreadable:
        return False
    return getattr(image, "is_animated", False) and getattr(image, "format", "") not in ("TIFF", "MPO")


def count_classes(names: list[str], labels: list[int]) -> dict[str, int]:
    """Class -> images."""
    counts = Counter(labels)
    return {name: counts[i] for i, name in enumerate(names)}
