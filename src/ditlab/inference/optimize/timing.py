"""Measure and compare the time of several functions."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks in seconds: wall-clock time, and the processor time of all threads of this process."""
Name = TypeVar("Name")
Work = Callable[[], object]


def waiter(device: torch.device) -> Work:
    """Return a function that waits until the device has finished its work."""
    return (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize


def interleaved(
    sides: Mapping[Name, Work],
    rounds: int,
    wait: Work = lambda: None,
    pick: Callable[[list[float]], float] = median,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Measure the median time of each function in seconds. The functions run in turn, after a warm-up round.

    Args:
        sides: the functions to compare, by name.
        rounds: number of measured rounds.
        wait: waits until the device has finished its work.
        pick: reduces the times of all rounds to one; `min` gives the best time.
        clock: `time.process_time` measures CPU seconds, which other programs on the machine hardly change.
    """
    times: dict[Name, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, work in sides.items():
            start = clock()
            work()
            wait()
            times[name].append(clock() - start)
    return {name: pick(rounds_seconds[1:]) for name, rounds_seconds in times.items()}
