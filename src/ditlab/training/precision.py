"""Which precision is truly faster here: measured, never assumed.

bfloat16 is several times faster with the right instructions and hundreds of times slower without them, and for
small networks the casts of autocast cost more than they save. So whole training steps are timed, and on a CPU first a
small matrix product, so that the hopeless case costs nothing.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

ROUNDS = 3


def faster_dtype(step: Callable[[torch.dtype], None], device: torch.device, width: int) -> torch.dtype:
    """float32 or bfloat16, whichever runs `step` faster.

    Args:
        step: runs one training step in the given autocast precision.
        device: where the network is.
        width: inner dimension of the network's matrix products.
    """
    if device.type == "mps":
        return torch.float32
    if device.type == "cpu":  # without the instructions a whole step in bfloat16 could take minutes
        a, b = torch.randn(256, width), torch.randn(width, 4 * width)
        if _faster(lambda dtype: torch.mm(a.to(dtype), b.to(dtype)), device) is torch.float32:
            return torch.float32
    return _faster(step, device)


def _faster(work: Callable[[torch.dtype], object], device: torch.device) -> torch.dtype:
    times: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(ROUNDS + 1):  # the first round warms up
        for dtype, taken in times.items():
            start = time.perf_counter()
            work(dtype)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
    return min(times, key=lambda dtype: median(times[dtype][1:]))
