"""What the machine can do, and how it is made to do it."""

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory of up to 2 GiB for the next tensors; for a process, once, before work.

    glibc gives every large tensor back to the system when it is freed, and the next one of its size has all its pages
    cleared again: a tenth of a training step on a CPU. Nothing happens where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
