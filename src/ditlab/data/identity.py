"""Identity of images by content: the name, label, size and time of each, and what has changed between two states.

An image is the same if its name, label, size and modification time are the same. If only the time differs (after a copy
or a checkout), a hash of its bytes decides, if one was kept. Names are relative to the source, which may have moved.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.io import replace_bytes
from ditlab.core.sizes import check_archive

SHOWN = 3  # names of each list in a message
CHUNK = 1024  # images that a thread stats at a time
UNKNOWN = 0  # a hash that was not computed
Numbers = NDArray[np.int64]


class Stamp(NamedTuple):
    """What the file system or archive says about an image without reading it."""

    name: str
    """Name in the source, composed (NFC)."""
    size: int = 0
    """Bytes; 0 if unknown."""
    time: int = 0
    """A number that differs if the content may have changed: nanoseconds of the modification, or a checksum."""


def file_stamp(file: str | Path, name: str) -> Stamp:
    """The stamp of an image in a file of its own; size and time are -1 if the file cannot be accessed."""
    try:
        state = os.stat(file)
    except OSError:
        return Stamp(name, -1, -1)
    return Stamp(name, state.st_size, state.st_mtime_ns)


def content_hash(content: bytes | memoryview) -> int:
    """64-bit hash of the bytes of an image, never `UNKNOWN`."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True) or 1


