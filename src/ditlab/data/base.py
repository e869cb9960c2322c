"""What training asks of a data set, and the order in which it is read."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from ditlab.core.types import Batch, Condition

T = TypeVar("T")


class Dataset(ABC):
    """Equally large uint8 pictures with labels, or their moments from a latent cache."""

    classes: list[str]  # names; the position is the label
    labels: Tensor  # (N,) int64
    channels: int
    size: tuple[int, int]  # height, width of the pictures
    preprocessing: dict[str, Any] = {}  # noqa: RUF012 - how they were made equally large; never changed in place
    skipped: Mapping[str, str] = {}  # name and reason of each picture that could not be read so far

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, indices: Tensor) -> Batch:
        """The pictures with these indices (B,)."""

    def fetch_readable(self, indices: Tensor) -> Batch:
        """Those of the pictures with these indices that can be read."""
        return self.fetch(indices)


@final
class InMemory(Dataset):
    """Pictures that are already a tensor (N, C, H, W) uint8."""

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str]) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self.channels, height, width = images.shape[1:]
        self.size = (height, width)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.images[indices], Condition(label=self.labels[indices]))


def training_order(count: int, batch: int, seed: int, seen: int) -> Iterator[Tensor]:
    """Indices (batch,) without end: one seeded permutation after the other, from position `seen` on.

    A pure function of its arguments: a run that resumes at `seen` reads what it would have read.
    """
    epoch, position = divmod(seen, count)

    def permutation(epoch: int) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))

    left = permutation(epoch)[position:]
    while True:
        while len(left) < batch:
            epoch += 1
            left = torch.cat([left, permutation(epoch)])
        yield left[:batch]
        left = left[batch:]


def ahead(order: Iterator[Tensor], fetch: Callable[[Tensor], Batch], depth: int = 2) -> Iterator[Batch]:
    """The batches of an order, the next `depth` being read in a thread while the caller works on the present one."""
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
    """function(0), ..., function(count - 1) in order; `pool.map` would queue a million calls, which is gigabytes."""
    for start in range(0, count, chunk):
        yield from pool.map(function, range(start, min(count, start + chunk)))
