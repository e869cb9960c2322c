"""A data set of clips: frames are decoded and resized when they are read; unreadable clips are replaced."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditlab.core.device import free_memory
from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.core.units import GIB, counted, none_can
from ditlab.data.base import spread
from ditlab.data.buckets import Buckets
from ditlab.data.budget import DECODING
from ditlab.data.clips.header import ClipHeader
from ditlab.data.clips.reading import clip_frames, read_clip_header
from ditlab.data.clips.timing import Timing
from ditlab.data.clips.windows import Window, notes, one_window, windows
from ditlab.data.file_dataset import FileDataset
from ditlab.data.identity import Stamps
from ditlab.data.images import NATIVE, PREPROCESSING
from ditlab.data.kept import room
from ditlab.data.preprocess import Preprocess
from ditlab.data.reading import SHORT
from ditlab.data.scan import with_progress
from ditlab.data.sources import Raster, Source, Unreadable
from ditlab.data.sources.base import unreadable


class Clips(FileDataset):
    """Clips (C, T, H, W) of the files of a source: T consecutive frames at one frame rate, resized to one size.

    A file may be longer than a clip. `fetch` returns its first frames; `fetch_at`, which training calls, chooses the
    beginning by the seed and the number of images seen. With `preprocess.flip` there are 2 N clips: clip i + N is clip
    i mirrored. If a file cannot be read, the next readable one takes its place, and `skipped` lists its name.

    With `preprocess.native`, frames keep their aspect ratio, and clips their length up to that of `timing`. A longer
    file is divided into equal parts, each of which is a clip in the same way as a file is otherwise.

    The frames of all files stay in memory, resized, if they fit in a quarter of it.
    """

    what = "clip"

    def __init__(
        self,
        source: Source,
        timing: Timing,
        preprocess: Preprocess | None = None,
        *,
        report: Path | None = None,
        max_skipped: float = 0.05,
    ) -> None:
        """Read the headers of all files.

        Args:
            source: where the files come from.
            timing: which frames are a clip.
            preprocess: how frames are brought to one size. Without its size, all must have the same size.
            report: CSV file with names and reasons of skipped clips; created when the first one is skipped.
            max_skipped: largest share of the clips that may be skipped.

        Raises:
            InputError: no clip can be read, they differ in size, or a clip does not fit into memory.
        """
        super().__init__(source, report=report, max_skipped=max_skipped)
        preprocess, self.timing = preprocess or Preprocess(None), timing
        with_headers = spread(self.pool, lambda i: read_header(source, i), len(source))
        self.headers = Headers.of(source, with_progress(with_headers, len(source), "reading headers"))
        self.channels = preprocess.channels or (1 if self.headers.gray else 3)
        self.preprocess, self.flip = replace(preprocess, channels=self.channels), preprocess.flip
        self.windows = [window for i in range(len(source)) for window in self._windows(i)]
        self.files = np.array([window.file for window in self.windows])
        self.labels = torch.cat([source.labels[torch.from_numpy(self.files)]] * (2 if self.flip else 1))
        self.without_header = [*self.headers.broken, *([] if preprocess.native else self.headers.short(timing))]
        self.size = self._divide() or (timing.frames, *(preprocess.size or self.headers.common_size(source)))
        check_memory(self)
        self.preprocessing = self._recorded() | dict(source.division)
        self.kept: dict[int, Raster] | None = {} if self._fit_in_memory() else None
        self.reading = replace(source.reading, notes=[*source.reading.notes, *self._notes()])

    def _windows(self, i: int) -> list[Window]:
        """The parts of file i that are clips."""
        header, native = self.headers.found.get(i), self.preprocess.native
        return one_window(i, header, self.timing) if native is None else windows(i, header, self.timing, native)

    def _divide(self) -> tuple[int, ...] | None:
        """Give the clips and their mirrored copies the sizes of their buckets; returns the size of most, if several."""
        native = self.preprocess.native
        if native is None:
            return None
        found = self.headers.found
        known = [(w.frames, found[w.file].size) if w.file in found else None for w in self.windows]
        usual = Counter(shape for shape in known if shape is not None).most_common(1)[0][0]  # for unreadable files
        frames, sizes = zip(*(shape or usual for shape in known), strict=True)
        buckets = Buckets.nearest(sizes, native).with_frames(torch.tensor(frames), native, self.timing.frames)
        self.buckets = buckets.mirrored() if self.flip else buckets
        return buckets.sizes[buckets.frequent]

    def _recorded(self) -> dict[str, Any]:
        """How the clips are made, for the files of what is made of them."""
        settings, native = asdict(self.preprocess), self.preprocess.native
        recorded = {key: settings[key] for key in PREPROCESSING} | {"size": list(self.size[1:])} | asdict(self.timing)
        return recorded if native is None else recorded | {"size": NATIVE, **asdict(native)}

    def _notes(self) -> list[str]:
        """What is cut and resampled, for the summary."""
        memory = f", {self.clip_bytes / 2**20:,.0f} MiB each" if self.clip_bytes >= 2**20 else ""
        if self.preprocess.native is None or self.buckets is None:
            return [f"clips of {self.timing.words()}{memory}", *self.headers.notes(self.timing)]
        cut = notes(self.windows, self.timing, self.preprocess.native)
        lines = [f"clips of up to {self.timing.words()}{memory}", *cut, *self.headers.notes(self.timing)]
        return [*lines, *self.buckets.notes("clip")]

    def file_of(self, index: int) -> int:
        return int(self.files[index % len(self.windows)])

    def first_of(self, file: int) -> int:
        return int(np.searchsorted(self.files, file))

    def stamps(self) -> Stamps:
        stamps = super().stamps()
        if self.preprocess.native is None:
            return stamps
        names = [f"{stamps.names[window.file]}@{window.first}" for window in self.windows]
        return replace(stamps.take(self.files), names=names)

    def fetch(self, indices: Tensor) -> Batch:
        return self._batch(list(self.pool.map(self._readable_from, indices.tolist())))

    def fetch_readable(self, indices: Tensor) -> Batch:
        clips = self.pool.map(self._read, indices.tolist())
        pairs = zip(indices.tolist(), clips, strict=True)
        return self._batch([(index, clip) for index, clip in pairs if clip is not None])

    def fetch_at(self, indices: Tensor, seed: int, seen: Tensor) -> Batch:
        def read(pair: tuple[int, int]) -> tuple[int, Raster]:
            share = np.random.default_rng([seed, pair[1]]).random()
            return self._readable_from(pair[0], lambda index: self._read(index, share))

        return self._batch(list(self.pool.map(read, zip(indices.tolist(), seen.tolist(), strict=True))))

    def _batch(self, pairs: list[tuple[int, Raster]]) -> Batch:
        indices = torch.tensor([index for index, _ in pairs], dtype=torch.long)
        empty = np.empty((0, *self.size, self.channels), np.uint8)
        if len({clip.shape for _, clip in pairs}) > 1:
            raise InputError("the clips have several sizes (data.size is native), and here they must have one; set it")
        stacked = torch.from_numpy(np.stack([clip for _, clip in pairs]) if pairs else empty)
        return Batch(stacked.permute(0, 4, 1, 2, 3).contiguous(), self.condition(indices), index=indices)

    def _read(self, index: int, share: float = 0.0) -> Raster | None:
        """A clip (T, H, W, C) that begins at a share, 0 to 1, of the possible beginnings; None if it cannot be read."""
        i, first, count, frames = self.windows[index % len(self.windows)]
        try:
            header = self.headers.found.get(i)
            if header is None:
                raise Unreadable(self.headers.broken[i])
            if count < frames:
                seconds = f" ({header.duration:.3g} s)" if header.timed else ""
                raise Unreadable(f"{SHORT}: {counted(count, 'frame')} of {frames}{seconds}")
            start = first + int(share * (count - frames + 1))
            if self.kept is None:
                clip = self._decode(i, header, start, frames)
            else:
                if i not in self.kept:
                    self.kept[i] = self._decode(i, header, 0, self.timing.positions(header))
                clip = self.kept[i][start : start + frames]
        except Unreadable as error:
            self._skip(self.source.name(i), str(error))
            return None
        return clip if index < len(self.windows) else np.ascontiguousarray(clip[:, :, ::-1])

    def fault(self) -> tuple[str, str]:
        short = [reason.startswith(SHORT) for reason in self.skipped.values()]
        if not any(short):
            return super().fault()
        remedy = f"give {self.timing.shorter()}"
        return (
            ("are too short", remedy) if all(short) else ("cannot be read or are too short", f"repair them, {remedy}")
        )

    def _decode(self, i: int, header: ClipHeader, start: int, count: int) -> Raster:
        """Resized frames (count, H, W, C) from a position on."""
        height, width = header.size
        preprocess, size = self.preprocess, self.size[1:]
        if self.buckets is not None:
            size = self.buckets.size_of(self.first_of(i))[1:]
            preprocess = replace(preprocess, size=(size[0], size[1]))
        if min(header.size) < self.source.min_side:
            raise Unreadable(f"only {width}x{height} pixels; min_side is {self.source.min_side}")
        if height * width > self.source.max_pixels:
            raise Unreadable(f"{width}x{height} pixels; max_pixels is {self.source.max_pixels:,}")
        frames = np.empty((count, *size, self.channels), np.uint8)
        with DECODING.taken(height * width), unreadable():
            times = self.timing.times(header, start, count)
            for k, image in enumerate(clip_frames(self.source.file(i), header, times)):
                frame = preprocess(image)
                if frame.shape != frames.shape[1:]:
                    raise Unreadable("frame {} has {}x{} pixels".format(start + k, *frame.shape[:2]))
                frames[k] = frame
        return frames

    def _fit_in_memory(self) -> bool:
        """Whether the frames of all files fit in a quarter of the free memory."""
        positions = sum(self.timing.positions(header) for header in self.headers.found.values())
        return positions * self.clip_bytes / self.size[0] <= room()

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip in memory; with several sizes, of one of the longest."""
        return int(np.prod(self.size)) * self.channels


