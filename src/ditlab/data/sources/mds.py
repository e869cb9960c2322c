"""Shards of mosaicml-streaming (MDS): folders with index.json and shard.00000.mds, ..., read in any order.

A shard begins with the number n of its samples and n + 1 positions, all uint32. A sample holds the sizes (uint32) of
its columns of variable size, and then all columns, in the order of index.json.
"""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.file_cache import read_part
from ditlab.core.formats import interpreting, parse_json, read_object
from ditlab.core.spelling import nfc
from ditlab.data.decode import Raster, open_image
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.reading import UNCONDITIONAL, Reading, classes_from
from ditlab.data.sources.base import PIXEL_SETTINGS, Column, NamedSource, column_of_texts
from ditlab.data.sources.columns import (
    CAPTIONS,
    IMAGES,
    LABELS,
    NONE,
    LabelTexts,
    choose,
    choose_captions,
    named_columns,
    note_unread,
    usual_columns,
)
from ditlab.data.sources.splits import SPLITS, describe_split, pick_split
from ditlab.data.sources.tables import note_captions

INDEX, FORMAT, VERSION = "index.json", "mds", 2
IMAGE_ENCODINGS = ("jpeg", "png", "bytes", "pil")
INTEGERS = {
    "int": "<q", "int64": "<q", "int32": "<i", "int16": "<h", "int8": "<b",
    "uint64": "<Q", "uint32": "<I", "uint16": "<H", "uint8": "<B",
}  # fmt: skip


def integer(sign: str) -> Callable[[bytes], int]:
    """A function that reads a number; `sign` is its format for `struct`."""
    return lambda content: int(struct.unpack(sign, content)[0])


VALUES: dict[str, Callable[[bytes], Any]] = {
    "str": bytes.decode,
    "str_int": int,
    "json": parse_json,
    **{name: integer(sign) for name, sign in INTEGERS.items()},
}
"""Encoding of a column -> how a label or caption is read."""


@dataclass(frozen=True)
class Shard:
    """One file of samples."""

    file: Path
    count: int
    encodings: dict[str, str]
    """Column -> encoding."""
    sizes: dict[str, int | None]
    """Column -> bytes; None if it varies."""

    @classmethod
    def read(cls, folder: Path, entry: dict[str, Any]) -> Self:
        """A shard from its entry of the index.

        Raises:
            ValueError, KeyError, TypeError: the entry has another form.
        """
        if entry["format"] != FORMAT or entry["version"] != VERSION or entry["zip_data"]:
            raise ValueError("its shards are compressed, or of another version")
        names = entry["column_names"]
        encodings = {
            name: str(text).partition(":")[0] for name, text in zip(names, entry["column_encodings"], strict=True)
        }
        sizes = dict(zip(names, entry["column_sizes"], strict=True))
        return cls(folder / Path(entry["raw_data"]["basename"]).name, int(entry["samples"]), encodings, sizes)

    def places(self) -> Iterator[dict[str, tuple[int, int]]]:
        """For each sample: column -> position of its first byte, and length.

        Raises:
            ValueError: the file is damaged.
        """
        content = np.memmap(self.file, np.uint8, "r")
        starts = np.frombuffer(content[: 4 * (self.count + 2)].tobytes(), "<u4")
        if len(starts) != self.count + 2 or starts[0] != self.count or starts[-1] != len(content):
            raise ValueError(f"{self.file.name} has another length than its index")
        varying = [name for name, size in self.sizes.items() if not size]
        for start in starts[1:-1].tolist():
            numbers = np.frombuffer(content[start : start + 4 * len(varying)].tobytes(), "<u4").tolist()
            lengths = self.sizes | dict(zip(varying, numbers, strict=True))
            position, result = start + 4 * len(varying), {}
            for name, length in lengths.items():
                result[name] = (position, int(length or 0))
                position += int(length or 0)
            if position > len(content):
                raise ValueError(f"a sample of {self.file.name} is longer than the file")
            yield result


