"""Pictures with labels. A new built-in set is one function and one line in `DATASETS`."""

from collections.abc import Callable
from pathlib import Path

from ditlab.data.base import Dataset, training_order
from ditlab.data.cache import Latents, is_cache
from ditlab.data.digits import digits
from ditlab.data.folder import folder
from ditlab.errors import InputError, nearest

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits}

__all__ = ["DATASETS", "Dataset", "Latents", "open_dataset", "training_order"]


def open_dataset(source: str) -> Dataset:
    """A built-in data set by name, or a folder of classes by path."""
    if source in DATASETS:
        return DATASETS[source]()
    if is_cache(Path(source)):
        return Latents(Path(source))
    if Path(source).is_dir():
        return folder(Path(source))
    raise InputError(f'no data "{source}"; give an existing folder of classes, or {nearest(source, DATASETS)}')
