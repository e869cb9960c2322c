"""Any torch data set of (image, label) as training data."""

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.data import Dataset


class TorchImages(Dataset):
    """A torch data set with a length, whose items are (image, label).

    Images are uint8 tensors (C, H, W) with one or three channels, or PIL images, all of one size. Labels are whole
    numbers; those of the attributes `targets` or `labels` are used if there are any, so that no image is read for them.

    Raises:
        InputError: items of another form.
    """

    def __init__(self, items: Any) -> None:
        self.items = items
        if not hasattr(items, "__getitem__") or not hasattr(items, "__len__") or not len(items):
            raise InputError("the data set needs a length above 0 and items by number, as torch.utils.data.Dataset has")
        first = self.image(0)
        self.channels, height, width = first.shape
        self.size = (height, width)
        self.labels = self.read_labels()
        names = getattr(items, "classes", None)
        count = int(self.labels.max()) + 1
        self.classes = [str(name) for name in names] if names is not None else [str(i) for i in range(count)]
        if count > len(self.classes):
            raise InputError(f"the data set has the label {count - 1}, but only {len(self.classes)} classes")

    def read_labels(self) -> Tensor:
        """All labels (N,) int64."""
        given = next(
            (values for key in ("targets", "labels") if (values := getattr(self.items, key, None)) is not None), None
        )
        if given is None or len(given) != len(self.items):
            given = [self.item(i)[1] for i in range(len(self.items))]
        labels = torch.as_tensor(np.asarray(given)) if not isinstance(given[0], str) else torch.empty(0)
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(self.items) or int(labels.min()) < 0:
            raise InputError(f"labels such as {given[0]!r}; give one whole number from 0 for each image")
        return labels.long()

    def fetch(self, indices: Tensor) -> Batch:
        images = []
        for i in indices.tolist():
            image = self.image(i)
            if image.shape != (self.channels, *self.size):
                given, wanted = ("x".join(map(str, shape)) for shape in (image.shape, (self.channels, *self.size)))
                raise InputError(f"image {i} has the shape {given}, but image 0 has {wanted}; make all equally large")
            images.append(image)
        return Batch(torch.stack(images), Condition(label=self.labels[indices]))

    def image(self, i: int) -> Tensor:
        """Image i (C, H, W) uint8."""
        image = self.item(i)[0]
        if isinstance(image, Image.Image):
            array = np.array(image if image.mode == "L" else image.convert("RGB"))
            return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)
        if (
            not isinstance(image, Tensor)
            or image.dtype is not torch.uint8
            or image.ndim != 3
            or len(image) not in (1, 3)
        ):
            kind = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"image {i} is {kind}; give uint8 tensors (C, H, W) with 1 or 3 channels, or PIL images")
        return image

    def item(self, i: int) -> tuple[Any, Any]:
        """Image and label i as the data set returns them."""
        item = self.items[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InputError(f"item {i} of the data set is {type(item).__name__}; give pairs of image and label")
        return cast(tuple[Any, Any], tuple(item))
