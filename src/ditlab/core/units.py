"""Units of memory and time."""

GIB = 2**30


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two: "3.5 hours"."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} s"
