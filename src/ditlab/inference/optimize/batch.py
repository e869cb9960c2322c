"""Choosing a batch size: the largest that is faster for each image and fits into memory."""

import time
from collections.abc import Callable

import torch

from ditlab.core.device import free_memory, out_of_memory, peak_memory, reset_peak_memory

SMALLEST, LARGEST = 4, 1024
GAIN = 1.05  # speedup for each image that a doubled batch must have
TRIAL = 0.02  # share of the total work that trials may take


def best_batch(call: Callable[[int], object], device: torch.device, images: int, calls: float) -> int:
    """The batch size after which doubling is no longer faster for each image, or does not fit.

    Args:
        call: runs the network on a batch of this size, and waits for the device.
        device: the network's device.
        images: number of images to generate.
        calls: network calls for each image; trials end when they would take more than 2 % of the total work.
    """
    best, quickest = 1, float("inf")
    batch, spent = SMALLEST, 0.0
    while batch <= min(LARGEST, max(images, SMALLEST)):
        reset_peak_memory(device)  # otherwise the peak of loading would hide that of the call
        before = peak_memory(device)
        try:
            call(batch)  # the first call of a shape is slower
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
        if 3 * spent > TRIAL * each * images * calls:  # the next one takes twice as long
            break
        # The peak grew with half of this batch: the next one needs four times as much, and guidance doubles that.
        if 8 * (peak_memory(device) - before) > free_memory(device):
            break
        batch *= 2
    return best
