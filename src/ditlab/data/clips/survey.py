"""Survey clips before training: durations, frame rates, sizes, unreadable clips, and a sheet of film strips."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import ImageOps
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ditlab.core.errors import InputError
from ditlab.core.terminal import cell
from ditlab.core.units import none_can
from ditlab.data.base import spread
from ditlab.data.captions import CaptionStatistics
from ditlab.data.clips.dataset import Clips
from ditlab.data.clips.timing import Timing
from ditlab.data.preprocess import Preprocess
from ditlab.data.reading import SHORT, Reading
from ditlab.data.sources import Source
from ditlab.data.survey import (
    COLUMNS,
    ROWS,
    THUMBNAIL,
    Bucket,
    bucket_table,
    contents_of,
    count_table,
    cut,
    reading_tables,
)
from ditlab.report.sheets import check_sheet, contact_sheet, evenly, frames, save_sheet


@dataclass(frozen=True)
class ClipSurvey:
    """The result of a survey of clips."""

    clips: int
    classes: dict[str, int]  # readable clips of each class
    images: int  # files with one frame that is shown for no certain time
    seconds: tuple[float, float, float] | None  # durations of the files: min, median, max; None for folders of frames
    frames: tuple[float, float, float] | None  # lengths of folders of frames: min, median, max; None for other files
    rates: dict[str, int]  # frames per second -> clips, most frequent first; without images and folders of frames
    sizes: dict[str, int]  # HEIGHTxWIDTH -> clips, most frequent first
    variable: int  # clips of variable frame rate
    unreadable: dict[str, str]  # name -> reason; also those with fewer frames than a clip
    reading: Reading  # what was chosen and left out
    captions: CaptionStatistics | None = None  # None if there are no captions
    buckets: dict[str, Bucket] = field(default_factory=dict)  # with size native: FRAMESxHEIGHTxWIDTH -> its clips

    def tables(self) -> list[Table]:
        """The survey as tables for the terminal."""
        summary = Table("property", "value", title=f"{self.clips:,} clips")
        summary.add_row("conditions", cell(self.reading.conditions))
        if self.reading.split:
            summary.add_row("split", cell(self.reading.split))
        for note in self.reading.notes:
            summary.add_row("note", cell(note))
        short = sum(reason.startswith(SHORT) for reason in self.unreadable.values())
        summary.add_row("unreadable", f"{len(self.unreadable) - short:,}")
        summary.add_row("too short", f"{short:,}")
        if self.images:
            summary.add_row("images", f"{self.images:,}")
        for name, values in (("seconds", self.seconds), ("frames", self.frames)):
            if values is not None:
                summary.add_row(f"{name}, min / median / max", " / ".join(f"{value:.3g}" for value in values))
        if self.rates:
            summary.add_row("variable frame rate", f"{self.variable:,}")
        classes = [count_table("class", self.classes, "clips")] if self.classes else []
        captions = [self.captions.table()] if self.captions else []
        rates = [count_table("fps", self.rates, "clips")] if self.rates else []
        sizes = count_table("height x width", self.sizes, "clips")
        buckets = [bucket_table(self.buckets, "clips")] if self.buckets else []
        tables = reading_tables(self.reading, self.unreadable)
        return [summary, *classes, *captions, *rates, sizes, *buckets, *tables]


def survey_clips(
    source: Source, timing: Timing, console: Console, preprocess: Preprocess, sheet: Path | None = None
) -> ClipSurvey:
    """Read the header of each file, and decode its first clip.

    Args:
        source: the files.
        timing: which frames are a clip.
        console: where progress is shown.
        preprocess: how frames will be resized; the sheet shows its aspect ratio, bars and colors.
        sheet: PNG file with film strips: the first clip of each of up to 16 classes, or the first 8 clips.

    Raises:
        InputError: no clip can be read, or the sheet cannot be written.
    """
    if sheet is not None:
        check_sheet(sheet)
    height, width = preprocess.size or (1, 1)
    scale = THUMBNAIL / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale))) if preprocess.native is None else None
    clips = Clips(source, timing, replace(preprocess, size=size, flip=False), max_skipped=1.0)
    clips.kept = None  # later frames are not decoded
    results = spread(clips.pool, lambda i: clips.readable(clips.first_of(i)), len(source))
    bar = track(results, "inspecting", len(source), console=console, disable=not console.is_terminal)
    readable = [i for i, is_readable in enumerate(bar) if is_readable]
    if not readable:
        raise InputError(none_is_readable(clips))
    if sheet is not None:
        write_sheet(clips, readable, sheet)
    headers = [clips.headers.found[i] for i in readable]
    counts = Counter(source.labels[readable].tolist())
    return ClipSurvey(
        clips=len(source),
        classes={name: counts[i] for i, name in enumerate(source.classes)},
        images=sum(header.still for header in headers),
        seconds=range_of([header.duration for header in headers if header.timed]),
        frames=range_of([header.duration for header in headers if not header.timed and not header.still]),
        rates=dict(Counter(f"{header.rate:.4g}" for header in headers if header.timed).most_common()),
        sizes=dict(Counter("{}x{}".format(*header.size) for header in headers).most_common()),
        variable=sum(header.variable for header in headers),
        unreadable=clips.skipped,
        reading=clips.reading,
        captions=CaptionStatistics.of(source),
        buckets={}
        if clips.buckets is None
        else contents_of(clips.buckets, torch.from_numpy(np.isin(clips.files, readable))),
    )


def range_of(values: list[float]) -> tuple[float, float, float] | None:
    """Minimum, median and maximum; None if there are no values."""
    return (min(values), median(values), max(values)) if values else None


def none_is_readable(clips: Clips) -> str:
    """The message for clips of which none can be read."""
    (fault, remedy), count = clips.fault(), len(clips.source)
    name = next(name for name in map(clips.source.name, range(count)) if name in clips.skipped)
    reason = clips.skipped[name]  # of the first file; files are read, and skipped, in the order of several threads
    if fault == "cannot be read":
        return f"{none_can(count, 'clip')} be read, beginning with {name} ({reason}); check the files"
    which = f"the only clip is {fault.removeprefix('are ')}" if count == 1 else f"all {count:,} clips {fault}"
    return f"{which}, beginning with {name} ({reason}); {remedy}"


def write_sheet(clips: Clips, readable: list[int], file: Path) -> None:
    """Write film strips of the first clips as a PNG file."""
    labels = clips.source.labels[readable].tolist()
    if clips.classes:
        chosen = [readable[labels.index(label)] for label in sorted(set(labels))[:ROWS]]
        names = [cut(clips.classes[int(clips.source.labels[i])]) for i in chosen]
    else:
        chosen = readable[:COLUMNS]
        names = [cut(clips.source.name(i)) for i in chosen]
    strips = [frames(clips.fetch(torch.tensor([clips.first_of(i)])).x)[0] for i in chosen]
    if clips.buckets is not None:  # frames of several sizes
        strips = [[ImageOps.pad(frame, (THUMBNAIL, THUMBNAIL), color="white") for frame in strip] for strip in strips]
    save_sheet(contact_sheet([evenly(strip) for strip in strips], names), file)
