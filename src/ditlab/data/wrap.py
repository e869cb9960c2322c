"""Wrap a map-style torch data set of (image, label) pairs, or arrays of them, as a data set for training."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc
from ditlab.core.types import Batch
from ditlab.core.units import counted
from ditlab.core.values import PixelValues
from ditlab.data.base import Dataset, to_float
from ditlab.data.preprocess import Preprocess
from ditlab.data.ranges import find_values, sampled
from ditlab.data.scan import Header, array_header, image_header
from ditlab.data.sources import Raster, Unreadable

GIVE = "give PIL images, tensors (C, H, W) or arrays (H, W, C)"
FEW = 4  # an axis of this length or less is the channels if there is a longer one in their place


def from_torch(dataset: Any, *, range: str = "", show: tuple[int, ...] = ()) -> "TorchImages":
    """Wrap a torch data set of (image, label) pairs, or arrays of images and labels, as a data set for training.

    Images are PIL images, tensors (C, H, W) or (H, W), or arrays (H, W, C) or (H, W), of any numeric type and channel
    count, all alike; labels are integers from 0. Class names come from the attribute `classes` if there is one.

    Args:
        dataset: a data set with `__len__` and `__getitem__`, such as those of torchvision; or (images, labels), arrays
            (N, H, W, C) or (N, H, W), or tensors (N, C, H, W) or (N, H, W), with labels (N,); or a dictionary of
            "images", "labels" and, if wanted, "classes", the names of the classes.
        range: the numbers that become black and white; see `ditlab.data.ranges.find_values`. By default 0..255 for
            uint8, black and white for bool, and 0..1 or -1..1 for floats that lie within.
        show: numbers of the channels that are displayed, from 1.

    Raises:
        InputError: it is not a map-style data set, or its images or labels have another type.
    """
    if isinstance(dataset, Mapping):
        dataset = Arrays.from_tables(dataset)
    elif isinstance(dataset, tuple | list) and len(dataset) == 2 and isinstance(dataset[0], Tensor | np.ndarray):
        dataset = Arrays(*dataset)
    elif isinstance(dataset, Tensor | np.ndarray):
        raise InputError("data is one array; give (images, labels), with the label 0 for all if there are no classes")
    return TorchImages(dataset, range=range, show=show)


class Arrays:
    """Pairs of an image and a label from two arrays of equal length."""

    def __init__(self, images: Any, labels: Any, classes: Sequence[str] = ()) -> None:
        """Check the shapes; `images` and `labels` are as in `from_torch`."""
        for name, values, axes in (("images", images, (3, 4)), ("labels", labels, (1,))):
            if not isinstance(values, Tensor | np.ndarray) or values.ndim not in axes:
                got = f"have the shape {tuple(values.shape)}" if hasattr(values, "shape") else f"are {values!r:.40}"
                raise InputError(f"{name} {got}; give arrays (N, H, W, C) or tensors (N, C, H, W), and labels (N,)")
        if len(images) != len(labels):
            raise InputError(f"{counted(len(images), 'image')} and {counted(len(labels), 'label')}; give one for each")
        self.images, self.targets, self.classes = images, labels, list(classes)

    @classmethod
    def from_tables(cls, given: Mapping[str, Any]) -> "Arrays":
        """Arrays from a dictionary."""
        if not {"images", "labels"} <= set(given) <= {"images", "labels", "classes"}:
            names = ", ".join(map(str, given)) or "nothing"
            raise InputError(f'the dictionary of data has {names}; give "images", "labels" and, if wanted, "classes"')
        return cls(**given)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.images[i], self.targets[i]


class TorchImages(Dataset):
    """Images of a torch data set, read when they are needed."""

    def __init__(self, dataset: Any, *, range: str = "", show: tuple[int, ...] = ()) -> None:
        """Read the first image for its shape, a sample if the range of the numbers depends on it, and all labels.

        Labels come from the attribute `targets` or `labels` if there is one; otherwise each pair is read once.
        """
        name = type(dataset).__name__
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise InputError(f"{name} is not a map-style data set; give one with __len__ and __getitem__")
        if not len(dataset):
            raise InputError(f"{name} holds no images; give a data set with at least one")
        self.dataset = dataset
        self.first = _header(_opened(self._pair(0)[0], 0), 0)
        self.channels, self.size = self.first.channels, self.first.size
        self.preprocess = Preprocess(None, channels=self.channels, values=PixelValues(self.first.dtype))
        self.values = find_values(self.first.dtype, self.channels, range, show, self._numbers)
        self.preprocess = replace(self.preprocess, values=self.values)
        self.labels = torch.tensor(self._all_labels(), dtype=torch.long)
        self.classes = _class_names(dataset, int(self.labels.max()) + 1)

    def fetch(self, indices: Tensor) -> Batch:
        numbers = np.stack([self._image(i) for i in indices.tolist()]).transpose(0, 3, 1, 2)
        x = torch.from_numpy(numbers) if self.values.eight_bits else self.values.normalized(to_float(numbers))
        return Batch(x.contiguous(), self.condition(indices))

    def _numbers(self) -> Iterator[Raster]:
        """The numbers (H, W, C) of the images from which the range is found."""
        return (self._image(i) for i in sampled(len(self.dataset)).tolist())

    def _pair(self, i: int) -> tuple[Any, Any]:
        pair = self.dataset[i]
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) < 2:
            raise InputError(f"item {i} is of type {type(pair).__name__}; give pairs of an image and a label")
        return pair[0], pair[1]

    def _image(self, i: int) -> Raster:
        """An image of the data set as an array (H, W, C).

        Raises:
            InputError: its size, channels or type are not those of the first image, or it cannot be read.
        """
        image = _opened(self._pair(i)[0], i)
        header = _header(image, i)
        shape, expected = ((part.channels, *part.size) for part in (header, self.first))
        gray = (header.channels, self.channels) == (1, 3) and isinstance(image, Image.Image)
        if shape != expected and not (gray and header.size == self.size):
            raise InputError(
                f"image {i} has the shape {shape} but image 0 has {expected}; resize or convert them to one shape"
            )
        if header.dtype != self.first.dtype:
            raise InputError(f"image {i} holds {header.dtype} but image 0 holds {self.first.dtype}; give one type")
        try:
            return self.preprocess(image)
        except Unreadable as error:
            raise InputError(f"image {i} cannot be used: {error}") from None

    def _all_labels(self) -> list[int]:
        labels = _targets(self.dataset)
        if labels is None:
            labels = [self._pair(i)[1] for i in range(len(self.dataset))]
        return [_label(value, i) for i, value in enumerate(labels)]


def _opened(image: Any, i: int) -> Image.Image | Raster:
    """An image of a data set as an image of Pillow or an array (H, W, C)."""
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, Tensor | np.ndarray):
        raise InputError(f"image {i} is of type {type(image).__name__}; {GIVE}")
    first, last = (0, -1) if isinstance(image, Tensor) else (-1, 0)
    shape = tuple(image.shape)
    if image.ndim not in (2, 3) or (image.ndim == 3 and shape[last] <= FEW < shape[first]):
        order = "first" if isinstance(image, Tensor) else "last"
        raise InputError(f"image {i} has the shape {shape} with channels {order}; {GIVE}")
    if isinstance(image, Tensor):
        tensor = image.detach().cpu()
        array: Raster = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return array[..., None] if array.ndim == 2 else np.moveaxis(array, 0, -1)
    return image[..., None] if image.ndim == 2 else image


def _header(image: Image.Image | Raster, i: int) -> Header:
    """Size, channels and type of an image.

    Raises:
        InputError: numbers of a type that is no real number, or several pages.
    """
    try:
        return image_header(image) if isinstance(image, Image.Image) else array_header(image)
    except ValueError as error:
        raise InputError(f"image {i}: {error}") from None


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
        raise InputError(
            f"label {count - 1} for {counted(len(names), 'class')}; give labels from 0 to {len(names) - 1}"
        )
    return names or [str(i) for i in range(count)]
