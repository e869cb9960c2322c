"""Units of memory and time, and counts and values in words."""

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 2**30


def counted(count: int, noun: str) -> str:
    """A count in words: "1 image", "2,000 images", "3 classes", "4 entries"."""
    if count == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{count:,} {plural}"


def sides_of(size: Sequence[int]) -> str:
    """A size in words, such as "32x48"."""
    return "x".join(map(str, size))


def noun_of(size: Sequence[int]) -> str:
    """What data of a size are called: "clip" for (frames, height, width), "image" for (height, width)."""
    return "clip" if len(size) == 3 else "image"


def width_first(size: Sequence[int]) -> str:
    """A size (..., height, width) as records and the HTTP API write it: WIDTHxHEIGHT, or FRAMESxWIDTHxHEIGHT."""
    *frames, height, width = size
    return sides_of([*frames, width, height])


def from_width_first(text: str) -> tuple[int, ...]:
    """Return the (height, width), or (frames, height, width), of a size that `width_first` wrote."""
    *frames, width, height = map(int, text.split("x"))
    return (*frames, height, width)


def none_can(count: int, noun: str) -> str:
    """The beginning of a sentence about a failure of all: "none of the 3 images can", "the only image cannot"."""
    return f"the only {noun} cannot" if count == 1 else f"none of the {counted(count, noun)} can"


def in_words(value: Any) -> str:
    """A setting in words, for messages: "0.1, 0.9" for a list, "power 2, clip true" for a table, or "not set"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{key} {in_words(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple) and value:
        return ", ".join(map(in_words, value))
    return "not set" if value is None or value in ("", [], (), {}) else str(value)


def describe_difference(key: str, before: object, now: object) -> str:
    """A description of a setting that differs, for messages."""
    return f"{key} is {in_words(before)} there, {in_words(now)} here"


def duration(seconds: float) -> str:
    """Format a duration in the largest unit in which it is at least 2, such as "3.5 hours"."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} s"
