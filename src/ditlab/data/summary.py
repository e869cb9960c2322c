"""The summary of a data set: what was read, what was chosen, and what was left out. Commands print it before they work.

data: photos: 1,200 images of 64x64 pixels, RGB, uint8, 0..255
conditions: 10 classes from folders, 80 to 140 images each (beach, city, desert, forest, ...)
split: train (also there: val, test)
left out: needs the package pillow-heif (.heic): 3 (beach/a.heic); folder without images: 1 (swamp)
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from ditlab.core.io import replace_text
from ditlab.core.printable import one_line
from ditlab.core.terminal import say
from ditlab.core.units import counted, sides_of
from ditlab.core.values import PixelValues
from ditlab.data.base import Dataset
from ditlab.data.latents.cache import Latents
from ditlab.data.reading import SHORT, UNCONDITIONAL, LeftOut, Reading
from ditlab.data.sources.base import natural

FILE = "data.json"
"""Name of the file in which a run keeps the summary of its data."""
NAMES = 4  # class names in the summary
CHANNELS = {1: "gray", 3: "RGB"}


@dataclass(frozen=True)
class Summary:
    """What a data set holds, and what was chosen and left out when it was read."""

    source: str
    images: int
    """Without mirrored copies, except in a latent cache."""
    mirrored: bool
    """Whether each image has a mirrored copy."""
    size: tuple[int, ...]
    """(height, width) of the images, or (frames, height, width) of the videos."""
    channels: int
    values: PixelValues
    latents: tuple[int, ...]
    """Shape of the moments in a latent cache; empty for images."""
    sizes: dict[str, int]
    """Images of each size, without mirrored copies; empty if all have one."""
    classes: dict[str, int]
    """Images of each class, counted in the same way; empty for an unconditional data set."""
    reading: Reading
    noun: str
    """What one of the images is called: image, clip, or pair (of states of a field)."""

    @classmethod
    def of(cls, dataset: Dataset, source: str) -> Self:
        """Summarize a data set; nothing is decoded.

        Args:
            dataset: the data set.
            source: the name that the user gave.
        """
        mirrored = bool(dataset.preprocessing.get("flip"))
        copies = 2 if mirrored and not isinstance(dataset, Latents) else 1  # a cache has no copies of unreadable images
        counts = Counter(dataset.labels.tolist())
        classes = {name: counts[i] // copies for i, name in enumerate(dataset.classes)}
        reading = dataset.reading
        if classes and reading.conditions == UNCONDITIONAL:
            reading = replace(reading, conditions=counted(len(classes), "class"))
        if dataset.skipped:
            reading = replace(reading, left_out=reading.left_out | skipped_of(dataset))
        shape = dataset.shape if isinstance(dataset, Latents) else ()
        images, buckets = len(dataset) // copies, dataset.buckets
        counts_of = [] if buckets is None else zip(buckets.sizes, buckets.counts, strict=True)
        sizes = {sides_of(size): count // copies for size, count in counts_of}
        return cls(
            source, images, mirrored, dataset.size, dataset.channels, dataset.values, shape, sizes, classes, reading,
            dataset.noun,
        )  # fmt: skip

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        size = sides_of(self.size)
        if self.sizes:
            names = [*self.sizes]
            size = names[0] if len(names) == 1 else f"{len(names)} sizes from {names[0]} to {names[-1]}"
        copies = (
            "" if not self.mirrored else ", with mirrored copies" if self.latents else ", each with a mirrored copy"
        )
        images = counted(self.images, self.noun)
        pixels = f"{CHANNELS.get(self.channels, f'{self.channels} channels')}, {self.values.summary()}"
        latents = f", as latents of {'x'.join(map(str, self.latents))}" if self.latents else ""
        lines = [f"data: {self.source}: {images} of {size} pixels, {pixels}{latents}{copies}"]
        lines.append(f"conditions: {self._conditions()}")
        if self.reading.split:
            lines.append(f"split: {self.reading.split}")
        lines += self.reading.notes
        if self.reading.left_out:
            lines.append("left out: " + "; ".join(_left_out(*item) for item in self.reading.left_out.items()))
        return [one_line(line) for line in lines]  # names of classes and files may hold line ends

    def _conditions(self) -> str:
        if not self.classes:
            return self.reading.conditions
        least, most = min(self.classes.values()), max(self.classes.values())
        each = ("" if least == most else f"{least:,} to ") + counted(most, self.noun)
        names = ", ".join(list(self.classes)[:NAMES]) + (", ..." if len(self.classes) > NAMES else "")
        return f"{self.reading.conditions}, {each} each ({names})"

    def describe(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        return asdict(self) | {"values": self.values.describe()}

    def show(self, console: Console) -> None:
        """Print the summary."""
        for line in self.lines():
            say(console, line)

    def write(self, folder: Path) -> None:
        """Write the summary into a folder, as `data.json`."""
        replace_text(folder / FILE, json.dumps(self.describe(), indent=1, ensure_ascii=False) + "\n")


def skipped_of(dataset: Dataset) -> dict[str, LeftOut]:
    """What a data set has skipped, under the reasons: clips that are too short, and what cannot be read."""
    what, short, unreadable = dataset.noun, *skipped_names(dataset)
    left_out = {}
    if unreadable:
        left_out[f"{what}s that cannot be read"] = LeftOut(len(unreadable), unreadable[0])
    if short:
        length = dataset.skipped[short[0]].removeprefix(SHORT)
        left_out[f"{what}s that are too short"] = LeftOut(len(short), f"{short[0]}{length}")
    return left_out


def skipped_names(dataset: Dataset) -> tuple[list[str], list[str]]:
    """The names of the clips that are too short, and of all else that a data set has skipped, in order."""
    names = sorted(dataset.skipped, key=natural)
    short = [name for name in names if dataset.skipped[name].startswith(SHORT)]
    return short, [name for name in names if name not in {*short}]


def skipped_counts(dataset: Dataset) -> str:
    """What a data set has skipped in words, such as "2 clips could not be read, 1 clip is too short"."""
    what, short, unreadable = dataset.noun, *skipped_names(dataset)
    counts = [f"{counted(len(unreadable), what)} could not be read"] if unreadable else []
    if short:
        counts.append(f"{counted(len(short), what)} {'is' if len(short) == 1 else 'are'} too short")
    return ", ".join(counts)


def report_data(dataset: Dataset, source: str, folder: Path, console: Console) -> None:
    """Print the summary of a data set, and write it into a folder."""
    summary = Summary.of(dataset, source)
    summary.show(console)
    summary.write(folder)


def report_unreadable(dataset: Dataset, source: str, folder: Path, console: Console) -> None:
    """Report the images that a check found unreadable, and add them to the summary in a folder."""
    if dataset.skipped:
        summary = Summary.of(dataset, source)
        for reason, entry in skipped_of(dataset).items():
            say(console, f"left out: {_left_out(reason, entry)}")
        summary.write(folder)


def _left_out(reason: str, entry: LeftOut) -> str:
    return one_line(f"{reason}: {entry.count:,} ({entry.example})")
