"""Tar shards in WebDataset's format, in which members with the same name up to the first dot belong together."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.file_cache import read_part
from ditlab.core.spelling import nfc
from ditlab.core.units import counted
from ditlab.data.decode import Raster, open_image
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.reading import UNCONDITIONAL, Reading, classes_from
from ditlab.data.sources.base import (
    CLIP_SETTINGS,
    PIXEL_SETTINGS,
    Column,
    NamedSource,
    Texts,
    column_of_texts,
    reads_clips,
)
from ditlab.data.sources.columns import NONE, LabelTexts, note_unread
from ditlab.data.sources.files import COMPRESSED, list_images, read_folder, utf8_name
from ditlab.data.sources.patterns import is_pattern, matching_files
from ditlab.data.sources.samples import choose_images
from ditlab.data.sources.shards import (
    CLS,
    Listing,
    ShardFile,
    caption_text,
    lookup_key,
    origins_of,
    read_listing,
)
from ditlab.data.sources.splits import SPLITS, are_splits, describe_split, named_part, one_part, pick_split
from ditlab.data.sources.tables import note_captions

PIPE = "pipe:"  # of WebDataset, which starts a program
Place = tuple[int, str, int, int]
"""Number of the shard, name of the member, position of its first byte, length."""


class TarShards(NamedSource):
    """Images in tar shards, which can be read in any order because all members are listed first."""

    uses = PIXEL_SETTINGS | CLIP_SETTINGS | {"split", "image_column", "label_column", "caption_column"}

    def __init__(self, shards: Sequence[ShardFile], settings: Preparation | None = None) -> None:
        """List the members of the shards.

        Raises:
            InputError: a shard is damaged, a setting names something that is not there, or only some of the images have
                a label.
        """
        settings = settings or Preparation()
        self.reading = Reading()
        self.shards, self.parts = chosen_shards(shards, settings, self.reading)
        listings = self._listings(settings)
        places: list[Place] = []
        for number, listing in enumerate(listings):
            for reason, (count, example) in listing.left_out.items():
                self.reading.leave_out(utf8_name(f"{self.shards[number].name}:{example}"), reason, count)
            for image in choose_images(listing.images, settings.image_column, self.reading):
                places.append((number, *image))
        if settings.image_column and not places:
            raise self._no_such_image(settings.image_column)
        self.places, parts = chosen_places(places, settings, self.reading)
        self.parts = self.parts or parts
        self.columns = {"label": self._labels(listings, settings)}
        if captions := self._captions(listings, settings):
            self.columns["caption"] = captions
        if kinds := self._further_kinds():
            self.reading.notes.append(f"one image of each sample is read; also there: {kinds} (image_column chooses)")

    def _listings(self, settings: Preparation) -> list[Listing]:
        """What the shards hold."""
        return [read_listing(shard, settings) for shard in self.shards]

    def _further_kinds(self) -> str:
        """The kinds of images that are not read: ".seg.png, .png"."""
        further = [reason for reason in self.reading.left_out if reason.startswith("further image")]
        return ", ".join(reason.partition("(")[2].rstrip(")") for reason in further)

    def _no_such_image(self, wanted: str) -> InputError:
        kinds = self._further_kinds() or "no images"
        return InputError(f'image_column is "{wanted}", but the shards have {kinds}; correct or remove it')

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        text, _ = named_part(text)
        path = Path(text)
        if path.is_dir():
            return bool(_visible_shards(path))
        if path.suffix == ".tar" or COMPRESSED.search(text) or text.startswith(PIPE):
            return True
        return is_pattern(text) and any(name.endswith(".tar") for name in matching_files(text))

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open the tar files of a folder or of a pattern, or a single tar file; ":val" after them chooses that part.

        Raises:
            InputError: there is no such file, it is compressed, or the folder holds image files.
        """
        given, (text, part) = text, named_part(text)
        settings, path = one_part(part, settings, given), Path(text)
        if text.startswith(PIPE):
            raise InputError(f"{text} is a program and no file; give the address of the shards, such as s3://...")
        if path.is_dir():
            shards = _visible_shards(path)
            if list_images(path, Reading(), clips=reads_clips(settings))[0]:
                raise InputError(
                    f'{path} holds images and {shards[0].name}; give "{path}/*.tar", or move one of them away'
                )
        else:
            shards = [Path(name) for name in matching_files(text)] if is_pattern(text) else [path]
        compressed = [shard for shard in shards if COMPRESSED.search(shard.name)]
        if compressed:
            raise InputError(
                f"shard {compressed[0]} is compressed, so its images cannot be read in any order; decompress it first"
            )
        missing = [shard for shard in shards if not shard.is_file()]
        if not shards or missing:
            count = f" ({len(missing)} of {len(shards)} are missing)" if 0 < len(missing) < len(shards) else ""
            name = missing[0] if count else text
            remedy = "give an existing file, folder or pattern"
            raise InputError(f'no tar file "{name}"{count}; {remedy if count else nearest_path(name, remedy)}')
        if other := [shard for shard in shards if shard.suffix != ".tar"]:
            raise InputError(f"{other[0]} is no tar file, but {text} matches tar files too; give another pattern")
        source = cls(shards, settings)
        if path.is_dir():
            known = [*(shard.name for shard in shards), "classes.txt"]
            read_folder(path, source.reading, known=known, named=True, clips=reads_clips(settings))
        return source

    def name(self, i: int) -> str:
        return utf8_name(f"{self.shards[self.places[i][0]].name}:{self.places[i][1]}")

    def raw(self, i: int) -> Image.Image | Raster:
        return open_image(io.BytesIO(self.content(i)), self.channels)

    def stamp(self, i: int) -> Stamp:
        number, name, _, length = self.places[i]
        shard = self.shards[number]
        name = nfc(f"{shard.name}:{name}")
        if isinstance(shard, Path):
            return file_stamp(shard, name)._replace(size=length)
        return Stamp(name, length, shard.time)

    def content(self, i: int) -> bytes:
        number, _, offset, length = self.places[i]
        return bytes(read_part(self.shards[number], offset, length))

    def _labels(self, listings: list[Listing], settings: Preparation) -> Column:
        """The labels in .cls or .json members; without them, the class folders in the shards."""
        origins = origins_of(listings)
        if settings.label_column == NONE or not origins:
            if settings.label_column not in ("", NONE):
                keys = sorted({key for listing in listings for key in listing.json_keys})
                raise InputError(
                    f'label_column is "{settings.label_column}", but no member has it (keys of the .json members: '
                    f"{', '.join(keys) or 'none'}); correct or remove it"
                )
            column = self._folder_labels(settings)
            names = {key for listing in listings for key in listing.json_keys}
            if not column.classes and not settings.label_column:
                note_unread(sorted(names), "the .json members", self.reading)
            return column
        origin = CLS if CLS in origins else max(origins, key=lambda name: origins[name])
        texts = LabelTexts("the shards", self.reading)
        labels = []
        for number, name, *_ in self.places:
            label = lookup_key(listings[number].labels, name)
            labels.append(texts.text(label, utf8_name(f"{self.shards[number].name}:{name}")))
        texts.finish()
        if not all(labels):
            unlabeled = self.name(labels.index(""))
            raise InputError(
                f"{unlabeled} has no label, but others have one ({counted(labels.count(''), 'image')} without); "
                "add .cls or .json members"
            )
        if others := [name for name in origins if name != origin]:
            self.reading.notes.append(f"labels from {_member_of(origin)}; also there: {', '.join(others)}")
        column = column_of_texts(labels, self._class_names(), str(self.shards[0].parent))
        self.reading.conditions = classes_from(len(column.classes), _member_of(origin))
        return column

    def _class_names(self) -> list[str] | None:
        """The class names in the file classes.txt beside the shards; None if there is none.

        Raises:
            InputError: it is not UTF-8, or has an empty line or a name twice.
        """
        listed = f"{self.shards[0].parent}/classes.txt"
        try:
            text = self._text_beside("classes.txt")
        except UnicodeDecodeError:
            raise InputError(f"{listed} is not UTF-8; save it as UTF-8") from None
        if text is None:
            return None
        names = [name.strip() for name in text.rstrip().split("\n")]
        for i, name in enumerate(names):
            if not name or name in names[:i]:
                problem = f'has the class "{name}" twice' if name else "has an empty line"
                raise InputError(f"{listed} {problem} (line {i + 1}); give one class name per line")
        return names

    def _text_beside(self, name: str) -> str | None:
        """A text file in UTF-8 beside the shards; None if there is none."""
        file = Path(self.shards[0].parent) / name
        return file.read_text(encoding="utf-8-sig") if file.is_file() else None

    def _folder_labels(self, settings: Preparation) -> Column:
        """The class folders in the shards as labels; there are none if an image lies beside them."""
        names = first_folders(self.places)
        self.reading.conditions = UNCONDITIONAL
        if len(set(names)) < 2 or settings.label_column == NONE:
            return column_of_texts([""] * len(names), None, "")
        if "" in names:
            self.reading.notes.append(f"folders in the shards are not classes: {self.name(names.index(''))} is in none")
            return column_of_texts([""] * len(names), None, "")
        column = column_of_texts(names, None, str(self.shards[0].parent))
        self.reading.conditions = classes_from(len(column.classes), "folders in the shards")
        return column

    def _captions(self, listings: list[Listing], settings: Preparation) -> Column | None:
        """The captions in .txt or .json members; None if there are none."""
        if settings.caption_column == NONE:
            return None
        parts: list[tuple[int, int, str]] = []
        if any(listing.captions for listing in listings):
            parts = [lookup_key(listings[number].captions, name) or (0, 0, "") for number, name, *_ in self.places]
        count = sum(length > 0 for _, length, _ in parts)
        if not count:
            if settings.caption_column:
                raise InputError(
                    f'caption_column is "{settings.caption_column}", but no member has it; correct or remove it'
                )
            return None
        keys = sorted({key for _, length, key in parts if length})
        note_captions(count, " and ".join(_member_of(key or "txt") for key in keys), self.reading)
        return Column(self._texts(listings, parts))

    def _texts(self, listings: list[Listing], parts: list[tuple[int, int, str]]) -> Sequence[Any]:
        """The captions at these positions: (first byte, length, JSON key)."""
        return ShardTexts(self.shards, self.places, parts)


