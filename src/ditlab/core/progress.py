"""Progress bars, and how long work will take."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console) -> Progress:
    """A progress bar with a count and the time left; shown in a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def outlook(seen: int, images: int, rate: float, seconds: float) -> tuple[int, float]:
    """Estimate the end of work that ends after a number of images or a time, whichever comes first.

    Args:
        seen: images done.
        images: images to do.
        rate: images per second, above 0.
        seconds: time that is left; may be infinite.

    Returns:
        The number of images at the end, and the seconds until then.
    """
    needed = max(0.0, (images - seen) / rate)
    return (images, needed) if needed <= seconds else (seen + round(rate * seconds), seconds)
