"""Wrap a map-style torch data set of (image, label) pairs as a data set for training."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc
from ditlab.core.types import Batch
from ditlab.data.base import Dataset
from ditlab.data.preprocess import as_array, to_rgb

GIVE = "give PIL images, or uint8 tensors (C, H, W) or arrays (H, W, C)"


def from_torch(dataset: Any) -> "TorchImages":
    """Wrap a torch data set of (image, label) pairs as a data set for training.

    Images are PIL images, uint8 tensors (C, H, W) or (H, W), or uint8 arrays (H, W, C) or (H, W), all of one size;
    labels are integers from 0. Class names come from the attribute `classes` if there is one.

    Args:
        dataset: a data set with `__len__` and `__getitem__`, such as those of torchvision.

    Raises:
        InputError: it is not a map-style data set, or its images or labels have another type.
    """
    return TorchImages(dataset)


class TorchImages(Dataset):
    """Images of a torch data set, read when they are needed."""

    def __init__(self, dataset: Any) -> None:
        """Read the first image for its shape, and all labels.

        Labels come from the attribute `targets` or `labels` if there is one; otherwise each pair is read once.
        """
        name = type(dataset).__name__
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise InputError(f"{name} is not a map-style data set; give one with __len__ and __getitem__")
        if not len(dataset):
            raise InputError(f"{name} holds no images; give a data set with at least one")
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
        """An image of the data set as a tensor (C, H, W) uint8."""
        if isinstance(image, Image.Image):
            return torch.from_numpy(as_array(to_rgb(image), self.channels).copy()).permute(2, 0, 1)
        return _channels_first(image, i)

    def _all_labels(self) -> list[int]:
        labels = _targets(self.dataset)
        if labels is None:
            labels = [self._pair(i)[1] for i in range(len(self.dataset))]
        return [_label(value, i) for i, value in enumerate(labels)]


def _channels_first(image: Any, i: int) -> Tensor:
    """A tensor or array as a tensor (C, H, W) uint8."""
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
    """A label as an integer from 0."""
    plain: Any = value.item() if isinstance(value, Tensor | np.generic) else value
    try:
        label = operator.index(plain)
    except TypeError:
        label = -1
    if label < 0:
        raise InputError(f"label {i} is {value!r}; give integers from 0")
    return label


def _targets(dataset: Any) -> list[Any] | None:
    """The labels that a data set, or the one in a `Subset`, lists as an attribute; None if it does not."""
    if hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        inner = _targets(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    if getattr(dataset, "target_transform", None) is not None:
        return None
    listed = (getattr(dataset, name, None) for name in ("targets", "labels"))
    targets = next((values for values in listed if values is not None), None)
    return list(targets) if targets is not None and len(targets) == len(dataset) else None


def _class_names(dataset: Any, count: int) -> list[str]:
    """Class names from the attribute `classes` of a data set, or of the one in a `Subset`; otherwise numbers."""
    while not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    names = all_nfc(str(name) for name in getattr(dataset, "classes", None) or [])
    if names and len(names) < count:
        raise InputError(f"label {count - 1} for {len(names)} classes; give labels from 0 to {len(names) - 1}")
    return names or [str(i) for i in range(count)]
