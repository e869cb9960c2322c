"""Several sizes in one run: each image belongs to the bucket of its size, and a batch holds one bucket.

The sizes of images have about the same number of pixels, the budget, and other aspect ratios. A batch of smaller images
has more of them, so that all batches take about the same work. Nothing is left out or padded: each bucket is an endless
sequence of permutations of its images, as in a run with one size, and a batch may hold the end of one and the beginning
of the next. In shapes, N is the number of images; a size is (height, width), or (frames, height, width) for videos.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.units import counted, sides_of

if TYPE_CHECKING:
    from ditlab.data.base import Dataset

WIDEST = 4.0  # aspect ratio of the widest bucket
MULTIPLE = 8  # default of data.multiple
SHARED = 8  # processes that a batch of any bucket can be shared among: batch sizes are multiples of it
LARGE_CROP = 0.5  # share of an image from which its crop is reported

Size = tuple[int, ...]


@dataclass(frozen=True)
class Native:
    """Images keep their aspect ratio, and have about the same number of pixels; clips keep their length too."""

    pixels: int
    """Largest number of pixels of an image, or of a frame of a clip."""
    multiple: int
    """What sides are divisible by."""
    frame_multiple: int = 1
    """What the number of frames of a clip is divisible by, unless it is 1."""

    def __post_init__(self) -> None:
        if self.pixels < self.multiple**2:
            raise InputError(
                f"pixels is {self.pixels}, less than one square of {self.multiple}x{self.multiple} (multiple); give "
                "more pixels, such as 65536 for as many as 256x256, or a smaller multiple"
            )

    def sizes(self) -> list[Size]:
        """All sizes (height, width) of this budget, from the tallest to the widest; none is part of another one."""
        most = self.pixels // self.multiple**2  # squares
        widths: dict[int, int] = {}  # height -> greatest width, in squares
        for height in range(1, most + 1):
            width = most // height
            if max(height / width, width / height) <= WIDEST:
                widths[width] = max(height, widths.get(width, 0))
        return [(height * self.multiple, width * self.multiple) for width, height in sorted(widths.items())]


def crop_loss(size: Sequence[int], bucket: Sequence[int]) -> float:
    """The share of an image of a size (height, width) that is cropped when it is resized to cover a bucket."""
    ratio = size[1] / size[0] / (bucket[1] / bucket[0])
    return 1 - min(ratio, 1 / ratio)


@dataclass(frozen=True)
class Buckets:
    """The sizes of the images of a data set that has several."""

    sizes: tuple[Size, ...]
    """The size of each bucket that has images, from the tallest to the widest."""
    of: Tensor  # (N,) int64: bucket of each image
    pixels: int
    """Pixels (or pixels times frames) of an image in a batch of `train.batch` images."""
    losses: tuple[float, ...] = field(default=(), repr=False)
    """The share of each image that is cropped, for the images whose size is known."""
    frame_multiple: int = 1
    """Frames of a token, which an image fills too: it costs as much as a clip of that length."""

    @classmethod
    def nearest(cls, images: Sequence[Sequence[int] | None], native: Native) -> Self:
        """Assign images to the buckets whose aspect ratio is nearest.

        Args:
            images: (height, width) of each image; None, if it cannot be read, is the most frequent bucket.
            native: the budget.
        """
        sizes = native.sizes()
        chosen: dict[Size, int] = {}

        def bucket(size: Size) -> int:
            if size not in chosen:
                chosen[size] = min(range(len(sizes)), key=lambda i: (crop_loss(size, sizes[i]), -math.prod(sizes[i])))
            return chosen[size]

        known = [None if image is None else bucket(tuple(image)) for image in images]
        frequent = Counter(i for i in known if i is not None).most_common(1)[0][0]
        of = torch.tensor([frequent if i is None else i for i in known])
        losses = [
            0.0 if image is None else crop_loss(image, sizes[i]) for image, i in zip(images, of.tolist(), strict=True)
        ]
        used, of = torch.unique(of, return_inverse=True)
        return cls(tuple(sizes[i] for i in used.tolist()), of, native.pixels, tuple(losses))

    def with_frames(self, frames: Tensor, native: Native, longest: int) -> Self:
        """The buckets of clips whose frames have these sizes.

        Args:
            frames: (N,) int64, number of frames of each clip.
            native: the budget of a frame.
            longest: number of frames of the longest clips.
        """
        pairs, of = torch.unique(torch.stack([frames, self.of], 1), dim=0, return_inverse=True)
        sizes = tuple((count, *self.sizes[bucket]) for count, bucket in pairs.tolist())
        return replace(self, sizes=sizes, of=of, pixels=native.pixels * longest, frame_multiple=native.frame_multiple)

    def mirrored(self) -> Self:
        """The buckets of the images, followed by those of their mirrored copies."""
        return replace(self, of=torch.cat([self.of, self.of]))

    @cached_property
    def members(self) -> list[Tensor]:
        """The indices of the images of each bucket."""
        return [(self.of == i).nonzero()[:, 0] for i in range(len(self.sizes))]

    @cached_property
    def counts(self) -> list[int]:
        """The number of images of each bucket."""
        return [len(images) for images in self.members]

    @property
    def frequent(self) -> int:
        """The bucket with most images; of clips, with most of the longest ones."""
        return max(range(len(self.sizes)), key=lambda i: (frames_of(self.sizes[i]), self.counts[i]))

    @staticmethod
    def alike(buckets: "Buckets | None", i: int, count: int) -> Iterator[int]:
        """Yield the images of the size of image i, beginning with it, of `count` images in all."""
        if buckets is None:
            yield from ((i + step) % count for step in range(count))
            return
        images = buckets.members[int(buckets.of[i])]
        first = int(torch.searchsorted(images, i))
        for step in range(len(images)):
            yield int(images[(first + step) % len(images)])

    def size_of(self, i: int) -> Size:
        """The size of image i."""
        return self.sizes[int(self.of[i])]

    def batches(self, batch: int) -> list[int]:
        """Images in a batch of each bucket, such that the pixels of a batch are about the same.

        Args:
            batch: images in a batch of images that have as many pixels as the budget.
        """
        unit = math.gcd(batch, SHARED)
        return [max(1, round(batch * self.pixels / self.cost(size) / unit)) * unit for size in self.sizes]

    def cost(self, size: Size) -> int:
        """The pixels for which a network computes an image or clip of a size, including those that fill a token."""
        return math.prod(size[-2:]) * max(frames_of(size), self.frame_multiple)

    def notes(self, what: str = "image") -> list[str]:
        """What is lost by cropping, one line each; `what` is what messages call one of them."""
        large = [loss for loss in self.losses if loss > LARGE_CROP]
        if not large:
            return []
        return [
            f"cropping to at most {WIDEST:g}:1 takes more than half of {counted(len(large), what)}, up to "
            f"{max(large):.0%}; crop them yourself, or move them away"
        ]

    def plan(self, batch: int) -> list[str]:
        """The batches of a run, and what buckets with few images mean, one line each.

        Args:
            batch: images in a batch of images that have as many pixels as the budget.
        """
        rows = [*zip(self.sizes, self.counts, self.batches(batch), strict=True)]
        work = [count * self.cost(size) for size, _, count in rows]
        parts = [f"{count} of {sides_of(size)} ({images:,})" for size, images, count in rows]
        lines = [f"batches (images): {', '.join(parts)}; the largest has {max(work) / min(work) - 1:.0%} more pixels"]
        lines += [
            f"{sides_of(size)} has {counted(images, 'image')}, fewer than its batch of {count}, which repeats images "
            f"and comes once in {count / images:.3g} passes through the data"
            for size, images, count in rows
            if images < count
        ]
        return lines

    def order(self, batch: int, seed: int, seen: int) -> Iterator[Tensor]:
        """Endless batches of indices, each of one bucket, starting after `seen` images.

        In each epoch the buckets come in a new seeded order, each as often as it has complete batches by then. The
        order depends on the arguments only. If `seen` is not the end of a batch, that batch is left out.
        """
        sizes = self.batches(batch)

        def complete(bucket: int, epochs: int) -> int:
            return epochs * self.counts[bucket] // sizes[bucket]  # batches of a bucket in so many epochs

        def images(epochs: int) -> int:
            return sum(size * complete(bucket, epochs) for bucket, size in enumerate(sizes))

        epoch = seen // len(self.of)  # no later epoch, because each has at most so many images on average
        while images(epoch + 1) <= seen:
            epoch += 1
        position, sequences = images(epoch), [Endless(part, seed, i) for i, part in enumerate(self.members)]
        while True:
            done = [complete(bucket, epoch) for bucket in range(len(sizes))]
            due = [bucket for bucket in range(len(sizes)) for _ in range(complete(bucket, epoch + 1) - done[bucket])]
            for place in permutation(len(due), seed, epoch, len(sizes)).tolist():
                bucket = due[place]
                if position >= seen:
                    yield sequences[bucket].part(done[bucket] * sizes[bucket], sizes[bucket])
                done[bucket] += 1
                position += sizes[bucket]
            epoch += 1


def frames_of(size: Size) -> int:
    """The number of frames of a size; 1 for an image."""
    return size[0] if len(size) == 3 else 1


class Endless:
    """The images of one bucket in an endless order: one permutation after the other."""

    def __init__(self, images: Tensor, seed: int, bucket: int) -> None:
        self.images, self.seed, self.bucket = images, seed, bucket
        self.epoch, self.shuffled = -1, images

    def part(self, start: int, count: int) -> Tensor:
        """Images `start` to `start + count` of the order."""
        parts = []
        while count:
            epoch, first = divmod(start, len(self.images))
            if epoch != self.epoch:
                order = permutation(len(self.images), self.seed, epoch, self.bucket)
                self.epoch, self.shuffled = epoch, self.images[order]
            parts.append(self.shuffled[first : first + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


def permutation(count: int, seed: int, epoch: int, purpose: int) -> Tensor:
    """A permutation of `count` numbers, a function of the seed, the epoch and a number of the purpose."""
    mixed = ((seed * 1_000_003 + epoch) * 65_537 + purpose + 1) % 2**63
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


def mixed_order(labels: Tensor) -> Tensor:
    """An order of images in which each class has its share of every part, as far as whole images allow.

    Folders list their images class by class, so the first images of one are of few classes. In a random order the
    classes of a part differ by chance from those of the whole, which makes distances between the two larger.

    Args:
        labels: (N,) the classes.

    Returns:
        (N,) the numbers of the images, always the same for the same labels.
    """
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]  # class by class, at random within each
    counts = labels.bincount()
    ranks = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    starts = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    return order[((ranks + starts[labels[order]]) / counts[labels[order]]).argsort(stable=True)]


def sample_batch(dataset: "Dataset", count: int) -> Tensor:
    """The indices of `count` images of one size and of all classes; images may occur several times."""
    images = (
        torch.arange(len(dataset)) if dataset.buckets is None else dataset.buckets.members[dataset.buckets.frequent]
    )
    images = images[mixed_order(dataset.labels[images])]
    return images[torch.arange(count) % len(images)]
