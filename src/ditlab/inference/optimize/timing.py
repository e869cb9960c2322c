"""Comparable timings of several functions."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

import torch

Name = TypeVar("Name")
Work = Callable[[], object]


def waiter(device: torch.device) -> Work:
    """A function that returns when the device has finished its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def interleaved(
    sides: Mapping[Name, Work],
    rounds: int,
    wait: Work = lambda: None,
    pick: Callable[[list[float]], float] = median,
) -> dict[Name, float]:
    """Median seconds of each function, all run in turn, after a warm-up round.

    Args:
        sides: the functions to compare, by name.
        rounds: number of timed rounds.
        wait: returns when the device has finished its work.
        pick: reduces the times of the rounds to one; `min` gives the best that the machine can do.
    """
    times: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: pick(taken[1:]) for name, taken in times.items()}
