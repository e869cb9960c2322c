"""What is known about a clip before its frames are decoded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClipHeader:
    """The header of a video, an animation or a folder of frames."""

    size: tuple[int, int]
    """(height, width) as displayed."""
    gray: bool
    duration: float
    """In seconds; of a folder of frames, their number."""
    rate: float
    """Frames per second: of a video on average, of an animation that of its shortest frame, of a folder of frames 1."""
    variable: bool = False
    """Whether the frames are not evenly spaced in time."""
    timed: bool = True
    """Whether the file says when its frames are shown; a folder of frames and an image do not."""
    still: bool = False
    """Whether it is an image, whose duration means nothing."""
