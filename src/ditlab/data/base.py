"""The contract of a data set, and the order in which training reads it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.spelling import is_unicode, nfc
from ditlab.core.types import Batch, Condition
from ditlab.core.units import counted, noun_of
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.data.identity import UNKNOWN, Stamp, Stamps, content_hash
from ditlab.data.ranges import find_values, plain
from ditlab.data.reading import Reading

if TYPE_CHECKING:
    from ditlab.data.buckets import Buckets

T = TypeVar("T")
CLASS = "{class}"  # in a template of captions: the name of the class


class Dataset(ABC):
    """A data set: images or videos, or their latent moments, each with a condition.

    All have the same size, unless the data set has buckets; then those in one call of `fetch` must be of one bucket.

    Images are uint8, or float32 in the scale of the network if `values` are not those of 8 bits.
    """

    classes: list[str]  # names; the position is the label
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    channels: int
    size: tuple[int, ...]
    """(height, width) of the images, or (frames, height, width) of the videos; with buckets, of most of them."""
    buckets: "Buckets | None" = None
    """The sizes of images or videos that differ in size; None if all have `size`."""
    preprocessing: dict[str, Any] = {}  # noqa: RUF012 - how images were resized; never changed in place
    skipped: Mapping[str, str] = {}  # images that could not be read until now: name -> reason
    reported: AbstractSet[str] = frozenset()
    """Names of images that an earlier part of the same work could not read."""
    features: str = "inception"
    """Name of the feature network that evaluations of this data use by default."""
    held_out_name: str = ""
    """Name of the data set that holds the held-out images of this one; empty if there is none."""
    attribution: str = ""
    """Creator and license of the images, which models that are trained on them must state; empty if unknown."""
    values: PixelValues = EIGHT_BITS
    """What the numbers in the files are."""
    image_features: Mapping[str, Any] = {}
    """What computed the features in `Batch.extra`, see `ditlab.data.latents.features`; empty if there are none."""

    @property
    def noun(self) -> str:
        """What one of its items is called: image, clip, or pair (of states of a field)."""
        return noun_of(self.size)

    @cached_property
    def reading(self) -> Reading:
        """What was chosen and left out when the data set was read; each data set has its own, to which it may add."""
        return Reading()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def fetch(self, indices: Tensor) -> Batch:
        """The images or moments with these indices (B,), and their conditions."""

    def fetch_readable(self, indices: Tensor) -> Batch:
        """Like `fetch`, but without images that cannot be read."""
        return self.fetch(indices)

    def fetch_at(self, indices: Tensor, seed: int, seen: Tensor) -> Batch:
        """Like `fetch`, in training. Data sets that choose a part of an item at random override this.

        Args:
            indices: (B,) indices.
            seed: seed of the run.
            seen: (B,) number of images that the run has seen before each of them. The choice depends on the arguments
                only, so that a resumed run makes the same one.
        """
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

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of image i; empty where there are none. Data sets with captions override this."""
        return ()

    def stamps(self) -> Stamps:
        """The state of each image, by which a resumed run recognizes that images have changed.

        Here it is only the label of each index; data sets that know more about their images override this. Image i of a
        data set with mirrored copies has the stamp i modulo their number.
        """
        return Stamps.of((Stamp(str(i)) for i in range(len(self))), self.labels.numpy())

    def fetched_files(self, mixed: int) -> Tensor | None:
        """The number (N,) of the file that is fetched whole to read each image; see `Source.fetched_files`."""
        return None

    def expect(self, indices: Tensor) -> None:
        """Prepare for reading the images with these indices (B,) soon, in the background."""
        return

    def content_hash(self, i: int) -> int:
        """Hash of the content of image i (see `ditlab.data.identity`); called for stamps without a hash."""
        return UNKNOWN


