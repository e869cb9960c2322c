"""Write videos: WebP and GIF with Pillow, MP4 and WebM with PyAV, or a folder of frames."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditlab.core.errors import InputError
from ditlab.core.io import replacing
from ditlab.report.sheets import frame_images, save_gif

FPS = 8.0
"""Frames per second of a video that does not say its own."""
FRAMES = "frames"
"""The format that is a folder of PNG files."""
Video = NDArray[np.uint8]


class Codec(NamedTuple):
    """How PyAV writes a format."""

    container: str
    name: str
    options: Mapping[str, str]
    container_options: Mapping[str, str]
    even: bool
    """Whether height and width must be even, because colors have half the resolution."""


CODECS = {
    ".mp4": Codec("mp4", "libx264", {"crf": "18"}, {"movflags": "faststart"}, even=True),
    ".webm": Codec("webm", "libvpx-vp9", {"crf": "20", "b": "0"}, {}, even=False),
}


@cache
def has_pyav() -> bool:
    """Whether PyAV is installed."""
    return find_spec("av") is not None


def check_video(suffix: str, size: Sequence[int], fps: float) -> None:
    """Check that videos of a size can be written in a format, before they are generated.

    Args:
        suffix: ".mp4", ".webm", ".webp", ".gif", or "" for a folder of frames.
        size: (height, width).
        fps: frames per second.

    Raises:
        InputError: PyAV is not installed, the format needs even sides, or the frame rate is out of range.
    """
    if not 0.1 <= fps <= 240:
        raise InputError(f"fps is {fps:g}; give 0.1 to 240 frames per second")
    codec = CODECS.get(suffix)
    if codec is None:
        return
    if not has_pyav():
        raise InputError(f"{suffix} files need PyAV; pip install 'ditlab[video]', or save .webp or .gif")
    if codec.even and any(side % 2 for side in size):
        given, nearest = ("x".join(map(str, sides)) for sides in (size, [max(2, side - side % 2) for side in size]))
        raise InputError(
            f"frames of {given} as {suffix} (H.264 needs even sides); give {nearest}, or save .webm, .webp or .gif"
        )


def save_video(video: Video, path: Path, fps: float = FPS) -> None:
    """Write a video (T, H, W, C) of 1, 3 or 4 channels to a file, or its frames to a folder.

    The format follows the suffix; a name without one of the suffixes in `WRITERS` is that of a folder.

    WebP and PNG files are exact. GIF has 256 colors a frame and times in units of 10 ms. MP4 (H.264) and WebM (VP9)
    change the colors slightly. Equal frames in a row may be one longer frame in the file.

    Raises:
        InputError: see `check_video`.
    """
    suffix = path.suffix.lower() if path.suffix.lower() in WRITERS else ""
    check_video(suffix, video.shape[1:3], fps)
    WRITERS[suffix](video, path, fps)


def _save_frames(video: Video, path: Path, fps: float) -> None:
    with replacing(path) as draft:
        draft.mkdir()
        for i, frame in enumerate(frame_images(video)):
            frame.save(draft / f"{i:04d}.png", format="PNG")


def _save_webp(video: Video, path: Path, fps: float) -> None:
    first, *others = (frame.convert("RGB") if frame.mode == "L" else frame for frame in frame_images(video))
    starts = [round(1000 * i / fps) for i in range(len(video) + 1)]  # whole milliseconds, without drift
    durations = np.diff(starts).tolist()
    with replacing(path) as draft:
        first.save(
            draft, format="WEBP", save_all=True, append_images=others, duration=durations, loop=0, lossless=True,
            exact=True,
        )  # fmt: skip


def _save_gif(video: Video, path: Path, fps: float) -> None:
    save_gif(frame_images(video), path, fps)


def _encode(video: Video, path: Path, fps: float) -> None:
    """Write a video with PyAV into a file, because MP4 is rewritten with its index in front (faststart)."""
    import av

    codec = CODECS[path.suffix.lower()]
    with (
        replacing(path) as draft,
        av.open(str(draft), mode="w", format=codec.container, options=dict(codec.container_options)) as container,
    ):
        stream: Any = container.add_stream(
            codec.name, rate=Fraction(fps).limit_denominator(1001), options=dict(codec.options)
        )
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frame_images(video):
            container.mux(stream.encode(av.VideoFrame.from_image(image.convert("RGB"))))
        container.mux(stream.encode(None))


WRITERS: dict[str, Callable[[Video, Path, float], None]] = {
    ".webp": _save_webp,
    ".gif": _save_gif,
    ".mp4": _encode,
    ".webm": _encode,
    "": _save_frames,
}
"""Suffix -> what writes a video; an empty one is a folder of frames."""
