"""Data sets: built-in ones, your images, sample files and latent caches."""

from pathlib import Path

from ditlab.config.fields import check_settings
from ditlab.config.sections import Preparation
from ditlab.data.base import Dataset, InMemory, ahead, training_order
from ditlab.data.builtin import DATASETS
from ditlab.data.images import Images
from ditlab.data.latents.cache import Latents, is_cache
from ditlab.data.npz import SampleFile
from ditlab.data.parse import SourceSpec, find_spec, parse_source, preprocessing
from ditlab.data.preprocess import Preprocess
from ditlab.data.sources import SOURCES, open_source
from ditlab.data.wrap import from_torch

__all__ = [
    "DATASETS",
    "SOURCES",
    "Dataset",
    "Images",
    "InMemory",
    "Latents",
    "Preprocess",
    "SampleFile",
    "SourceSpec",
    "ahead",
    "find_spec",
    "from_torch",
    "is_cache",
    "open_dataset",
    "open_source",
    "parse_source",
    "preprocessing",
    "training_order",
]


def open_dataset(source: str, settings: Preparation | None = None, report: Path | None = None) -> Dataset:
    """Open the data set that a string names.

    Args:
        source: "digits", "glyphs-SIZE" (both also with "-held-out"), a latent cache, a folder, tar shards, a sample
            file (.npz), or "hf:NAME[:SPLIT]".
        settings: how images are brought to one size.
        report: CSV file to which the names of skipped images are written.

    Raises:
        InputError: the source does not exist, a number is outside its range, or the settings do not suit the data.
    """
    if settings is not None:
        check_settings(settings)
    return parse_source(source, settings).open(settings, report)
