"""Measure which precision is faster on this machine.

bfloat16 is several times faster than float32 on devices with bfloat16 instructions, and hundreds of times slower on
others; for small networks the casts of autocast take more time than they save. On devices with the instructions,
training steps are therefore measured; on a CPU a matrix product is measured first.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

from ditlab.core.device import cache_folder, describe, has_bfloat16
from ditlab.core.formats import read_object
from ditlab.core.io import replace_text
from ditlab.inference.optimize.timing import interleaved, waiter

PRECISIONS = ("float32", "bfloat16")  # not float16: CPUs compute it in a reference kernel, if at all
ROUNDS = 3


def faster_dtype(step: Callable[[torch.dtype], None], device: torch.device, width: int) -> torch.dtype:
    """Return float32 or bfloat16, depending on which runs `step` faster.

    Args:
        step: runs one training step in an autocast precision.
        device: the network's device.
        width: inner dimension of the network's matrix products.
    """
    if device.type == "mps" or not has_bfloat16(device):
        return torch.float32
    if device.type == "cpu":  # on some CPUs the instructions are not faster
        a, b = torch.randn(256, width), torch.randn(width, 4 * width)
        if _faster(lambda dtype: torch.mm(a.to(dtype), b.to(dtype)), device) is torch.float32:
            return torch.float32
    return _faster(step, device)


def quick_precision(width: int, device: torch.device) -> str:
    """Return "float32" or "bfloat16", depending on which is faster for matrix products of this width.

    It is measured once per machine, PyTorch version and width, and stored in the user's cache. On a CPU bfloat16 must
    be 1.5 times faster, because casts and other layers may cost that much.
    """
    if device.type == "mps" or not has_bfloat16(device):
        return "float32"
    machine = describe(str(device))
    key = " ".join(map(str, (machine["device"], machine["processor"], machine["cores"], torch.__version__, width)))
    cache = cache_folder() / "precision.json"
    try:
        known: dict[str, str] = read_object(cache)
    except (OSError, ValueError):
        known = {}
    if known.get(key) not in PRECISIONS:
        a, b = (torch.randn(*shape, device=device) for shape in ((512, width), (width, 4 * width)))
        copies = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
        times = _times(lambda dtype: torch.mm(*copies[dtype]), device)
        margin = 1.5 if device.type == "cpu" else 1.0
        known[key] = "bfloat16" if times[torch.bfloat16] * margin < times[torch.float32] else "float32"
        with suppress(OSError):  # without a cache it is measured again
            replace_text(cache, json.dumps(known, indent=2) + "\n")
    return known[key]


def slowness(precision: str, device: torch.device) -> str | None:
    """Return a warning if a precision is slow on this device, otherwise None."""
    if precision == "float32" or has_bfloat16(device):
        return None
    return f"{device} has no bfloat16 instructions and computes it slowly; float32 is faster here"


def _times(work: Callable[[torch.dtype], object], device: torch.device) -> dict[torch.dtype, float]:
    sides = {dtype: partial(work, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return interleaved(sides, ROUNDS, waiter(device))


def _faster(work: Callable[[torch.dtype], object], device: torch.device) -> torch.dtype:
    times = _times(work, device)
    return min(times, key=lambda dtype: times[dtype])
