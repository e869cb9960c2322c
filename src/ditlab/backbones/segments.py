"""Images of several sizes as one list of tokens, without padding: each token attends to those of its own image.

In shapes, B is the number of images, N that of the tokens of all, and d the width of a head.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ditlab.backbones.layers import attend

KERNEL = "torch.nn.attention.varlen"  # PyTorch 2.10 and later


class Segments(NamedTuple):
    """The images of a list of tokens."""

    lengths: tuple[int, ...]
    """The number of tokens of each image."""
    of: Tensor
    """(N,) int64, image of each token."""

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device) -> Self:
        """The images with these numbers of tokens, one after the other."""
        images = torch.arange(len(lengths), device=device)
        return cls(tuple(lengths), images.repeat_interleave(torch.tensor(lengths, device=device)))


def attend_segments(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """Compute the attention (1, heads, N, d) of the tokens of each image to each other.

    On a CPU, in float32, and with PyTorch 2.9, the images are computed one after the other. On CUDA in half precision,
    one kernel computes all of them; the developers have not run it on a GPU.
    """
    if q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and find_spec(KERNEL):
        kernel = import_module(KERNEL).varlen_attn  # not earlier: it imports the compiler
        ends = torch.tensor([0, *accumulate(segments.lengths)], dtype=torch.int32, device=q.device)
        longest = max(segments.lengths)
        parts = (part[0].transpose(0, 1).contiguous() for part in (q, k, v))  # (N, heads, d)
        out: Tensor = kernel(*parts, ends, ends, longest, longest)
        return out.transpose(0, 1)[None]
    images = zip(*(torch.split(part, list(segments.lengths), dim=2) for part in (q, k, v)), strict=True)
    return torch.cat([attend(*image) for image in images], dim=2)
