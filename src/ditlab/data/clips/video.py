"""Read videos with PyAV, which comes with FFmpeg: MP4, WebM, MOV and others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from PIL import Image

from ditlab.data.clips.header import ClipHeader

PROBED = 64  # frames whose times show whether the frame rate varies
SEEK_FROM = 1.0  # seconds from which on the frames before a clip are skipped
SPREAD, ROUNDING = 0.1, 0.0015  # deviations of time stamps of an even rate: a share of a frame, and seconds


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The container and the video stream of a file.

    Raises:
        ValueError: there is no video in it, or FFmpeg cannot read it; the message has no path.
    """
    import av

    try:
        with av.open(str(file) if isinstance(file, Path) else file) as container:
            if not container.streams.video:
                raise ValueError("no video in it" + (", only audio" if container.streams.audio else ""))
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # clips are decoded in several threads
            yield container, stream
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error


def video_header(file: Path | BinaryIO) -> ClipHeader:
    """Read the header of a video, its first frame, and the times of its first frames.

    A file that does not say how long its video is (WebM) is read to its end, without decoding.

    Raises:
        ValueError: the file cannot be read, or has no frames.
    """
    with opened(file) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("has no frames")
        container.seek(0)
        base = float(stream.time_base)
        packets = (packet for packet in container.demux(stream) if packet.pts is not None)
        known = stream.duration is not None
        spans = sorted((base * p.pts, base * (p.duration or 0)) for p in islice(packets, PROBED if known else None))
        steps = [after - before for (before, _), (after, _) in pairwise(spans)] or [spans[0][1] or 1.0]
        usual = median(steps)
        rate = float(stream.average_rate or 1 / usual)
        variable = any(abs(step - usual) > SPREAD * usual + ROUNDING for step in steps)
        end = spans[-1][0] + (spans[-1][1] or 1 / rate)
        duration = base * stream.duration if known else end - spans[0][0]
        width, height = shown(first).size
        return ClipHeader((height, width), first.format.name.startswith("gray"), float(duration), rate, variable)


def video_frames(
    file: Path | BinaryIO, header: ClipHeader, times: Sequence[float], *, seek: bool = True
) -> Iterator[Image.Image]:
    """The frames that are shown at rising times.

    Args:
        file: the video.
        header: its header.
        times: seconds from its first frame on.
        seek: skip to the last key frame before the first time.

    Raises:
        ValueError: the video is damaged, or ends before the last time.
    """
    seek = seek and times[0] > SEEK_FROM
    with opened(file) as (container, stream):
        origin = float((stream.start_time or 0) * stream.time_base)
        if seek:
            container.seek(int((times[0] + origin) / float(stream.time_base)), stream=stream)
        waiting, last, image, time = list(reversed(times)), None, None, 0.0
        for frame in container.decode(stream):
            time = frame.time - origin
            if last is None and seek and time > waiting[-1]:  # the container cannot find key frames
                yield from video_frames(file, header, times, seek=False)
                return
            while waiting and time > waiting[-1]:  # until now, the frame before was shown
                image = image or shown(last or frame)
                yield image
                waiting.pop()
            if not waiting:
                return
            last, image = frame, None
        for moment in reversed(waiting):
            if last is None or moment > time + 1.5 / header.rate:
                raise ValueError(f"its frames end at {time:.3g} s, but its header says {header.duration:.3g} s")
            image = image or shown(last)
            yield image


def shown(frame: Any) -> Image.Image:
    """A frame as it is displayed: with square pixels, and rotated as the camera was held."""
    image: Image.Image = frame.to_image()
    aspect = float(getattr(frame, "sample_aspect_ratio", None) or 1)
    if aspect != 1:
        image = image.resize((max(1, round(image.width * aspect)), image.height), Image.Resampling.BICUBIC)
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image