class ShardTexts(Texts):
    """The captions in the members of shards, which are read when they are needed; empty where there is none."""

    def __init__(self, shards: Sequence[ShardFile], places: list[Place], parts: list[tuple[int, int, str]]) -> None:
        """The captions at these positions: (first byte, length, JSON key)."""
        self.shards, self.keys = shards, sorted({key for *_, key in parts})
        number = {key: i for i, key in enumerate(self.keys)}
        self.parts = np.array(
            [(place[0], start, length, number[key]) for place, (start, length, key) in zip(places, parts, strict=True)],
            np.int64,
        )

    def __len__(self) -> int:
        return len(self.parts)

    def state(self, i: int) -> str:
        shard, start, length, key = self.parts[i].tolist()
        return f"{shard} {start} {length} {self.keys[key]}"  # the images have the times of the shards

    def text(self, i: int) -> Any:
        shard, start, length, key = self.parts[i].tolist()
        if not length:
            return ""
        file = self.shards[shard]
        return caption_text(bytes(read_part(file, start, length)), self.keys[key], f"at byte {start} of {file.name}")


def tar_parts(source_class: type[TarShards], text: str) -> list[str]:
    """The parts train, val and test of tar shards; empty if neither their names nor folders in them divide them.

    Raises:
        InputError: the shards cannot be read.
    """
    return list(source_class.from_text(text, Preparation(label_column=NONE, caption_column=NONE)).parts)


