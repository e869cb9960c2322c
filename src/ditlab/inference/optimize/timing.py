"""Times that can be compared."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

import torch

Name = TypeVar("Name")
Work = Callable[[], object]


def waiter(device: torch.device) -> Work:
    """What returns when the device is done."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def interleaved(
    sides: Mapping[Name, Work],
    rounds: int,
    wait: Work = lambda: None,
    pick: Callable[[list[float]], float] = median,
) -> dict[Name, float]:
    """Median seconds of each side, all run in turns; a first round warms up.

    Args:
        sides: what is compared.
        rounds: that count.
        wait: returns when the device is done.
        pick: what to take of the rounds; `min` for what the machine can do at best.
    """
    times: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: pick(taken[1:]) for name, taken in times.items()}
