"""Early exit, and token routing in training: blocks that not every image or token passes.

Early exit (Moon et al., "A Simple Early Exiting Framework for Accelerated Sampling in Diffusion Models", ICML 2024, the
time-dependent schedule): the number of blocks that an image passes is a function of its timestep alone, since noisy
steps need few. The network must be trained, or fine-tuned, with the schedule that it is sampled with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.types import Trace

LAST = 1000.0  # the largest timestep of all processes


def check_exits(exits: Sequence[float]) -> None:
    """Reject shares of the depth that are impossible.

    Raises:
        InputError: a share outside (0, 1].
    """
    for share in exits:
        if not 0 < share <= 1:
            raise InputError(
                f"exits {', '.join(map(str, exits))}: {share} is not a share; give numbers above 0, up to 1"
            )


def depth_at(t: Tensor, exits: Sequence[float], depth: int) -> list[int]:
    """The number of blocks that each image passes.

    Args:
        t: timesteps (B,), 0 to 1000.
        exits: shares of the depth for equal spans of the timestep, from data to noise.
        depth: number of blocks.
    """
    spans = (t.float() * len(exits) / LAST).long().clamp(0, len(exits) - 1)  # (B,)
    return [max(1, round(exits[span] * depth)) for span in spans.tolist()]


def record(trace: Trace | None, i: int, x: Tensor) -> None:
    """Record the output of block i, if there is a trace that asks for it."""
    if trace is not None:
        trace.tap(f"blocks.{i}", x)


def routed(blocks: nn.ModuleList, x: Tensor, c: Tensor, kept: Tensor, trace: Trace) -> Tensor:
    """Tokens (B, N, D) of which only some pass the middle blocks, in training (Krause et al., "TREAD", ICCV 2025).

    Args:
        blocks: all of them; a sixth at either end processes all tokens.
        x: tokens.
        c: condition.
        kept: places (B, K) of the tokens that pass all blocks.
        trace: where outputs of blocks are recorded; those of the middle blocks have K tokens.
    """
    ends = max(1, round(len(blocks) / 6))
    last = len(blocks) - ends
    for i, block in enumerate(blocks[:ends]):
        x = block(x, c)
        record(trace, i, x)
    where = kept[..., None].expand(-1, -1, x.shape[-1])  # (B, K, D)
    some = x.gather(1, where)
    for i, block in enumerate(blocks[ends:last], start=ends):
        some = block(some, c, kept)
        record(trace, i, some)
    x = x.scatter(1, where, some)
    for i, block in enumerate(blocks[last:], start=last):
        x = block(x, c)
        record(trace, i, x)
    return x


def through(blocks: nn.ModuleList, x: Tensor, c: Tensor, depths: Sequence[int], trace: Trace | None = None) -> Tensor:
    """Tokens (B, N, D) of each image through the first blocks, up to the image's depth."""
    for i, block in enumerate(blocks):
        staying = [place for place, depth in enumerate(depths) if depth > i]
        if not staying:
            break
        if len(staying) == len(depths):
            x = block(x, c)
        else:
            where = torch.tensor(staying, device=x.device)
            x = x.index_copy(0, where, block(x[where], c[where]))
        record(trace, i, x)
    return x
