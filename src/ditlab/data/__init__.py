"""Pictures with labels. A new built-in set is one function and one line in `DATASETS`."""

from collections.abc import Callable
from pathlib import Path

from ditlab.config.reader import parse_size
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest
from ditlab.data.base import Dataset, ahead, training_order
from ditlab.data.builtin.digits import named_digits
from ditlab.data.builtin.glyphs import named_glyphs
from ditlab.data.images import Pictures
from ditlab.data.latents.cache import Latents, is_cache
from ditlab.data.npz import SampleFile
from ditlab.data.preprocess import Preprocess
from ditlab.data.sources import open_source

DATASETS: dict[str, Callable[[str], Dataset]] = {"digits": named_digits, "glyphs": named_glyphs}
"""By the first part of the name, up to a hyphen; the whole name is handed on."""

__all__ = [
    "DATASETS",
    "Dataset",
    "Latents",
    "Preprocess",
    "SampleFile",
    "ahead",
    "is_cache",
    "open_dataset",
    "open_source",
    "training_order",
]


def open_dataset(source: str, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
    """A built-in data set by name, a latent cache, or one's own pictures.

    Args:
        source: "digits", "glyphs-SIZE" (both also with "-held-out"), a cache, a folder, tar shards, a sample file
            (.npz), or "hf:NAME[:SPLIT]".
        settings: how pictures are made equally large.
        report: where to list pictures that were skipped.

    Raises:
        InputError: nothing there, or settings that do not go with it.
    """
    settings = settings or Preparation()
    preprocess = preprocessing(settings)
    if source.partition("-")[0] in DATASETS and not Path(source).exists():
        made: Dataset = DATASETS[source.partition("-")[0]](source)
        _same_size(made, preprocess, f"data {source}")
        return made
    if is_cache(Path(source)):
        cache = Latents(Path(source))
        _same_size(cache, preprocess, f"the cache {source}")
        return cache
    if source.endswith(".npz"):
        return SampleFile(Path(source))
    known = source.startswith("hf:") or source.endswith(".tar") or "*" in source or Path(source).is_dir()
    if not known:
        raise InputError(f'no data "{source}"; give an existing folder of classes, or {nearest(source, DATASETS)}')
    pictures = open_source(source, settings.labels)
    return Pictures(pictures, preprocess, report=report, max_skipped=settings.max_skipped)


def preprocessing(settings: Preparation) -> Preprocess | None:
    """How the settings want pictures made equally large; None without a size.

    Raises:
        InputError: settings that need a size.
    """
    if settings.size:
        channels = 1 if settings.grey else 3
        return Preprocess(parse_size(settings.size), settings.fit, settings.flip, settings.background, channels)
    for key in ("fit", "flip", "grey", "background"):
        if getattr(settings, key) != getattr(Preparation(), key):
            raise InputError(f"{key} is {getattr(settings, key)}, but no size is given; give --size (data.size) too")
    return None


def _same_size(dataset: Dataset, preprocess: Preprocess | None, what: str) -> None:
    if preprocess is not None and preprocess.size != dataset.size:
        (height, width), (asked_height, asked_width) = dataset.size, preprocess.size
        raise InputError(
            f"{what} has pictures of {height}x{width}, not {asked_height}x{asked_width}; leave the size out"
        )
