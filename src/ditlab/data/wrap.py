"""Any map-style torch data set of (image, label) pairs as a data set for training."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.preprocess import as_array, to_rgb

GIVE = "give PIL images, or uint8 tensors (C, H, W) or arrays (H, W, C)"


def from_torch(dataset: Any) -> "TorchImages":
    """A torch data set of (image, label) pairs as a data set for training.

    Images are PIL images, uint8 tensors (C, H, W) or (H, W), or uint8 arrays (H, W, C) or (H, W), all of one size;
    labels are whole numbers from 0. Class names come from `.classes` if there is one.

    Args:
        dataset: with `__len__` and `__getitem__`, such as those of torchvision.

    Raises:
        InputError: no map-style data set, or images or labels of another type.
    """
    return TorchImages(dataset)


class TorchImages(Dataset):
    """Images of a torch data set, read when they are needed."""

    def __init__(self, dataset: Any) -> None:
        """Read the first image for its shape, and all labels.

        Labels come from `.targets` if there is one; otherwise every pair is read once.
        """
        name = type(dataset).__name__
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise InputError(f"{name} is no map-style data set; give one with __len__ and __getitem__")
        if not len(dataset):
            raise InputError(f"{name} holds no images")
        self.dataset = dataset
        first = self._pair(0)[0]
        self.channels = 1 if isinstance(first, Image.Image) and first.mode in ("1", "L") else 3
        if not isinstance(first, Image.Image):
            self.channels = len(_channels_first(first, 0))
        image = self._image(first, 0)
        self.size = (image.shape[1], image.shape[2])
        self.labels = torch.tensor(self._all_labels(), dtype=torch.long)
        self.classes = _class_names(dataset, int(self.labels.max()) + 1)

    def fetch(self, indices: Tensor) -> Batch:
        images = [self._checked(i) for i in indices.tolist()]
        return Batch(torch.stack(images), self.condition(indices))

    def _checked(self, i: int) -> Tensor:
        image = self._image(self._pair(i)[0], i)
        if image.shape != (self.channels, *self.size):
            raise InputError(
                f"image {i} has the shape {tuple(image.shape)} but image 0 has {(self.channels, *self.size)}; "
                "resize the images to one size"
            )
        return image

    def _pair(self, i: int) -> tuple[Any, Any]:
        pair = self.dataset[i]
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) < 2:
            raise InputError(f"item {i} is of type {type(pair).__name__}; give pairs of an image and a label")
        return pair[0], pair[1]

    def _image(self, image: Any, i: int) -> Tensor:
        """(C, H, W) uint8."""
        if isinstance(image, Image.Image):
            return torch.from_numpy(as_array(to_rgb(image), self.channels).copy()).permute(2, 0, 1)
        return _channels_first(image, i)

    def _all_labels(self) -> list[int]:
        labels = _targets(self.dataset)
        if labels is None:
            labels = [self._pair(i)[1] for i in range(len(self.dataset))]
        return [_label(value, i) for i, value in enumerate(labels)]


def _channels_first(image: Any, i: int) -> Tensor:
    """A uint8 tensor (C, H, W) from a tensor or an array."""
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(image if image.ndim == 2 else np.moveaxis(image, -1, 0))
    if not isinstance(image, Tensor):
        raise InputError(f"image {i} is of type {type(image).__name__}; {GIVE}")
    if image.dtype != torch.uint8:
        raise InputError(f"image {i} holds {image.dtype}; {GIVE} (without a transform such as ToTensor)")
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"image {i} has the shape {tuple(image.shape)} with channels first; {GIVE} of 1 or 3 channels")
    return image.contiguous()


def _label(value: Any, i: int) -> int:
    """A label as a whole number from 0."""
    plain: Any = value.item() if isinstance(value, Tensor | np.generic) else value
    try:
        label = operator.index(plain)
    except TypeError:
        label = -1
    if label < 0 or isinstance(value, bool):
        raise InputError(f"label {i} is {value!r}; give whole numbers from 0")
    return label


def _targets(dataset: Any) -> list[Any] | None:
    """All labels without reading an image, where the data set (or the one in a `Subset`) lists them."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        inner = _targets(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    targets = getattr(dataset, "targets", None)
    if targets is None or len(targets) != len(dataset) or getattr(dataset, "target_transform", None) is not None:
        return None
    return list(targets)


def _class_names(dataset: Any, count: int) -> list[str]:
    """The names in `.classes`, or numbers."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = [str(name) for name in getattr(dataset, "classes", [])]
    if names and len(names) < count:
        raise InputError(f"label {count - 1} for {len(names)} classes; give labels from 0 to {len(names) - 1}")
    return names or [str(i) for i in range(count)]
