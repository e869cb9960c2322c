"""Sources of images: folders, tar shards, Hugging Face data sets. A new source is one file and a line in `SOURCES`."""

from ditlab.core.errors import InputError
from ditlab.core.spelling import expand
from ditlab.data.sources.base import MIN_SIDE, Column, Source, Unreadable
from ditlab.data.sources.folder import SUFFIXES, Folder, walk
from ditlab.data.sources.hugging_face import HuggingFace
from ditlab.data.sources.table import Table
from ditlab.data.sources.tar import TarShards

SOURCES: dict[str, type[Source]] = {"hf": HuggingFace, "tar": TarShards, "table": Table, "folder": Folder}
"""Name -> source class, in the order in which they are tried."""

__all__ = ["MIN_SIDE", "SOURCES", "SUFFIXES", "Column", "Source", "Unreadable", "find_source", "open_source", "walk"]


def find_source(text: str, labels: str = "") -> type[Source] | None:
    """The class of the source that a string names; None if there is none.

    Args:
        text: path, pattern or hub name.
        labels: a CSV or JSONL file with the labels of a flat folder.
    """
    return next((source for source in SOURCES.values() if source.matches(text, labels)), None)


def open_source(text: str, labels: str = "") -> Source:
    """Open images from a folder of classes, a flat folder, tar shards (file, folder or pattern), or "hf:NAME[:SPLIT]".

    Args:
        text: path, pattern or hub name.
        labels: a CSV or JSONL file with the labels of a flat folder.

    Raises:
        InputError: the source does not exist, is empty, or does not match the label file.
    """
    text, labels = expand(text), expand(labels)
    source_class = find_source(text, labels)
    if source_class is None:
        raise InputError(f'no data at "{text}"; give an existing folder of images')
    if labels and source_class.has_labels:
        raise InputError(f"labels {labels} cannot be used: {text} has its own labels; omit the label file")
    source = source_class.from_text(text, labels)
    if not len(source):
        raise InputError(f"no images in {text}; put some there ({', '.join(SUFFIXES)})")
    return source