@dataclass(frozen=True, eq=False)
class Stamps:
    """The state of all images of a data set, in its order. Each array is (N,) int64."""

    names: Sequence[str]
    labels: Numbers
    sizes: Numbers
    times: Numbers
    hashes: Numbers
    """Hash of the content of each image; `UNKNOWN` where it was not computed."""
    classes: Sequence[str] = ()
    """Names of the classes that the labels number; empty if they are not known."""

    @classmethod
    def of(cls, stamps: Iterable[Stamp], labels: Sequence[int] | Numbers) -> Self:
        """Stamps without hashes."""
        names, sizes, times = [], [], []
        for name, size, time in stamps:
            names.append(name)
            sizes.append(size)
            times.append(time)
        unknown = np.full(len(names), UNKNOWN, np.int64)
        labels = np.asarray(labels, np.int64)
        return cls(names, labels, np.array(sizes, np.int64), np.array(times, np.int64), unknown)

    def __len__(self) -> int:
        return len(self.names)

    def equal(self, other: Self) -> bool:
        """Whether all values are the same."""
        mine, others = self.arrays(), other.arrays()
        return mine.keys() == others.keys() and all(np.array_equal(mine[key], others[key]) for key in mine)

    def take(self, indices: Numbers) -> Self:
        """The stamps of some images."""
        arrays = {key: getattr(self, key)[indices] for key in ("labels", "sizes", "times", "hashes")}
        return replace(self, names=[self.names[i] for i in indices], **arrays)

    def hashed(self, indices: Numbers, hash_of: Callable[[int], int]) -> Self:
        """The same stamps with the hashes of some images, which are computed in threads where they are unknown."""
        missing = indices[self.hashes[indices] == UNKNOWN]
        hashes = self.hashes.copy()
        if len(missing):
            with ThreadPoolExecutor() as pool:
                parts = [missing[first : first + CHUNK] for first in range(0, len(missing), CHUNK)]
                computed = chain.from_iterable(pool.map(hash_of, part.tolist()) for part in parts)
                hashes[missing] = np.fromiter(computed, np.int64, len(missing))
        return replace(self, hashes=hashes)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The stamps as arrays for a file."""
        numbers = {key: getattr(self, key) for key in ("labels", "sizes", "times", "hashes")}
        classes = {"classes": packed(self.classes)} if self.classes else {}
        return {"names": packed(self.names), **numbers, **classes}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> Self:
        """Read what `arrays` returned.

        Raises:
            ValueError: the arrays contradict each other.
        """
        labels, sizes, times, hashes = (
            np.asarray(arrays[key], np.int64) for key in ("labels", "sizes", "times", "hashes")
        )
        classes = unpacked(arrays["classes"]) if "classes" in arrays else []
        names = unpacked(arrays["names"]) if len(labels) else []
        if {values.shape for values in (labels, sizes, times, hashes)} != {(len(names),)}:
            raise ValueError(f"{len(names)} names for other numbers of labels, sizes, times or hashes")
        if classes and len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError(f"labels {labels.min()} to {labels.max()} for {len(classes)} classes")
        return cls(names, labels, sizes, times, hashes, classes)

    def save(self, file: Path) -> None:
        """Write the stamps to a compressed .npz file."""
        content = io.BytesIO()
        np.savez_compressed(content, **self.arrays())  # type: ignore[arg-type]
        replace_bytes(file, content.getvalue())

    @classmethod
    def load(cls, file: Path) -> Self | None:
        """Read stamps that `save` wrote; None if the file does not exist or is damaged."""
        with suppress(InputError), interpreting(file, "it is not used"):
            check_archive(file)
            with np.load(file) as arrays:
                return cls.from_arrays(dict(arrays))
        return None


def packed(names: Iterable[str]) -> NDArray[np.uint8]:
    """Names as bytes, joined by line feeds, which no name has after `escaped`."""
    return np.frombuffer("\n".join(map(escaped, names)).encode("utf-8", "surrogateescape"), np.uint8)


def unpacked(content: NDArray[np.generic]) -> list[str]:
    """The names that `packed` received."""
    return [*map(restored, content.tobytes().decode("utf-8", "surrogateescape").split("\n"))]


def escaped(name: str) -> str:
    """A name without line feeds."""
    return name.replace("\\", "\\\\").replace("\n", "\\n") if "\\" in name or "\n" in name else name


def restored(name: str) -> str:
    """The name that `escaped` received."""
    return "\\".join(part.replace("\\n", "\n") for part in name.split("\\\\")) if "\\" in name else name


def read_stamps(stamp: Callable[[int], Stamp], labels: Numbers, pool: ThreadPoolExecutor) -> Stamps:
    """The stamps of all images, read in threads because a file system in the network answers slowly."""

    def part(first: int) -> list[Stamp]:
        return [stamp(i) for i in range(first, min(first + CHUNK, len(labels)))]

    return Stamps.of(chain.from_iterable(pool.map(part, range(0, len(labels), CHUNK))), labels)


@dataclass(frozen=True)
class Changes:
    """Names of the images that differ between two states of a data set."""

    removed: Sequence[str] = ()
    added: Sequence[str] = ()
    changed: Sequence[str] = ()  # other content
    relabeled: Sequence[str] = ()  # of another class
    renumbered: Sequence[str] = ()  # of the same class, which has another number
    uncertain: Sequence[str] = ()  # another modification time, and no hash to compare
    reordered: bool = False

    def without(self, names: AbstractSet[str]) -> Self:
        """The changes, apart from other content of images with these names."""
        changed, uncertain = ([name for name in part if name not in names] for part in (self.changed, self.uncertain))
        return replace(self, changed=changed, uncertain=uncertain)

    def __bool__(self) -> bool:
        return str(self) != ""

    def __str__(self) -> str:
        lists = {
            "removed": self.removed,
            "new": self.added,
            "with other content": self.changed,
            "with another label": self.relabeled,
            "of classes with another number": self.renumbered,
            "with another modification time, which may have changed": self.uncertain,
        }
        parts = [f"{len(names):,} {what} ({shown(names)})" for what, names in lists.items() if names]
        return ", ".join(parts) or "the same images in another order" * self.reordered


def shown(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])


def compare(before: Stamps, now: Stamps, hash_of: Callable[[int], int]) -> tuple[Changes, Stamps]:
    """What has changed between two states of a data set.

    Args:
        before, now: the states.
        hash_of: computes the hash of the image with an index in `now`; called only if the time alone differs.

    Returns:
        The changes, and `now` with the known hashes of the images that are the same.
    """
    a, b = matched(before.names, now.names)
    resized = before.sizes[a] != now.sizes[b]
    doubtful = ~resized & (before.times[a] != now.times[b])
    known = before.hashes[a] != UNKNOWN
    now = now.hashed(b[doubtful & known], hash_of)
    rewritten = resized | (doubtful & known & (before.hashes[a] != now.hashes[b]))
    uncertain = doubtful & ~known
    same = ~rewritten & ~uncertain
    hashes = now.hashes.copy()
    hashes[b[same]] = before.hashes[a[same]]

    def names(mask: NDArray[np.bool_]) -> list[str]:
        return [now.names[i] for i in b[mask]]

    other_number = before.labels[a] != now.labels[b]
    other_class = relabeled(before, now, a, b) if before.classes and now.classes else other_number
    absent, new = np.ones(len(before), bool), np.ones(len(now), bool)
    absent[a] = new[b] = False
    changes = Changes(
        removed=[before.names[i] for i in np.flatnonzero(absent).tolist()],
        added=[now.names[i] for i in np.flatnonzero(new).tolist()],
        changed=names(rewritten),
        relabeled=names(other_class),
        renumbered=names(other_number & ~other_class),
        uncertain=names(uncertain),
        reordered=any(later < earlier for earlier, later in pairwise(b.tolist())),
    )
    return changes, replace(now, hashes=hashes)


def relabeled(before: Stamps, now: Stamps, a: Numbers, b: Numbers) -> NDArray[np.bool_]:
    """Whether the image a[i] of one state and b[i] of the other are of classes with other names."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys([*before.classes, *now.classes]))}
    was, is_ = (np.array([numbers[name] for name in state.classes]) for state in (before, now))
    different: NDArray[np.bool_] = was[before.labels[a]] != is_[now.labels[b]]
    return different


def matched(before: Sequence[str], now: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Indices of the images that two states have in common, in the order of the first."""
    if list(before) == list(now):
        return np.arange(len(now)), np.arange(len(now))
    index = {name: i for i, name in enumerate(now)}
    pairs = [(i, index.pop(name)) for i, name in enumerate(before) if name in index]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    return first, second
