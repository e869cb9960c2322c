"""A check, before hours of work, that images can be read: the headers of all files, and a sample of whole files.

A header takes about 0.1 ms (two minutes for ImageNet's 1.3 million files), and finds empty files and files of other
types. Truncated files have a good header, so that `DECODED` files are decoded too. A smaller data set is decoded whole.
"""

from itertools import compress
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.core.progress import progress_bar
from ditlab.data.base import spread

if TYPE_CHECKING:
    from ditlab.data.images import Images

DECODED = 1000  # files that are decoded; their share of unreadable ones is known to 2 % (three standard errors at 5 %)


class UnreadableImagesError(InputError):
    """More images cannot be read than the settings allow."""


def check_images(images: "Images", console: Console, *, resumed: bool) -> None:
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
    total = len(images.source)
    sample = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:DECODED].sort().values.tolist()
    if len(sample) < total:
        pass_over(images, list(range(total)), console, headers=True)
        require(images)
    before = len(images.skipped)
    pass_over(images, sample, console, headers=False)
    require(images)
    found = len(images.skipped) - before  # beyond those with a broken header
    expected = images.max_skipped * len(sample)
    if found > expected + 3 * expected**0.5:  # the estimate is certain
        raise UnreadableImagesError(refusal(images, found, len(sample), "images that were decoded as a check"))


def pass_over(images: "Images", indices: list[int], console: Console, *, headers: bool) -> None:
    """Read images or their headers in threads; those that cannot be read are listed."""
    readable = images.has_header if headers else images.readable
    with progress_bar(console) as bar:
        task = bar.add_task("checking headers" if headers else "checking images", total=len(indices))
        done = list(bar.track(spread(images.pool, lambda i: readable(indices[i]), len(indices)), task_id=task))
    if headers:
        for i in compress(indices, (not good for good in done)):
            images.readable(i)  # lists the reason


def check_listed(images: "Images") -> None:
    """Read again the images that an earlier part of the work listed; those that have been repaired leave the list."""
    names = images.reported
    if not names or images.report is None:
        return
    images.report.unlink(missing_ok=True)
    images.reported = set()
    listed = [i for i in range(len(images.source)) if images.source.name(i) in names]
    list(images.pool.map(images.readable, listed))
    require(images)


def require(images: "Images") -> None:
    """Check that not too many images are listed as unreadable.

    Raises:
        UnreadableImagesError: there are too many.
    """
    count, total = len(images.skipped), len(images.source)
    if count and (count > max(1, images.max_skipped * total) or not images.max_skipped):
        raise UnreadableImagesError(refusal(images, count, total, "images"))


def refusal(images: "Images", count: int, checked: int, what: str) -> str:
    """The message for too many images that cannot be read."""
    name, reason = list(images.skipped.items())[-1]
    listed = f"; all are listed in {images.report}" if images.report else ""
    return (
        f"{count:,} of {checked:,} {what} cannot be read, the last one is {name} ({reason}){listed}; repair them, or "
        f"allow a greater share than {images.max_skipped} (max_skipped); it is {count / checked:.3g} so far"
    )
