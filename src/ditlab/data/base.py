"""The contract of a data set, and the order in which training reads it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.data.identity import UNKNOWN, Stamp, Stamps, content_hash

T = TypeVar("T")


class Dataset(ABC):
    """A data set: uint8 images or videos of equal size, or their latent moments, each with a condition."""

    classes: list[str]  # names; the position is the label
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    channels: int
    size: tuple[int, ...]
    """(height, width) of the images, or (frames, height, width) of the videos."""
    preprocessing: dict[str, Any] = {}  # noqa: RUF012 - how images were resized; never changed in place
    skipped: Mapping[str, str] = {}  # images that could not be read until now: name -> reason
    features: str = "inception"
    """Name of the feature network that evaluations of this data use by default."""
    held_out_name: str = ""
    """Name of the data set that holds the held-out images of this one; empty if there is none."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, indices: Tensor) -> Batch:
        """The images or moments with these indices (B,), and their conditions."""

    def fetch_readable(self, indices: Tensor) -> Batch:
        """Like `fetch`, but without images that cannot be read."""
        return self.fetch(indices)

    def condition(self, indices: Tensor) -> Condition:
        """The conditions of the images with these indices (B,). Data sets without class labels override this."""
        return Condition(label=self.labels[indices])

    def stamps(self) -> Stamps:
        """The state of each image, by which a resumed run recognizes that images have changed.

        Here it is only the label of each index; data sets that know more about their images override this. Image i of a
        data set with mirrored copies has the stamp i modulo their number.
        """
        return Stamps.of((Stamp(str(i)) for i in range(len(self))), self.labels.numpy())

    def content_hash(self, i: int) -> int:
        """Hash of the content of image i (see `ditlab.data.identity`); called for stamps without a hash."""
        return UNKNOWN


class InMemory(Dataset):
    """Images (N, C, H, W) or videos (N, C, T, H, W) that are already a uint8 tensor."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: list[str],
        *,
        features: str = "inception",
        held_out_name: str = "",
    ) -> None:
        if images.dtype != torch.uint8 or len(images) != len(labels):
            raise InputError(
                f"{len(images)} images of {images.dtype} with {len(labels)} labels; give uint8 and a label for each"
            )
        self.images, self.labels, self.classes = images, labels, classes
        self.features, self.held_out_name = features, held_out_name
        self.channels, *sides = images.shape[1:]
        self.size = tuple(sides)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.images[indices], self.condition(indices))

    def stamps(self) -> Stamps:
        stamps = super().stamps()
        hashes = np.fromiter((content_hash(image.tobytes()) for image in self.images.numpy()), np.int64, len(self))
        return replace(stamps, times=hashes, hashes=hashes)


def training_order(count: int, batch: int, seed: int, seen: int) -> Iterator[Tensor]:
    """Endless batches of indices (batch,): a new seeded permutation for each epoch, starting at position `seen`.

    The order depends on the arguments only, so a run that resumes at `seen` reads the same images as an uninterrupted
    run.
    """
    epoch, position = divmod(seen, count)

    def permutation(epoch: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))

    remaining = permutation(epoch)[position:]
    while True:
        while len(remaining) < batch:
            epoch += 1
            remaining = torch.cat([remaining, permutation(epoch)])
        yield remaining[:batch]
        remaining = remaining[batch:]


def ahead(order: Iterator[Tensor], fetch: Callable[[Tensor], Batch], depth: int = 2) -> Iterator[Batch]:
    """Read the batches of an order in a thread, up to `depth` batches before the caller needs them."""
    reader = ThreadPoolExecutor(1)
    try:
        pending = deque(reader.submit(fetch, indices) for indices in islice(order, depth))
        while pending:
            batch = pending.popleft().result()
            pending.extend(reader.submit(fetch, indices) for indices in islice(order, 1))
            yield batch
    finally:  # also when the caller stops early
        reader.shutdown(cancel_futures=True)


def spread(pool: ThreadPoolExecutor, function: Callable[[int], T], count: int, chunk: int = 1024) -> Iterator[T]:
    """function(0), ..., function(count - 1) in order, in chunks: `pool.map` would queue all calls at once."""
    for start in range(0, count, chunk):
        yield from pool.map(function, range(start, min(count, start + chunk)))
