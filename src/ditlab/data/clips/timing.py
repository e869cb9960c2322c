"""Which frames of a file are a clip."""

from dataclasses import dataclass
from math import ceil

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.data.clips.header import ClipHeader


@dataclass(frozen=True)
class Timing:
    """The frames of a clip: `frames` of them, at `fps`, or every `stride`-th one at the frame rate of the file."""

    frames: int
    fps: float | None = None
    stride: int = 1

    def positions(self, header: ClipHeader) -> int:
        """Number of frames that a file has at this rate; a clip is `frames` consecutive ones of them."""
        if header.still:
            return 1
        return max(1, ceil((header.duration - self._offset(header)) * self._fps(header)))

    def times(self, header: ClipHeader, start: int, count: int) -> list[float]:
        """Times in seconds at which `count` frames from position `start` on are shown.

        They lie half a frame after the beginnings of the frames, so that rounded time stamps choose the same ones.
        """
        fps, offset = self._fps(header), self._offset(header)
        return [i / fps + offset for i in range(start, start + count)]

    def _offset(self, header: ClipHeader) -> float:
        return 0.5 / max(header.rate, self._fps(header))

    def _fps(self, header: ClipHeader) -> float:
        return self.fps or header.rate / self.stride

    def shorter(self) -> str:
        """The settings with which shorter files suffice, such as "fewer frames, or a higher fps"."""
        return "fewer frames" + (
            ", or a higher fps" if self.fps else ", or a smaller stride" if self.stride > 1 else ""
        )

    def words(self) -> str:
        """The timing in words, such as "16 frames at 8 fps (2 s)"."""
        frames = counted(self.frames, "frame")
        if self.fps:
            return f"{frames} at {self.fps:g} fps ({self.frames / self.fps:.3g} s)"
        return f"{frames}, " + (f"every {self.stride} frames" if self.stride > 1 else "every frame") + " of a file"


def timing_of(settings: Preparation) -> Timing | None:
    """The timing that settings describe; None if they ask for images.

    Raises:
        InputError: settings contradict each other, or have no effect.
    """
    if settings.trajectories:  # their source has a stride of its own, and rejects the other settings
        return None
    frames, fps, seconds, stride = settings.frames, settings.fps, settings.seconds, settings.stride
    if frames is None and seconds is None:
        multiple = settings.frame_multiple
        for name, value, default in (("fps", fps, None), ("stride", stride, 1), ("frame_multiple", multiple, None)):
            if value != default:
                raise InputError(
                    f"{name} is {value:g}, which has no effect on images; set frames for clips, or remove it"
                )
        if settings.frame_folders:
            raise InputError("frame_folders has no effect on images; set frames for clips, or remove it")
        return None
    if fps is not None and stride > 1:
        raise InputError(f"fps is {fps:g} and stride is {stride}, which both choose the frames; remove one of them")
    if seconds is not None:
        if (frames is None) == (fps is None) or stride > 1 or not seconds:
            raise InputError(f"seconds is {seconds:g}; give a length above 0, and one of frames and fps")
        if frames is None:
            assert fps is not None
            frames = max(1, round(seconds * fps))
        else:
            fps = frames / seconds
    assert frames is not None
    return Timing(frames, fps, stride)
