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
from torch import Tensor, nn

from ditlab.core.device import cache_folder, describe, has_bfloat16
from ditlab.core.formats import read_object
from ditlab.core.io import replace_text
from ditlab.inference.optimize.quantized import OneDNNLinear, missing
from ditlab.inference.optimize.timing import interleaved, waiter

QUANTIZED = ("int8", "float8")  # for inference only
PRECISIONS = ("float32", "bfloat16", *QUANTIZED)  # not float16: CPUs compute it in a reference kernel, if at all
ROUNDS, ROWS = 3, 512
MARGIN = 1.5  # smallest speedup of a product on a CPU, because casts and other layers may cost that much
INT8_MARGIN = 1.2  # the same for int8, which leaves the other layers as they are


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

    def measured() -> str:
        times = _times(_products(width, device), device)
        margin = MARGIN if device.type == "cpu" else 1.0
        return "bfloat16" if times[torch.bfloat16] * margin < times[torch.float32] else "float32"

    return _remembered(str(width), device, measured)


def int8_pays(width: int, precision: str, device: torch.device) -> bool:
    """Whether an int8 layer of this width is 1.2 times as fast as a matrix product in another precision, on a CPU.

    It is measured and stored like `quick_precision`. A GPU is not measured.
    """
    if device.type != "cpu" or missing("int8", device):
        return False

    def measured() -> str:
        layer = OneDNNLinear(nn.Linear(width, 4 * width))
        product, dtype, rows = _products(width, device), getattr(torch, precision), torch.randn(ROWS, width)
        sides = {"int8": torch.no_grad()(partial(layer, rows)), precision: partial(product, dtype)}
        times = interleaved(sides, ROUNDS)
        return "int8" if times["int8"] * INT8_MARGIN < times[precision] else precision

    return _remembered(f"{width} int8 or {precision}", device, measured) == "int8"


def _products(width: int, device: torch.device) -> Callable[[torch.dtype], Tensor]:
    """A function that computes a matrix product in a precision."""
    a, b = (torch.randn(*shape, device=device) for shape in ((ROWS, width), (width, 4 * width)))
    copies = {dtype: (a.to(dtype), b.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    return lambda dtype: torch.mm(*copies[dtype])


def _remembered(what: str, device: torch.device, measured: Callable[[], str]) -> str:
    """Return the measured precision from the user's cache, or measure it; `what` is the width and what is compared."""
    machine = describe(str(device))
    key = " ".join(map(str, (machine["device"], machine["processor"], machine["cores"], torch.__version__, what)))
    cache = cache_folder() / "precision.json"
    try:
        known: dict[str, str] = read_object(cache)
    except (OSError, ValueError):
        known = {}
    if known.get(key) not in PRECISIONS:
        known[key] = measured()
        with suppress(OSError):  # without a cache it is measured again
            replace_text(cache, json.dumps(known, indent=2) + "\n")
    return known[key]


def slowness(precision: str, device: torch.device) -> str | None:
    """Return a warning if a precision is slow on this device, otherwise None."""
    if precision != "bfloat16" or has_bfloat16(device):
        return None
    return f"{device} has no bfloat16 instructions and computes it slowly; float32 is faster here"


def _times(work: Callable[[torch.dtype], object], device: torch.device) -> dict[torch.dtype, float]:
    sides = {dtype: partial(work, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return interleaved(sides, ROUNDS, waiter(device))


def _faster(work: Callable[[torch.dtype], object], device: torch.device) -> torch.dtype:
    times = _times(work, device)
    return min(times, key=lambda dtype: times[dtype])
