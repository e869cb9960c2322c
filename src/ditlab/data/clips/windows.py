"""Which frames of files become clips: one clip of each file or, if clips keep their length, as many as a file has."""

from collections.abc import Sequence
from typing import NamedTuple

from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.buckets import Native
from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.timing import Timing


class Window(NamedTuple):
    """A part of a file, of which a clip shows consecutive frames."""

    file: int
    """Number of the file in the source."""
    first: int
    """Position of the first frame of the part, at the frame rate of the clips."""
    available: int
    """Number of frames of the part."""
    frames: int
    """Number of frames of the clip; the file is too short if the part has fewer."""


def lengths(timing: Timing, native: Native) -> list[int]:
    """The numbers of frames of clips that keep their length: the longest, its half, and so on, and one frame.

    Raises:
        InputError: the longest is not divisible by what all but one frame must be divisible by.
    """
    multiple = native.frame_multiple
    if timing.frames % multiple:
        nearest = max(1, round(timing.frames / multiple)) * multiple
        raise InputError(
            f"frames is {timing.frames}, which frame_multiple = {multiple} does not divide; give {nearest}, the "
            "nearest number"
        )
    found = [timing.frames]
    while found[-1] % (2 * multiple) == 0:
        found.append(found[-1] // 2)
    return found if found[-1] == 1 else [*found, 1]


def one_window(file: int, header: ClipHeader | None, timing: Timing) -> list[Window]:
    """The whole of a file; without a header, it cannot be read."""
    return [Window(file, 0, 0 if header is None else timing.positions(header), timing.frames)]


def windows(file: int, header: ClipHeader | None, timing: Timing, native: Native) -> list[Window]:
    """The parts of a file: equal ones, of the greatest length that it has; of the longest, as many as it has."""
    if header is None:
        return [Window(file, 0, 0, timing.frames)]
    count = timing.positions(header)
    frames = next(length for length in lengths(timing, native) if length <= count)
    parts = count // frames
    bounds = [count * part // parts for part in range(parts + 1)]
    return [Window(file, bounds[part], bounds[part + 1] - bounds[part], frames) for part in range(parts)]


def notes(cut: Sequence[Window], timing: Timing, native: Native) -> list[str]:
    """What the lengths are, and which share of the frames no clip shows at a time, one line each."""
    known = [window for window in cut if window.available]
    lost = 1 - sum(window.frames for window in known) / sum(window.available for window in known)
    files = len({window.file for window in known})
    *others, last = map(str, lengths(timing, native))
    possible = f"{', '.join(others)} or {last}" if others else last
    return [
        f"{counted(len(known), 'clip')} from {counted(files, 'file')}: a file gives clips of {possible} frames, the "
        f"most that it has, and a long file several; an epoch leaves out {lost:.1%} of the frames"
    ]