@dataclass
class Headers:
    """The headers of the clips of a source."""

    found: dict[int, ClipHeader] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)
    """Number of a clip -> the reason why its header cannot be read."""

    @classmethod
    def of(cls, source: Source, headers: Iterable[ClipHeader | str]) -> "Headers":
        """Collect headers, or the reasons why they cannot be read.

        Raises:
            InputError: none can be read.
        """
        result = cls()
        for i, header in enumerate(headers):
            if isinstance(header, str):
                result.broken[i] = header
            else:
                result.found[i] = header
        if not result.found:
            begin = ", beginning with " if len(result.broken) > 1 else ": "
            raise InputError(
                f"{none_can(len(result.broken), 'clip')} be read{begin}{source.name(0)} ({result.broken[0]}); check "
                "the files"
            )
        return result

    @property
    def gray(self) -> bool:
        """Whether all clips are gray."""
        return all(header.gray for header in self.found.values())

    def common_size(self, source: Source) -> tuple[int, int]:
        """The size of all clips.

        Raises:
            InputError: they differ.
        """
        first, size = next((i, header.size) for i, header in self.found.items())
        for i, header in self.found.items():
            if header.size != size:
                raise InputError(
                    f"{source.name(i)} has {'x'.join(map(str, header.size))} pixels (height x width) but "
                    f"{source.name(first)} has {'x'.join(map(str, size))}; give a size (data.size) to resize all clips"
                )
        return size

    def short(self, timing: Timing) -> list[int]:
        """Numbers of the files that have fewer frames than a clip."""
        return [i for i, header in self.found.items() if timing.positions(header) < timing.frames]

    def notes(self, timing: Timing) -> list[str]:
        """What is resampled."""
        lines = []
        if variable := sum(header.variable for header in self.found.values()):
            how = "their own frame rate" if timing.fps is None else f"{timing.fps:g} fps"
            lines.append(f"{counted(variable, 'clip')} of variable frame rate, resampled to {how}")
        return lines


def read_header(source: Source, i: int) -> ClipHeader | str:
    """The header of clip i, or the reason why it cannot be read."""
    try:
        with unreadable():
            return read_clip_header(source.file(i))
    except Unreadable as error:
        return str(error)


def check_memory(clips: Clips) -> None:
    """Check that the clips that threads read ahead fit into memory.

    Raises:
        InputError: they do not.
    """
    free = free_memory(torch.device("cpu"))
    if 2 * clips.clip_bytes > free:
        frames, height, width = clips.size
        raise InputError(
            f"a clip of {frames:,} frames of {height}x{width} takes {clips.clip_bytes / GIB:,.1f} GiB, two are read "
            f"ahead, and {free / GIB:,.1f} GiB of memory are free; give fewer frames or a smaller size"
        )