def chosen_shards(
    shards: Sequence[ShardFile], settings: Preparation, reading: Reading
) -> tuple[Sequence[ShardFile], list[str]]:
    """The shards of the part that is read and all parts, if the names divide the shards into train, val and test."""
    parts = [next((word for word in re.split("[^a-z]+", shard.stem.lower()) if word in SPLITS), "") for shard in shards]
    if settings.split == NONE or not are_splits(parts):
        return shards, []
    names = list(dict.fromkeys(parts))
    chosen = pick_split(settings.split, names, "the names of the shards")
    reading.split = describe_split(chosen, names)
    return [shard for shard, part in zip(shards, parts, strict=True) if part == chosen], names


def chosen_places(places: list[Place], settings: Preparation, reading: Reading) -> tuple[list[Place], list[str]]:
    """The images of the part that is read and all parts, if folders in the shards divide them into train, val and test.

    Raises:
        InputError: the user wants a part, and there are none.
    """
    folders = first_folders(places)
    if settings.split == NONE or not are_splits(folders):
        if settings.split not in ("", NONE) and not reading.split:
            raise InputError(f'split is "{settings.split}", but the shards have no parts train and val; remove split')
        return places, []
    names = list(dict.fromkeys(folders))
    chosen = pick_split(settings.split, names, "the folders in the shards")
    reading.split = describe_split(chosen, names)
    return [place for place, folder in zip(places, folders, strict=True) if folder == chosen], names


def first_folders(places: list[Place]) -> list[str]:
    """The first folder in which the paths of images differ; empty for an image that is in none."""
    folders = [name.rpartition("/")[0] for _, name, *_ in places]
    normal = {folder: os.path.normpath(folder) for folder in {*folders}}
    rooted = {folder.startswith("/") for folder in normal.values()}
    common = os.path.commonpath(normal.values()) if len(rooted) == 1 else ""
    skip = len(common) + 1 if common not in ("", ".") else 0
    first = {folder: "" if path == "." else path[skip:].partition("/")[0] for folder, path in normal.items()}
    return [first[folder] for folder in folders]


def _member_of(origin: str) -> str:
    """How messages call the origin of labels and captions."""
    return f".{origin} members" if origin in (CLS, "txt") else f'key "{origin}" of .json members'


def _visible_shards(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.name[0] != ".")
