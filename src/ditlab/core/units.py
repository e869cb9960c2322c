"""Units of memory and time, and counts in words."""

GIB = 2**30


def counted(count: int, noun: str) -> str:
    """A count in words: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def duration(seconds: float) -> str:
    """Format a duration in the largest unit in which it is at least 2, such as "3.5 hours"."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} s"
