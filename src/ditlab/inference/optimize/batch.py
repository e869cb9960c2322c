"""How many pictures at a time: as many as make this machine quicker, and fit into its memory."""

import time
from collections.abc import Callable

import torch

from ditlab.core.device import free_memory, out_of_memory, peak_memory, reset_peak_memory

SMALLEST, LARGEST = 4, 1024
GAIN = 1.05  # a doubled batch must be so much quicker for each picture
TRIAL = 0.02  # share of the work that trying may take


def best_batch(call: Callable[[int], object], device: torch.device, pictures: int, calls: float) -> int:
    """The largest batch that still makes a picture quicker and fits; doubled from a small one.

    Args:
        call: runs the network on so many pictures, and waits for the device.
        device: where.
        pictures: all that will be drawn.
        calls: network calls that each of them needs; trying ends where it would take more than 2 % of them all.
    """
    best, quickest = 1, float("inf")
    batch, spent = SMALLEST, 0.0
    while batch <= min(LARGEST, max(pictures, SMALLEST)):
        reset_peak_memory(device)  # or what loading took would hide what this takes
        before = peak_memory(device)
        try:
            call(batch)  # the first one of a shape is slower
            start = time.perf_counter()
            call(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        each = (time.perf_counter() - start) / batch
        if each * GAIN > quickest:
            break
        best, quickest = batch, each
        spent += 2 * each * batch
        if 3 * spent > TRIAL * each * pictures * calls:  # the next one takes twice as long as this
            break
        # It grew with half of this batch: the next one needs four times as much, and guidance doubles that.
        if 8 * (peak_memory(device) - before) > free_memory(device):
            break
        batch *= 2
    return best
