"""Parquet files with images, as the hub has them: a file, a folder, a pattern, or a pattern in a store."""

from pathlib import Path
from typing import Any, Self

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.file_cache import file_cache
from ditlab.core.formats import interpreting, reason
from ditlab.core.stores import is_url
from ditlab.data.identity import content_hash
from ditlab.data.reading import Reading
from ditlab.data.sources.hugging_face import HuggingFace
from ditlab.data.sources.patterns import expand_braces, is_pattern, matching_files
from ditlab.data.sources.splits import named_part, one_part
from ditlab.data.sources.tar import chosen_shards

SUFFIX = ".parquet"
FOOTER = 2**16  # last bytes of a file, which say where its rows lie and what values they have


class Parquet(HuggingFace):
    """The images of Parquet files."""

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        text, _ = named_part(text)
        if text.endswith(SUFFIX):
            return True
        return not is_url(text) and Path(text).is_dir() and any(Path(text).glob(f"*{SUFFIX}"))

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open Parquet files; those in a store are copied whole.

        Raises:
            InputError: the library is not installed, or the files do not exist or cannot be read.
        """
        try:
            import datasets  # type: ignore[import-untyped]
        except ImportError:
            raise InputError("Parquet files need the datasets library; pip install 'ditlab[data]'") from None
        given, (text, part) = text, named_part(text)
        settings, reading = one_part(part, settings, given), Reading()
        files, parts = chosen_shards(parquet_files(text), settings, reading)
        try:
            table = datasets.load_dataset("parquet", data_files=[str(file) for file in files], split="train")
        except Exception as error:  # the library raises exceptions of many types
            raise InputError(f"cannot read {text}: {reason(error)}; copy the files again") from error
        with interpreting(f"the data set {text}", "copy the files again"):
            source = cls(with_images(table), text, settings)
        source.reading.split, source.parts = reading.split, parts
        source.fingerprint = fingerprint([Path(str(file)) for file in files])
        return source


def parquet_files(text: str) -> list[Path]:
    """The files that a text stands for.

    Raises:
        InputError: there are none, or the store cannot be used.
    """
    if is_url(text):
        folder, _, name = text.rpartition("/")
        files = sorted(file_cache().mirror(folder, *expand_braces(name)).iterdir())
    elif Path(text).is_dir():
        files = sorted(Path(text).glob(f"*{SUFFIX}"))
    else:
        files = [Path(name) for name in matching_files(text)] if is_pattern(text) else [Path(text)]
    if missing := [file for file in files if not file.is_file()]:
        raise InputError(
            f"no Parquet file {missing[0]}; {nearest_path(missing[0], 'give an existing file or pattern')}"
        )
    if not files:
        raise InputError(f"no Parquet file {text}; give an existing file, folder or pattern")
    return files


def with_images(table: Any) -> Any:
    """A table whose columns of bytes are columns of images; those of the hub's data sets are already."""
    from datasets import Image

    for name, feature in table.features.items():
        dtype = getattr(feature["bytes"] if isinstance(feature, dict) and "bytes" in feature else feature, "dtype", "")
        if dtype in ("binary", "large_binary"):
            table = table.cast_column(name, Image(decode=False))
    return table


def fingerprint(files: list[Path]) -> int:
    """A number that depends on the content of files, without reading them completely, and not on their place."""
    parts = []
    for file in files:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - FOOTER))
            parts.append(b"%s %d %s" % (file.name.encode(), file.stat().st_size, opened.read()))
    return content_hash(b"\n".join(parts))
