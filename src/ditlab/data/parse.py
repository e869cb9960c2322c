"""Recognize which kind of data source a string names, such as "digits", "images/", "hf:mnist" or "samples.npz"."""

import hashlib
import zipfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from ditlab.config.reader import parse_size
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest
from ditlab.core.spelling import expand, nfc
from ditlab.data.base import Dataset
from ditlab.data.builtin import DATASETS, find_builtin
from ditlab.data.images import Images
from ditlab.data.latents.cache import Latents, is_cache
from ditlab.data.npz import SampleFile, array_names, read_about
from ditlab.data.preprocess import Preprocess
from ditlab.data.sources import Source, find_source, open_source
from ditlab.data.sources.dataset import DatasetImages


@dataclass(frozen=True)
class SourceSpec(ABC):
    """A data source that a string names; nothing is opened yet."""

    text: str
    resizable: ClassVar[bool] = False
    """Whether its images can be resized when they are read."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str, labels: str = "") -> Self | None:
        """The source, or None if the string does not name a source of this class.

        Args:
            text: the string.
            labels: a CSV or JSONL file with the labels of a flat folder, or empty.
        """

    @abstractmethod
    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        """Open the data set.

        Args:
            settings: how images are brought to one size.
            report: CSV file to which the names of skipped images are written.

        Raises:
            InputError: the data cannot be read, or the settings do not suit it.
        """

    def images(self, labels: str = "") -> Source:
        """The images by index and name, for a survey."""
        return DatasetImages(self.open(), self.text)

    def identity(self) -> str:
        """Hash of the content; see `content_identity`."""
        return content_identity(self.text)

    def held_out(self) -> "SourceSpec | None":
        """The source of the held-out images; None if there is none."""
        return None

    def default_features(self) -> str:
        """Name of the feature network that evaluations use by default."""
        return "inception"


class Builtin(SourceSpec):
    """A data set that comes with ditlab, or that a plug-in registered."""

    @classmethod
    def parse(cls, text: str, labels: str = "") -> Self | None:
        return cls(text) if find_builtin(text) is not None else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        opened = self._dataset()
        _check_size(opened, settings, f"data {self.text}")
        return opened

    def held_out(self) -> SourceSpec | None:
        name = self._dataset().held_out_name
        return parse_source(name) if name else None

    def default_features(self) -> str:
        return self._dataset().features

    def _dataset(self) -> Dataset:
        make = find_builtin(self.text)
        assert make is not None
        return make(self.text)


class Cache(SourceSpec):
    """A latent cache."""

    @classmethod
    def parse(cls, text: str, labels: str = "") -> Self | None:
        return cls(text) if is_cache(Path(text)) else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        cache = Latents(Path(self.text))
        _check_size(cache, settings, f"the cache {self.text}")
        return cache

    def images(self, labels: str = "") -> Source:
        raise InputError(f"{self.text} is a latent cache and holds no images; give the source of its images")


class SampleNpz(SourceSpec):
    """A sample file, or a reference (.npz)."""

    @classmethod
    def parse(cls, text: str, labels: str = "") -> Self | None:
        return cls(text) if text.endswith(".npz") else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        preprocessing(settings or Preparation())
        return SampleFile(Path(self.text))

    def default_features(self) -> str:
        """The features in a reference of ditlab; Inception's for other files."""
        return str(read_about(Path(self.text)).get("features", "inception"))


class ImageFiles(SourceSpec):
    """Images in a folder, in tar shards or in a Hugging Face data set: any source in `SOURCES`."""

    resizable = True

    @classmethod
    def parse(cls, text: str, labels: str = "") -> Self | None:
        return cls(text) if find_source(text, labels) else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        settings = settings or Preparation()
        preprocess = preprocessing(settings)
        source = open_source(self.text, settings.labels)
        return Images(source, preprocess, report=report, max_skipped=settings.max_skipped)

    def images(self, labels: str = "") -> Source:
        return open_source(self.text, labels)


SPECS: tuple[type[SourceSpec], ...] = (Cache, SampleNpz, ImageFiles, Builtin)
"""All kinds of data sources, in the order in which they are tried."""


def find_spec(text: str, labels: str = "") -> SourceSpec | None:
    """The data source that a string names; None if it names no data source."""
    text, labels = expand(text), expand(labels)
    return next((spec for spec_class in SPECS if (spec := spec_class.parse(text, labels)) is not None), None)


def parse_source(text: str, labels: str = "") -> SourceSpec:
    """The data source that a string names.

    Args:
        text: a built-in data set, a latent cache, a sample file, a folder, tar shards, or "hf:NAME[:SPLIT]".
        labels: a CSV or JSONL file with the labels of a flat folder.

    Raises:
        InputError: the string names no data source.
    """
    spec = find_spec(text, labels)
    if spec is None:
        raise InputError(f'no data "{text}"; give an existing folder of images, or {nearest(text, DATASETS)}')
    return spec


def preprocessing(settings: Preparation) -> Preprocess | None:
    """The preprocessing that settings describe; None if they have no size.

    Raises:
        InputError: there is no size, and another setting needs one.
    """
    if settings.size:
        height, width = parse_size(settings.size)
        channels = 1 if settings.gray else 3
        return Preprocess((height, width), settings.fit, settings.flip, settings.background, channels)
    for key in ("fit", "flip", "gray", "background"):
        if getattr(settings, key) != getattr(Preparation(), key):
            raise InputError(f"{key} is {getattr(settings, key)}, but no size is given; set data.size too")
    return None


def _check_size(dataset: Dataset, settings: Preparation | None, what: str) -> None:
    preprocess = preprocessing(settings or Preparation())
    if preprocess is not None and preprocess.size != dataset.size:
        actual, required = ("x".join(map(str, size)) for size in (dataset.size, preprocess.size))
        raise InputError(f"{what} has images of {actual}, not {required}; omit the size")


def content_identity(text: str) -> str:
    """Hash that identifies the content of a data source, 16 digits; it does not depend on the place of the files.

    It covers names in the folder, sizes and modification times of files; for an .npz file, names, sizes and checksums
    of its members; otherwise the string itself. Features are not hashed: their last digits depend on the machine.
    """
    path = Path(expand(text))
    if path.suffix == ".npz" and path.is_file():
        array_names(path)
        with zipfile.ZipFile(path) as archive:
            lines = [f"{part.filename} {part.file_size} {part.CRC}" for part in archive.infolist()]
    elif files := files_of(path):
        states = sorted((name, file.stat()) for name, file in files.items())
        lines = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states]
    else:
        lines = [text]  # built in, or on a hub
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def files_of(path: Path) -> dict[str, Path]:
    """All files that a path or pattern names: composed name in the folder -> path. A single file has no name."""
    if path.is_dir():
        return {nfc(str(file.relative_to(path).as_posix())): file for file in path.rglob("*") if file.is_file()}
    if path.is_file():
        return {"": path}
    return {nfc(file.name): file for file in path.parent.glob(path.name)} if "*" in path.name else {}
