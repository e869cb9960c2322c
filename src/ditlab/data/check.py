"""A check, before hours of work, that images can be read: a sample of files is decoded.

Empty files and files of other types have no header, and are found when the data set is opened. Truncated files have a
good header, so that `DECODED` random files are decoded; a smaller data set is decoded whole. The check ends after
`SECONDS`, because tar shards and networks may be slow.
"""

import time
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.core.progress import progress_bar
from ditlab.core.terminal import say
from ditlab.data.base import spread

if TYPE_CHECKING:
    from ditlab.data.file_dataset import FileDataset

SECONDS = 120.0  # longest duration of the check
DECODED = 1000  # files that are decoded; their share of unreadable ones is known to 2 % (three standard errors at 5 %)


class UnreadableImagesError(InputError):
    """More images cannot be read than the settings allow."""


def check_images(images: "FileDataset", console: Console, *, resumed: bool) -> None:
    """Check images, and list those that cannot be read in the report of the data set.

    Args:
        images: the data set.
        console: where progress is shown.
        resumed: check only the images that the report already lists, because an earlier call has checked the others.

    Raises:
        UnreadableImagesError: the share of images that cannot be read is greater than `images.max_skipped`.
    """
    if resumed:
        check_listed(images)
        return
    images.relist()
    list(images.pool.map(images.readable, map(images.first_of, images.without_header)))  # lists them with their reasons
    require(images)
    before = len(images.skipped)
    checked = decode_some(images, console)
    require(images)
    found = len(images.skipped) - before  # beyond those with a broken header
    expected = images.max_skipped * checked
    if found > expected + 3 * expected**0.5:  # the estimate is certain
        raise UnreadableImagesError(refusal(images, found, checked, f"{images.what}s that were decoded as a check"))


def decode_some(images: "FileDataset", console: Console) -> int:
    """Decode random images in threads, and list those that cannot be read; returns how many were decoded."""
    order = torch.randperm(images.source.nearby, generator=torch.Generator().manual_seed(0)).tolist()[:DECODED]
    results = spread(images.pool, lambda i: images.readable(images.first_of(order[i])), len(order), chunk=256)
    checked, end = 0, time.monotonic() + SECONDS
    with progress_bar(console) as bar:
        for _ in bar.track(results, task_id=bar.add_task(f"checking {images.what}s", total=len(order))):
            checked += 1
            if time.monotonic() > end:
                break
    if checked < len(order):
        say(console, f"decoded {checked:,} of {len(order):,} random {images.what}s in {SECONDS:g} s to check them")
    return checked


def check_listed(images: "FileDataset") -> None:
    """Read again the images that an earlier part of the work listed; those that have been repaired leave the list."""
    names = images.relist()
    listed = [i for i in range(len(images.source)) if images.source.name(i) in names] if names else []
    list(images.pool.map(images.readable, map(images.first_of, listed)))
    require(images)


def require(images: "FileDataset") -> None:
    """Check that not too many images are listed as unreadable.

    Raises:
        UnreadableImagesError: there are too many.
    """
    count, total = len(images.skipped), len(images.source)
    if count and (count > max(1, images.max_skipped * total) or not images.max_skipped):
        raise UnreadableImagesError(refusal(images, count, total, f"{images.what}s"))


def refusal(images: "FileDataset", count: int, checked: int, what: str) -> str:
    """The message for too many images that cannot be read."""
    (name, reason), (fault, remedy) = list(images.skipped.items())[-1], images.fault()
    listed = f"; all are listed in {images.report}" if images.report else ""
    return (
        f"{count:,} of {checked:,} {what} {fault}, the last one is {name} ({reason}){listed}; {remedy}, or "
        f"allow a greater share than {images.max_skipped} (max_skipped); it is {count / checked:.3g} so far"
    )
