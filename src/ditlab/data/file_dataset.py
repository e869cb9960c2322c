"""A data set whose files are read when they are needed: those that cannot be read are replaced, and listed."""

import csv
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock

from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.units import none_can
from ditlab.data.base import Dataset
from ditlab.data.buckets import Buckets
from ditlab.data.check import UnreadableImagesError, check_images, require
from ditlab.data.identity import Stamps, content_hash, read_stamps
from ditlab.data.sources import Raster, Source, Unreadable
from ditlab.data.sources.base import unreadable


class FileDataset(Dataset):
    """The images or clips of a source. If one cannot be read, the next readable one takes its place in the batch."""

    what: str
    """What messages call one of them: image, or clip."""
    without_header: list[int]
    """Numbers, in the source, of those that are known to be unreadable since the data set was opened."""

    def __init__(self, source: Source, *, report: Path | None, max_skipped: float) -> None:
        """Take the classes of a source.

        Args:
            source: where the images or clips come from.
            report: CSV file with names and reasons of those that are skipped; created when the first one is.
            max_skipped: largest share that may be skipped. One may be skipped even if its share is larger, unless this
                is 0.
        """
        self.source, self.report, self.max_skipped = source, report, max_skipped
        self.skipped: dict[str, str] = {}
        self.reported: set[str] = read_names(report)
        self.lock = Lock()
        self.pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
        self.classes = source.classes

    def file_of(self, index: int) -> int:
        """The number, in the source, of the file of an image or clip."""
        return index % len(self.source)

    def first_of(self, file: int) -> int:
        """The index of the first image or clip of a file."""
        return file

    @abstractmethod
    def _read(self, index: int) -> Raster | None:
        """The pixels of an image or clip; None if it cannot be read, which `_skip` has listed."""

    def _readable_from(self, i: int, read: Callable[[int], Raster | None] | None = None) -> tuple[int, Raster]:
        """Index and pixels of the first one of the same size that `read` (default: `_read`) can read, from index i."""
        read = read or self._read
        for index in Buckets.alike(self.buckets, i, len(self)):
            array = read(index)
            if array is not None:
                return index, array
        raise InputError(f"{none_can(len(self.source), self.what)} be read")

    def fault(self) -> tuple[str, str]:
        """What the skipped ones are or cannot, and what to do: "cannot be read" and "repair them"."""
        return "cannot be read", "repair them"

    def captions(self, i: int) -> tuple[str, ...]:
        return self.source.captions(self.file_of(i))

    def stamps(self) -> Stamps:
        return read_stamps(self.source.stamp, self.source.labels.numpy(), self.pool)

    def content_hash(self, i: int) -> int:
        with suppress(Unreadable), unreadable():
            return content_hash(self.source.content(self.file_of(i)))
        return content_hash(b"")  # an image that cannot be read has no content

    def readable(self, index: int) -> bool:
        """Whether an image can be read; `skipped` then lists it, even beyond the allowed share."""
        try:
            return self._read(index) is not None
        except UnreadableImagesError:
            return False

    def relist(self) -> set[str]:
        """Restart the report with the images that this data set could not read; returns the names that it listed."""
        names, self.reported = self.reported, set(self.skipped)
        if self.report is not None:
            self.report.unlink(missing_ok=True)
            for name, reason in self.skipped.items():
                append_report(self.report, name, reason)
        return names

    def check(self, console: Console, *, resumed: bool) -> None:
        check_images(self, console, resumed=resumed)

    def _skip(self, name: str, reason: str) -> None:
        with self.lock:
            if name in self.skipped:
                return
            self.skipped[name] = reason
            if self.report is not None and name not in self.reported:
                append_report(self.report, name, reason)
                self.reported.add(name)
        require(self)


def read_names(file: Path | None) -> set[str]:
    """Names in a report that an earlier part of the same run wrote."""
    if file is None or not file.exists():
        return set()
    with interpreting(file, "remove it"), file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return {row["name"] for row in csv.DictReader(opened)}


def append_report(file: Path, name: str, reason: str) -> None:
    """Append the name of a skipped image and the reason to a CSV file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        if opened.tell() == 0:
            writer.writerow(["name", "reason"])
        writer.writerow([name, reason])
