"""What a latent cache holds and how it was made, in its file description.json and in its index."""

import json
import operator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError
from ditlab.core.formats import check_types, interpreting, read_object
from ditlab.core.io import is_vacant, replace_text
from ditlab.core.units import describe_difference
from ditlab.core.values import PixelValues
from ditlab.data.preprocess import Preprocess

DESCRIPTION = "description.json"
IMAGES = ("source", "images", "classes")  # keys of a description that follow from the images
UNPREPARED = {key: getattr(Preprocess(None), key) for key in ("fit", "flip", "background")}
TYPES = {
    "source": str, "images": int, "channels": int, "preprocessing": dict, "autoencoder": str, "dtype": str,
    "classes": list, "shard": int, "values": dict, "native": dict, "features": dict,
}  # fmt: skip
"""Types of the values of a description."""
RENAMED = {"pictures": "images"}  # keys of caches that earlier versions wrote


@dataclass(frozen=True)
class Description:
    """Description of a cache; two caches are interchangeable if their descriptions are equal."""

    source: str
    images: int
    """Number of images of the source, including mirrored copies and unreadable images."""
    channels: int
    size: tuple[int, ...]
    """(height, width) of the images, or (frames, height, width) of the videos."""
    preprocessing: dict[str, Any]
    autoencoder: str
    """Hash of the configuration and weights of the autoencoder."""
    shape: tuple[int, ...]
    """(2c, h, w) or (2c, t, h, w): the moments of one image or video."""
    dtype: str
    classes: list[str]
    shard: int
    """Images of the source in each shard."""
    values: dict[str, Any] = field(default_factory=dict)
    """What the numbers of the images are; empty for 8 bits."""
    native: dict[str, int] = field(default_factory=dict)
    """`pixels` and `frame_multiple` of `ditlab.data.buckets.Buckets`, if images have several sizes; size and shape are
    then those of most. Empty if all have one size."""
    features: dict[str, Any] = field(default_factory=dict)
    """What computed the features beside the latents, see `ImageFeatures`; empty if there are none."""

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.images // self.shard)

    def content(self) -> dict[str, Any]:
        """The content of the file; that of 8-bit images of one size is as in version 0.1."""
        added = ("values", "native", "features")
        return {key: value for key, value in asdict(self).items() if key not in added or value}

    def differences(self, other: "Description") -> list[str]:
        """For each field that differs: `name is value of the other there, value of this description here`.

        The images themselves (`IMAGES`) are compared one by one, see `ditlab.data.latents.refresh`. Which channels are
        displayed makes no difference.
        """
        now, before = self._encoded(), other._encoded()
        keys = [key for key in {**now, **before} if now.get(key) != before.get(key)]
        if not keys and bool(self.preprocessing) != bool(other.preprocessing):  # images of this size, not resized
            sizes = [about.preprocessing and about._encoded()["size"] for about in (other, self)]
            return [describe_difference("size", *sizes)]
        return [describe_difference(key, before.get(key), now.get(key)) for key in keys]

    def _encoded(self) -> dict[str, Any]:
        """Everything on which the shards depend: name -> value."""
        fields = {key: value for key, value in asdict(self).items() if key not in (*IMAGES, "preprocessing", "values")}
        for key in ("size", "shape"):  # of several sizes, the most frequent follows from the images
            fields[key] = "native" if self.native else "x".join(map(str, fields[key]))
        fields["autoencoder"] = self.autoencoder[:12]
        fields["features"] = str(self.features.get("encoder", "none"))[:12]
        prepared = {
            key: value for key, value in self.preprocessing.items() if key not in ("size", "channels", "values")
        }
        values = replace(PixelValues.read(self.values), shown=()).describe()
        return fields | UNPREPARED | prepared | {f"values.{key}": value for key, value in values.items()}


def describe(content: dict[str, Any]) -> Description:
    """The description that an index or description.json holds, with present key names."""
    values = {RENAMED.get(key, key): value for key, value in content.items()}
    check_types(values, TYPES)
    values |= {name: tuple(map(operator.index, values[name])) for name in ("shape", "size")}
    description = Description(**values)
    if description.native and (
        description.native.keys() != {"pixels", "frame_multiple"}
        or not all(type(value) is int and value >= 1 for value in description.native.values())
    ):
        raise ValueError(f"native is {description.native}")
    if (
        description.images < 0
        or description.shard < 1
        or not all(isinstance(name, str) for name in description.classes)
    ):
        raise ValueError("a count is negative, or a class is not a name")
    shape, size = description.shape, description.size
    if len(shape) != len(size) + 1 or len(size) not in (2, 3) or min(*shape, *size) < 1:
        raise ValueError(f"latents of shape {list(shape)} of images of size {list(size)}")
    return description


def read_description(folder: Path) -> Description | None:
    """The description of a cache; None if the folder is empty or new.

    Raises:
        InputError: the folder holds other files.
    """
    file = folder / DESCRIPTION
    if file.exists():
        with interpreting(file, "restore it from a copy, or encode into another folder"):
            return describe(read_object(file))
    if not is_vacant(folder):
        raise InputError(f"{folder} is not empty and holds no cache; give another folder")
    return None


def write_description(folder: Path, description: Description) -> None:
    """Write the description of a cache, which marks its folder."""
    replace_text(folder / DESCRIPTION, json.dumps(description.content(), indent=1, ensure_ascii=False) + "\n")
