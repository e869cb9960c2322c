"""Sources of images: folders, tar shards, Hugging Face data sets. A new source is one file and a line in `SOURCES`."""

from dataclasses import fields

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.sources.base import MIN_SIDE, Column, Raster, Source, Unreadable
from ditlab.data.sources.folder import SUFFIXES, Folder, walk
from ditlab.data.sources.hugging_face import HuggingFace
from ditlab.data.sources.table import Table
from ditlab.data.sources.tar import TarShards

SOURCES: dict[str, type[Source]] = {"hf": HuggingFace, "tar": TarShards, "table": Table, "folder": Folder}
"""Name -> source class, in the order in which they are tried."""

__all__ = [
    "MIN_SIDE",
    "SOURCES",
    "SUFFIXES",
    "Column",
    "Raster",
    "Source",
    "Unreadable",
    "find_source",
    "open_source",
    "walk",
]


def find_source(text: str, settings: Preparation | None = None) -> type[Source] | None:
    """The class of the source that a string names; None if there is none.

    Args:
        text: path, pattern or hub name.
        settings: a label file makes a folder a table.
    """
    settings = settings or Preparation()
    return next((source for source in SOURCES.values() if source.matches(text, settings)), None)


def open_source(text: str, settings: Preparation | None = None) -> Source:
    """Open images from a folder of classes, a flat folder, tar shards (file, folder or pattern), or "hf:NAME[:SPLIT]".

    Args:
        text: path, pattern or hub name.
        settings: the columns, the label file and the split to read.

    Raises:
        InputError: the source does not exist, is empty, does not match the label file, or makes no use of a setting.
    """
    settings = settings or Preparation()
    source_class = find_source(text, settings)
    if source_class is None:
        raise InputError(f'no data at "{text}"; give an existing folder of images')
    check_used(settings, source_class.uses, text)
    source = source_class.from_text(text, settings)
    source.min_side = settings.min_side
    if not len(source):
        raise InputError(f"no images in {text}; put some there ({', '.join(SUFFIXES)})")
    return source


def check_used(settings: Preparation, uses: frozenset[str], what: str) -> None:
    """Check that all settings that differ from their default have an effect.

    Args:
        settings: how images are read.
        uses: names of the settings that have an effect.
        what: the data source, for the message.

    Raises:
        InputError: a setting without effect.
    """
    for field in fields(Preparation):
        value = getattr(settings, field.name)
        if field.name not in uses and value != field.default:
            raise InputError(f"{field.name} is {value!r}, which has no effect on {what}; remove it")
