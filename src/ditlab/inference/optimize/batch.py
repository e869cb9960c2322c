"""Measure the fastest batch size that fits into memory."""

import time
from collections.abc import Callable

import torch

from ditlab.core.device import free_memory, out_of_memory, peak_memory, reset_peak_memory

SMALLEST, LARGEST = 4, 1024
GAIN = 1.05  # smallest speedup per image for which the batch size is doubled
TRIAL = 0.02  # largest share of the total work for trials


def best_batch(call: Callable[[int], object], device: torch.device, images: int, calls: float) -> int:
    """Double the batch size as long as that is faster per image and fits into memory; returns the batch size.

    Args:
        call: runs the network on a batch of this size, and waits for the device.
        device: device of the network.
        images: number of images to generate.
        calls: network calls per image; trials end when they would take more than 2 % of the total work.
    """
    best, shortest = 1, float("inf")
    batch, spent = SMALLEST, 0.0
    while batch <= min(LARGEST, max(images, SMALLEST)):
        reset_peak_memory(device)  # the peak of loading may be higher than that of the call
        before = peak_memory(device)
        try:
            call(batch)  # the first call of a shape is slower
            start = time.perf_counter()
            call(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
        per_image = (time.perf_counter() - start) / batch
        if per_image * GAIN > shortest:
            break
        best, shortest = batch, per_image
        spent += 2 * per_image * batch
        if 3 * spent > TRIAL * per_image * images * calls:  # the next trial takes twice as long
            break
        # The increase may be due to half of this batch; then the next batch needs 4 times as much, with guidance 8.
        if 8 * (peak_memory(device) - before) > free_memory(device):
            break
        batch *= 2
    return best
