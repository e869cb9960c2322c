"""Data sets of the `datasets` library, from the hub ("hf:NAME[:SPLIT]") or from a folder of `save_to_disk`."""

from pathlib import Path
from typing import Any, Self

from PIL import Image

from ditlab.core.errors import InputError, lookup
from ditlab.data.identity import Stamp, content_hash
from ditlab.data.sources.base import Source, label_column

PREFIX = "hf:"


class HuggingFace(Source):
    """The first image column of a data set, and its first class column if it has one."""

    def __init__(self, table: Any, title: str) -> None:
        """Wrap a `datasets.Dataset`.

        Raises:
            InputError: there is no column of images, or some rows have no label.
        """
        from datasets import ClassLabel  # type: ignore[import-untyped]
        from datasets import Image as ImageColumn

        features = table.features.items()
        images = [name for name, feature in features if isinstance(feature, ImageColumn)]
        labels = [name for name, feature in features if isinstance(feature, ClassLabel)]
        if not images:
            raise InputError(
                f"{title} has no column of images (it has {', '.join(table.features)}); give a data set with one"
            )
        self.image_column, self.title = images[0], title
        # The column may be set to return bytes.
        self.table = table.select_columns(images[:1]).cast_column(self.image_column, ImageColumn())
        rows = list(table[labels[0]]) if labels else [0] * len(table)
        unlabeled = [i for i, row in enumerate(rows) if row is None or row < 0]
        if unlabeled:
            raise InputError(
                f"{title}[{unlabeled[0]}] has no label ({len(unlabeled)} rows without one); "
                "remove these rows and save the data set again"
            )
        self.columns = {"label": label_column(rows, list(table.features[labels[0]].names) if labels else [])}

    @classmethod
    def matches(cls, text: str, labels: str) -> bool:
        return text.startswith(PREFIX) or _is_saved(Path(text))

    @classmethod
    def from_text(cls, text: str, labels: str) -> Self:
        """Load from the hub or from a saved folder.

        Raises:
            InputError: the library is not installed, or it cannot open the data set or the split.
        """
        try:
            import datasets
        except ImportError:
            raise InputError("data sets of the hub need the datasets library; pip install 'ditlab[data]'") from None
        text = text.removeprefix(PREFIX)
        name, _, split = text.partition(":")
        try:
            saved = _is_saved(Path(name))
            table = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split or "train")
        except Exception as error:  # the library raises exceptions of many types
            raise InputError(f"cannot open the data set {text}: {' '.join(str(error).split())[:200]}") from error
        if isinstance(table, datasets.DatasetDict):
            table = lookup(table, split or "train", f"split of {name}:")
        elif saved and split and split != str(table.split):
            raise InputError(f"{name} has no splits; omit :{split}")
        return cls(table, name)

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def raw(self, i: int) -> Image.Image:
        image: Image.Image = self.table[i][self.image_column]
        return image

    def stamp(self, i: int) -> Stamp:
        fingerprint = content_hash(str(self.table._fingerprint).encode())  # of all rows
        return Stamp(str(i), 0, fingerprint)

    def content(self, i: int) -> bytes:
        from datasets import Image as ImageColumn

        stored = self.table.cast_column(self.image_column, ImageColumn(decode=False))[i][self.image_column]
        return stored["bytes"] or Path(stored["path"]).read_bytes()


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library."""
    needed = [path / name for name in ("dataset_info.json", "state.json")]
    return (path / "dataset_dict.json").is_file() or all(file.is_file() for file in needed)
