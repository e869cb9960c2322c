"""Recognize which kind of data source a string names, such as "digits", "images/", "hf:mnist" or "samples.npz"."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from ditlab.config.reader import parse_size
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest
from ditlab.core.spelling import expand
from ditlab.core.stores import is_url
from ditlab.data.base import Dataset
from ditlab.data.buckets import MULTIPLE, Native
from ditlab.data.builtin import DATASETS, find_builtin
from ditlab.data.clips.dataset import Clips
from ditlab.data.clips.timing import timing_of
from ditlab.data.content import digest, files_identity, images_identity
from ditlab.data.images import NATIVE, Images
from ditlab.data.latents.cache import Latents, is_cache, is_stored_cache, stored_shards
from ditlab.data.npz import SampleFile, read_about
from ditlab.data.preprocess import Preprocess
from ditlab.data.reading import UNCONDITIONAL, classes_from
from ditlab.data.sources import (
    Source,
    check_used,
    find_source,
    held_out_name,
    is_output,
    open_source,
    source_and_part,
    where_data_may_be,
)
from ditlab.data.sources.columns import NONE
from ditlab.data.sources.dataset import DatasetImages
from ditlab.data.sources.hugging_face import on_hub
from ditlab.data.sources.part import HELD_OUT, TRAIN
from ditlab.data.sources.splits import SPLITS
from ditlab.data.trajectories.files import FileTrajectories

CHOICES = ("split", "image_column", "label_column", "caption_column", "held_out")
"""Settings that choose what is read of a data set."""
SIZING = ("size", "pixels", "multiple")
"""Settings of the size of images."""
IN_PYTHON = "python:"
"""Beginning of the name of data that were given in Python, which cannot be opened again."""
DIVISION = ("held_out", "labels", "label_column", "image_column")
"""Settings on which the division into training and held-out images depends."""


@dataclass(frozen=True)
class SourceSpec(ABC):
    """A data source that a string names; nothing is opened yet."""

    text: str
    resizable: ClassVar[bool] = False
    """Whether its images can be resized when they are read."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str, settings: Preparation) -> Self | None:
        """The source, or None if the string does not name a source of this class with these settings."""

    @abstractmethod
    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        """Open the data set.

        Args:
            settings: how images are brought to one size.
            report: CSV file to which the names of skipped images are written.

        Raises:
            InputError: the data cannot be read, or the settings do not suit it.
        """

    def images(self, settings: Preparation | None = None) -> Source:
        """The images by index and name, for a survey.

        Raises:
            InputError: a setting has no effect, or the images have another size than required.
        """
        return DatasetImages(self.open(settings), self.text)

    def identity(self, settings: Preparation | None = None) -> str:
        """Hash of the content; see `content_identity`."""
        return digest([self.text])

    def held_out(self) -> "SourceSpec | None":
        """The source of the held-out images; None if there is none."""
        return None

    def default_features(self) -> str:
        """Name of the feature network that evaluations use by default."""
        return "inception"


class Builtin(SourceSpec):
    """A data set that comes with ditlab, or that a plug-in registered."""

    @classmethod
    def parse(cls, text: str, settings: Preparation) -> Self | None:
        place, part = source_and_part(text)
        if part and place.isidentifier():  # a folder that does not exist, and not a class in the module of this name
            return None
        return cls(text) if find_builtin(text) is not None else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        settings, opened = settings or Preparation(), self._dataset()
        if settings.held_out and opened.held_out_name:
            raise InputError(
                f"held_out is {settings.held_out:g}, but the data set {self.text} has held-out images of its own "
                f"({opened.held_out_name}); remove held_out"
            )
        check_used(settings, frozenset({*SIZING}), f"the data set {self.text}")
        _check_size(opened, settings, f"data {self.text}")
        _describe(opened, "the data set")
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
    def parse(cls, text: str, settings: Preparation) -> Self | None:
        return cls(text) if is_cache(Path(text)) or is_stored_cache(text) else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        check_used(settings or Preparation(), frozenset({*SIZING}), f"the latent cache {self.text}")
        cache = Latents.open(self.text)
        _check_size(cache, settings, f"the cache {self.text}")
        _describe(cache, "the cache")
        if share := cache.preprocessing.get("held_out"):
            part = cache.preprocessing["split"]
            cache.reading.split = f"{part} (a share of {share:g} of each class is held out, as {HELD_OUT})"
        return cache

    def identity(self, settings: Preparation | None = None) -> str:
        if is_url(self.text):
            return digest([f"{name} {file.size} {file.version}" for name, file in stored_shards(self.text).items()])
        return files_identity(str(Path(self.text) / "shards"))

    def images(self, settings: Preparation | None = None) -> Source:
        raise InputError(f"{self.text} is a latent cache and holds no images; give the source of its images")


