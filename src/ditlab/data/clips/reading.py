"""Read the frames of a clip at given times: with Pillow from animations and images, with PyAV from videos.

The frame at a time is the one that is shown then, whatever the number of frames in the file says: writers of animations
merge equal frames, and cameras have variable frame rates.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.stamps import INSTEAD, READERS, durations
from ditlab.data.clips.video import SPREAD, video_frames, video_header
from ditlab.data.decode import Raster, is_gray, open_image
from ditlab.data.scan import displayed_size
from ditlab.data.sources.base import ClipFile

START = 16  # bytes that show the format


def read_clip_header(file: ClipFile) -> ClipHeader:
    """Read the header of a clip.

    Raises:
        ValueError, OSError: the file cannot be read, or holds no frames.
    """
    if isinstance(file, list):
        if not file:
            raise ValueError("a folder without frames")
        image = _eight_bits(open_image(file[0]))
        with image:
            return ClipHeader(displayed_size(image), is_gray(image), float(len(file)), 1.0, timed=False)
    content = animation(file)
    if content is None:
        return video_header(file)
    lengths = durations(content)
    shortest = min(lengths)
    uneven = any(abs(length - round(length / shortest) * shortest) > SPREAD * shortest for length in lengths)
    with Image.open(io.BytesIO(content)) as image:
        size, gray = displayed_size(image), is_gray(image) and not image.has_transparency_data
    still = lengths == [INSTEAD]
    return ClipHeader(size, gray, sum(lengths) / 1000, 1000 / shortest, uneven, timed=not still, still=still)


def clip_frames(file: ClipFile, header: ClipHeader, times: Sequence[float]) -> Iterator[Image.Image]:
    """The frames that are shown at rising times, in seconds; each is valid until the next one is asked for.

    Raises:
        ValueError, OSError: the clip is damaged, or ends before the last time.
    """
    if isinstance(file, list):
        for time in times:
            with _eight_bits(open_image(file[int(time)])) as image:
                yield image
    elif (content := animation(file)) is not None:
        yield from _animation_frames(content, times)
    else:
        yield from video_frames(file, header, times)


def animation(file: Path | BinaryIO) -> bytes | None:
    """The content of a GIF, WebP, PNG or JPEG file; None for other files."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return animation(opened)
    start = file.read(START)
    is_animation = start.startswith(tuple(READERS)) and (start[:4] != b"RIFF" or start[8:12] == b"WEBP")  # not AVI
    file.seek(0)
    return file.read() if is_animation else None


def _animation_frames(content: bytes, times: Sequence[float]) -> Iterator[Image.Image]:
    ends = [*accumulate(durations(content))]
    with Image.open(io.BytesIO(content)) as image:
        before = int(getattr(image, "default_image", False))  # an APNG may begin with an image beside the animation
        for time in times:
            frame = bisect_right(ends, 1000 * time)
            if frame == len(ends):
                raise ValueError(f"ends at {ends[-1] / 1000:.3g} s")
            image.seek(frame + before)
            yield image


def _eight_bits(image: Image.Image | Raster) -> Image.Image:
    """An image of a folder of frames.

    Raises:
        ValueError: it has channels or numbers that clips cannot have.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"a frame of type {image.dtype} with {image.shape[-1]} channels; give gray or RGB images")
    return image
