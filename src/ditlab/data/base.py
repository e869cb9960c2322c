"""The contract of a data set, and the order in which training reads it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition

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

    def check(self, console: Console, *, resumed: bool) -> None:
        """Check, before hours of work, that enough images can be read. By default, nothing is checked.

        Args:
            console: where progress is shown.
            resumed: whether an earlier call has checked the images, so that only those are checked that it listed.

        Raises:
            InputError: more images cannot be read than allowed.
        """
        return

    def condition(self, indices: Tensor) -> Condition:
        """The conditions of the images with these indices (B,). Data sets without class labels override this."""
        return Condition(label=self.labels[indices])


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


def ahead(order: Iterator[Tensor], fetch: Callable[[Tensor], Batch], depth: int = 2) -> Generator[Batch]:
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