class SampleNpz(SourceSpec):
    """A sample file, or a reference (.npz)."""

    @classmethod
    def parse(cls, text: str, settings: Preparation) -> Self | None:
        return cls(text) if text.endswith(".npz") else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        settings = settings or Preparation()
        check_used(settings, frozenset({*SIZING, "range", "show"}), f"the sample file {self.text}")
        opened = SampleFile(Path(self.text), range=settings.range, show=settings.show)
        _check_size(opened, settings, self.text)
        _describe(opened, "arr_1")
        return opened

    def identity(self, settings: Preparation | None = None) -> str:
        return files_identity(self.text)

    def default_features(self) -> str:
        """The features in a reference of ditlab; Inception's for other files."""
        return str(read_about(Path(self.text)).get("features", "inception"))


@dataclass(frozen=True)
class ImageFiles(SourceSpec):
    """Images in a folder, in tar shards or in a Hugging Face data set: any source in `SOURCES`."""

    resizable = True
    split: str = ""
    """The part of a divided data set that is read."""
    share: float = 0.0
    """Share of the images that are held out; 0 for a data set that is not divided, or has parts of its own."""

    @classmethod
    def parse(cls, text: str, settings: Preparation) -> Self | None:
        if Path(text).is_dir() and find_builtin(text) is not None and is_output(Path(text)):
            return None  # such as the run folder "digits", whose lock is made before the data are opened
        split = settings.split or (NONE if settings.labels else "")  # a table lists the images of all parts
        return cls(text, split, settings.held_out) if find_source(text, settings) else None

    def open(self, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
        settings = settings or Preparation()
        if settings.trajectories:
            images = self.images(settings)
            return FileTrajectories(images, stride=settings.stride, range=settings.range, show=settings.show)
        preprocess, timing = preprocessing(settings), timing_of(settings)
        if timing is not None:
            images = self.images(settings)
            return Clips(images, timing, preprocess, report=report, max_skipped=settings.max_skipped)
        return Images(
            self.images(settings),
            preprocess,
            report=report,
            max_skipped=settings.max_skipped,
            range=settings.range,
            show=settings.show,
        )

    def images(self, settings: Preparation | None = None) -> Source:
        timing_of(settings or Preparation())  # before a long listing
        source = open_source(self.text, settings)
        if Path(self.text).is_dir() and find_builtin(self.text) is not None:
            source.reading.notes.append(f"the folder {self.text} is read, and not the built-in data set of this name")
        return source

    def identity(self, settings: Preparation | None = None) -> str:
        if on_hub(self.text):  # no download for a hash
            settings = settings or Preparation()
            return digest([self.text, *(f"{key}={value}" for key in CHOICES if (value := getattr(settings, key)))])
        return images_identity(self.images(settings))

    def held_out(self) -> SourceSpec | None:
        """The val part of a divided data set, otherwise its test part; it is opened with the same settings."""
        if self.share:
            place, part = source_and_part(self.text)
            is_training = SPLITS.get((part or self.split).lower(), TRAIN) == TRAIN
            return replace(self, text=f"{place}:{HELD_OUT}", split="") if is_training else None
        name = held_out_name(self.text, self.split)
        return parse_source(name) if name else None


SPECS: tuple[type[SourceSpec], ...] = (Cache, SampleNpz, ImageFiles, Builtin)
"""All kinds of data sources, in the order in which they are tried."""


def find_spec(text: str, settings: Preparation | None = None) -> SourceSpec | None:
    """The data source that a string names; None if it names no data source."""
    text, settings = expand(text), settings or Preparation()
    if not text:  # which `Path` takes for the present folder
        return None
    return next((spec for spec_class in SPECS if (spec := spec_class.parse(text, settings)) is not None), None)


def parse_source(text: str, settings: Preparation | None = None) -> SourceSpec:
    """The data source that a string names.

    Args:
        text: a built-in data set, a latent cache, a sample file, a folder, tar shards, or "hf:NAME[:SPLIT]".
        settings: how it is read; a label file makes a folder a table.

    Raises:
        InputError: the string names no data source.
    """
    spec = find_spec(text, settings)
    if spec is None:
        remedy = f"give an existing folder of images, or {nearest(text, DATASETS)}"
        raise InputError(f'no data "{text}"; {where_data_may_be(text, remedy)}')
    return spec


def preprocessing(settings: Preparation) -> Preprocess:
    """The preprocessing that settings describe; without a size, images keep theirs.

    Raises:
        InputError: two settings contradict each other, or there is no size and another setting needs one.
    """
    if settings.gray and settings.channels not in (None, 1):
        raise InputError(f"gray with channels = {settings.channels}; remove one of them")
    if not settings.size and settings.fit != Preparation().fit:
        raise InputError(f"fit is {settings.fit}, but no size is given; set data.size too")
    native = native_size(settings)
    size = parse_size(settings.size) if settings.size and native is None else None
    channels = 1 if settings.gray else settings.channels
    return Preprocess(size, settings.fit, settings.flip, settings.background, channels, native=native)


def native_size(settings: Preparation) -> Native | None:
    """The budget of images that keep their aspect ratio; None if they get one size.

    Raises:
        InputError: the budget is missing, or has no effect.
    """
    if settings.size == NATIVE and settings.pixels is None:
        raise InputError("size is native, but pixels is not set; give it, such as 65536 for as many as in 256x256")
    if settings.size == NATIVE and settings.pixels is not None:
        return Native(settings.pixels, settings.multiple or MULTIPLE, settings.frame_multiple or 1)
    for name in ("pixels", "multiple", "frame_multiple"):
        if (value := getattr(settings, name)) is not None:
            raise InputError(f"{name} is {value}, which only size = native uses; remove it, or set size to native")
    return None


def as_divided(text: str, settings: Preparation, trained: Preparation) -> Preparation:
    """The settings with which a source is read: if it names a part, such as "photos:val", as a training divided it.

    Args:
        text: the data source.
        settings: how the images are read otherwise.
        trained: how the images were read in the training of a model.

    Raises:
        InputError: the parts of a data set cannot be listed.
    """
    place, part = source_and_part(expand(text))
    divided = trained.held_out and part and isinstance(find_spec(place), ImageFiles) and not held_out_name(place, TRAIN)
    values = {key: getattr(settings, key) or getattr(trained, key) for key in DIVISION} if divided else {}
    return replace(settings, **values)


def training_part(text: str) -> str:
    """The name of the training part of a source that names no part."""
    return text if source_and_part(text)[1] else f"{text}:{TRAIN}"


def _check_size(dataset: Dataset, settings: Preparation | None, what: str) -> None:
    preprocess = preprocessing(settings or Preparation())
    if preprocess.native is not None and dataset.buckets is None:
        own = "x".join(map(str, dataset.size))
        raise InputError(f"{what} has images of one size, {own}; omit data.size, data.pixels and data.multiple")
    if preprocess.native is not None and dataset.preprocessing.get("size") == NATIVE:
        pixels, multiple = (dataset.preprocessing[key] for key in ("pixels", "multiple"))
        if (pixels, multiple) != (preprocess.native.pixels, preprocess.native.multiple):
            raise InputError(
                f"{what} was encoded with pixels = {pixels} and multiple = {multiple}, not {preprocess.native.pixels} "
                f"and {preprocess.native.multiple}; omit data.size, data.pixels and data.multiple"
            )
    if preprocess.size is not None and preprocess.size != dataset.size:
        actual, required = ("x".join(map(str, size)) for size in (dataset.size, preprocess.size))
        raise InputError(f"{what} has images of {actual}, not {required}; omit the size")


def _describe(dataset: Dataset, origin: str) -> None:
    """Say where the classes come from, unless the data set says so itself."""
    if dataset.reading.conditions == UNCONDITIONAL and dataset.classes:
        dataset.reading = replace(dataset.reading, conditions=classes_from(len(dataset.classes), origin))


def content_identity(text: str, settings: Preparation | None = None) -> str:
    """Hash that identifies the content of a data source, 16 digits; it does not depend on the place of the files.

    It covers names, labels, sizes and modification times of the images, and captions; for an .npz file, names, sizes
    and checksums of its members; for data sets that are built in or on the hub, and for those of a caller, their names.
    Features are not hashed: their last digits depend on the machine.

    Args:
        text: the data source.
        settings: how it is read: its split and columns.

    Raises:
        InputError: the source cannot be listed.
    """
    spec = find_spec(text, settings)
    return files_identity(text) if spec is None else spec.identity(settings)
