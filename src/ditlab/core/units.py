"""Units of memory and time, for people."""

GIB = 2**30


def duration(seconds: float) -> str:
    """Minutes, hours or days."""
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} s"
