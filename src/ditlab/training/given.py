"""The frames of clips that are given in training: the network receives them without noise."""

import torch
from torch import Tensor

from ditlab.config.sections import Train


def given_frames(settings: Train, count: int, frames: int, generator: torch.Generator) -> Tensor | None:
    """Choose the frames of clips that are given.

    Args:
        settings: the shares of clips with given frames.
        count: number of clips, B.
        frames: number of frames of each, T.
        generator: from which two values are taken for each clip, if any share is above 0.

    Returns:
        (B, T), true for given frames; not all frames of a clip. None if there are no given frames.
    """
    shares = torch.tensor([settings.given_first, settings.given_start, settings.given_ends], dtype=torch.float64)
    if not shares.any():
        return None
    u, v = torch.rand(2, count, generator=generator, dtype=torch.float64)
    form = torch.searchsorted(shares.cumsum(0), u, right=True)[:, None]  # (B, 1): first, start, ends or none
    length = torch.where(form == 1, 1 + (v * max(1, frames // 2)).long()[:, None], 1)
    place = torch.arange(frames)
    given = ((place < length) & (form < 3)) | ((place == frames - 1) & (form == 2))
    return given & ~given.all(1, keepdim=True)  # an image has no other frame