class InMemory(Dataset):
    """Images (N, C, H, W) or videos (N, C, T, H, W) that are already a tensor."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: list[str],
        *,
        features: str = "inception",
        held_out_name: str = "",
        values: PixelValues | None = None,
        captions: Sequence[str | Sequence[str]] = (),
    ) -> None:
        """Take images of any numeric type.

        Args:
            images: the images or videos; for bool, true is white.
            labels: class labels (N,) int64.
            classes: names; the position is the label.
            features: name of the feature network that evaluations use by default.
            held_out_name: name of the data set with the held-out images.
            values: what the numbers are; by default as `ditlab.data.ranges.find_values` finds it: 0..255 for uint8, and
                for floats 0..1 or -1..1 if they lie within.
            captions: the caption or captions of each image; empty for a data set without captions.

        Raises:
            InputError: the images do not suit the labels or captions, or are no real numbers.
        """
        if images.ndim not in (4, 5) or len(images) != len(labels):
            raise InputError(
                f"images of shape {tuple(images.shape)} with {counted(len(labels), 'label')}; give images (N, C, H, "
                "W) or videos (N, C, T, H, W), and a label for each"
            )
        if len(captions) not in (0, len(images)):
            raise InputError(
                f"captions has {counted(len(captions), 'entry')} for {counted(len(images), 'image')}; give one for "
                "each image: a text, or a list of texts"
            )
        self.images, self.values = known(images, values)
        self.labels, self.classes, self.texts = labels, classes, captions
        self.features, self.held_out_name = features, held_out_name
        self.channels, *sides = images.shape[1:]
        self.size = tuple(sides)

    def fetch(self, indices: Tensor) -> Batch:
        return Batch(self.images[indices], self.condition(indices))

    def captions(self, i: int) -> tuple[str, ...]:
        return caption_texts(self.texts[i], f"image {i}") if self.texts else ()

    def stamps(self) -> Stamps:
        stamps = super().stamps()
        hashes = np.fromiter((content_hash(image.tobytes()) for image in self.images.numpy()), np.int64, len(self))
        return replace(stamps, times=hashes, hashes=hashes)


def caption_texts(captions: Any, name: str) -> tuple[str, ...]:
    """The captions of an image, with single spaces between words; empty where there are none.

    Args:
        captions: a text, or texts; None and empty texts are no captions.
        name: name of the image, for the message.

    Raises:
        InputError: a caption is no text.
    """
    texts = captions if isinstance(captions, list | tuple) else [captions]
    for text in texts:
        if not isinstance(text, str | None) or not is_unicode(text or ""):
            raise InputError(f"a caption of {name} is {text!a}, which is no text; correct it")
    return tuple(filter(None, (" ".join(nfc(text).split()) for text in texts if text)))


def caption_from(template: str, name: str) -> str:
    """The caption that a template, such as "a photo of {class}", makes from the name of a class."""
    return template.replace(CLASS, name)


def known(images: Tensor, values: PixelValues | None) -> tuple[Tensor, PixelValues]:
    """Images (N, C, ...) of any numeric type as a data set holds them, and what their numbers are.

    Args:
        images: the numbers of files.
        values: what they are, if that is known.

    Raises:
        InputError: they are no real numbers, or are not finite.
    """
    if values is None and not len(images):
        raise InputError("there are no images; give at least one")
    if images.dtype == torch.uint8 and (values is None or values.eight_bits):
        return images, values or EIGHT_BITS
    try:
        numbers = plain((images.float() if images.dtype == torch.bfloat16 else images).numpy())
    except ValueError as error:
        raise InputError(f"the images hold {error}") from None
    if not np.isfinite(numbers).all():
        raise InputError("some images hold numbers that are not finite; remove them")
    if values is None:
        chunks = (np.moveaxis(chunk, 1, -1) for chunk in np.array_split(numbers, -(-len(numbers) // 256)))
        values = find_values(numbers.dtype.name, numbers.shape[1], numbers=lambda: chunks)
    return (torch.from_numpy(numbers) if values.eight_bits else values.normalized(to_float(numbers))), values


def to_float(numbers: NDArray[Any]) -> Tensor:
    """An array as a tensor of float32; torch has few operations for uint16."""
    return torch.from_numpy(numbers.astype(np.float32))


def training_order(
    count: int, batch: int, seed: int, seen: int, files: Tensor | None = None, mixed: int = 1
) -> Iterator[Tensor]:
    """Endless batches of indices (batch,): a new seeded permutation for each epoch, starting at position `seen`.

    The order depends on the arguments only, so a run that resumes at `seen` reads the same images as an uninterrupted
    run.

    Args:
        count: number of images.
        batch: images of a batch.
        seed: seed of the permutations.
        seen: images before the first batch.
        files: number (count,) of the file of each image. The files are permuted, and the images of `mixed` consecutive
            files are permuted among each other, so that only these files are needed at a time.
        mixed: number of these files.
    """
    epoch, position = divmod(seen, count)

    def permutation(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        if files is None:
            return torch.randperm(count, generator=generator)
        places = torch.randperm(int(files.max()) + 1, generator=generator)  # of the files
        images = torch.randperm(count, generator=generator)
        return images[torch.argsort(places[files[images]] // mixed, stable=True)]

    remaining = permutation(epoch)[position:]
    while True:
        while len(remaining) < batch:
            epoch += 1
            remaining = torch.cat([remaining, permutation(epoch)])
        yield remaining[:batch]
        remaining = remaining[batch:]


def numbered(batch: Batch, indices: Tensor) -> Batch:
    """A batch with the positions of its images in the data set.

    If a batch does not say them, they are the requested ones, unless images are missing.
    """
    return replace(batch, index=indices) if batch.index is None and len(batch) == len(indices) else batch


def announced(order: Iterator[Tensor], expect: Callable[[Tensor], None], depth: int) -> Iterator[Tensor]:
    """Pass on the batches of an order, after `expect` was called with the next `depth` batches too."""
    coming: deque[Tensor] = deque()
    for indices in order:
        expect(indices)
        coming.append(indices)
        if len(coming) > depth:
            yield coming.popleft()
    yield from coming


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