class MDS(NamedSource):
    """The images of MDS shards on this machine."""

    uses = PIXEL_SETTINGS | {"split", "image_column", "label_column", "caption_column"}

    def __init__(self, folder: Path, settings: Preparation | None = None) -> None:
        """List the samples of a folder of shards.

        Raises:
            InputError: it is damaged or compressed, or a setting names a column that is not there.
        """
        settings = settings or Preparation()
        self.reading, self.title = Reading(), str(folder)
        with interpreting(folder / INDEX, "write the shards again, uncompressed"):
            self.shards = [Shard.read(folder, entry) for entry in read_object(folder / INDEX)["shards"]]
        encodings = self.shards[0].encodings
        images = [name for name, encoding in encodings.items() if encoding in IMAGE_ENCODINGS]
        usual = usual_columns(images, IMAGES)[:1]
        column = choose(images, "image_column", settings.image_column, usual or IMAGES, self.title, self.reading)
        if column is None:
            raise InputError(f"{folder} has no column of images ({', '.join(encodings)}); give image_column")
        self.raw_pixels = encodings[column] == "pil"
        readable = [name for name, encoding in encodings.items() if encoding in VALUES]
        label, captions = self._chosen_label(readable, settings), self._chosen_captions(readable, settings)
        wanted = [*captions] if label is None else [label, *captions]
        labels: list[Any] = []
        texts: list[Any] = []
        self.places: list[tuple[int, int, int, int]] = []  # shard, row, position of the image, length
        with interpreting(folder, "copy it again"):
            for number, shard in enumerate(self.shards):
                content = np.memmap(shard.file, np.uint8, "r")
                for row, place in enumerate(shard.places()):
                    values = {
                        name: VALUES[encodings[name]](content[place[name][0] :][: place[name][1]].tobytes())
                        for name in wanted
                    }
                    self.places.append((number, row, *place[column]))
                    labels.append(None if label is None else values[label])
                    texts.append([values[name] for name in captions])
        self.columns = {"label": self._labels(labels, label, readable, settings)}
        if captions:
            note_captions(sum(any(row) for row in texts), named_columns(captions), self.reading)
            self.columns["caption"] = Column([row[0] if len(row) == 1 else row for row in texts])

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return is_mds(Path(text)) or bool(parts_of(Path(text)))

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open a folder of shards, or the folder of a part in it.

        Raises:
            InputError: there is no such part, or the shards cannot be read.
        """
        parts = [] if is_mds(Path(text)) else parts_of(Path(text))
        if not parts:
            if settings.split not in ("", NONE):
                raise InputError(f'split is "{settings.split}", but {text} has no parts; remove split')
            return cls(Path(text), settings)
        chosen = pick_split(settings.split, parts, text)
        source = cls(Path(text) / chosen, settings)
        source.reading.split, source.parts = describe_split(chosen, parts), parts
        return source

    def name(self, i: int) -> str:
        shard, row, *_ = self.places[i]
        return f"{self.shards[shard].file.name}[{row}]"

    def raw(self, i: int) -> Image.Image | Raster:
        content = self.content(i)
        if not self.raw_pixels:
            return open_image(io.BytesIO(content), self.channels)
        width, height, length = struct.unpack("<3I", content[:12])
        return Image.frombytes(content[12 : 12 + length].decode(), (width, height), content[12 + length :])

    def stamp(self, i: int) -> Stamp:
        return file_stamp(self.shards[self.places[i][0]].file, nfc(self.name(i)))._replace(size=self.places[i][3])

    def content(self, i: int) -> bytes:
        shard, _, position, length = self.places[i]
        return bytes(read_part(self.shards[shard].file, position, length))

    def _chosen_label(self, readable: list[str], settings: Preparation) -> str | None:
        usual = readable if settings.label_column not in ("", NONE) else usual_columns(readable, LABELS)
        return choose(usual, "label_column", settings.label_column, LABELS, self.title, self.reading)

    def _chosen_captions(self, readable: list[str], settings: Preparation) -> list[str]:
        usual = readable if settings.caption_column not in ("", NONE) else usual_columns(readable, CAPTIONS)
        return choose_captions(usual, settings.caption_column, tuple(usual[:1]) or CAPTIONS, self.title, self.reading)

    def _labels(self, values: list[Any], column: str | None, readable: list[str], settings: Preparation) -> Column:
        """The labels as classes; all 0 without a column of labels."""
        if column is None:
            self.reading.conditions = UNCONDITIONAL
            if not settings.label_column:
                note_unread([name for name in readable if name not in CAPTIONS], self.title, self.reading)
            return column_of_texts([""] * len(values), None, "")
        texts = LabelTexts(f"column {column} of {self.title}", self.reading)
        names = [texts.text(value, self.name(i)) for i, value in enumerate(values)]
        texts.finish()
        if not all(names):
            raise InputError(
                f"{self.name(names.index(''))} of {self.title} has no label; write the shards again with it"
            )
        labels = column_of_texts(names, None, self.title)
        self.reading.conditions = classes_from(len(labels.classes), f"column {column}")
        return labels


def is_mds(folder: Path) -> bool:
    """Whether a folder holds MDS shards."""
    try:
        return bool(read_object(folder / INDEX)["shards"][0]["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def parts_of(folder: Path) -> list[str]:
    """The parts train, val and test of a folder with MDS shards; empty if it is not divided in this way."""
    if not folder.is_dir():
        return []
    return [name for name in SPLITS if is_mds(folder / name)]
