"""Clips of which some frames are given: the network receives them without noise, and their errors do not count.

In shapes, B is the batch, C the channels and T the number of frames.
"""

import torch
from torch import Tensor


def in_given(given: Tensor | None, first: Tensor, other: Tensor) -> Tensor:
    """Return the values `first` (B, C, T, ...) in given frames (B, T), and `other` elsewhere; None is no such frame."""
    return other if given is None else torch.where(given[:, None, :, None, None], first, other)


def mean_error(errors: Tensor, given: Tensor | None) -> Tensor:
    """Return the mean (B,) of errors (B, C, ...) over all values, except those of given frames (B, T)."""
    if given is None:
        return errors.flatten(1).mean(1)
    frames = errors.transpose(1, 2).flatten(2).mean(2)  # (B, T)
    return frames.masked_fill(given, 0).sum(1) / (~given).sum(1)
