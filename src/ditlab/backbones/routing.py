"""Blocks that not everything passes: dynamic depth, and routing in training.

Late blocks are left out where little is to be seen.

How many blocks an image passes is a function of its time alone (Moon et al., "A Simple Early Exiting Framework for
Accelerated Sampling in Diffusion Models", ICML 2024, the time-dependent schedule): noisy steps need few. The network is
trained, or trained on, with the schedule that it is sampled with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ditlab.backbones.base import record
from ditlab.core.errors import InputError
from ditlab.core.types import Trace

CLOCK = 1000.0  # where the clock of all processes ends


def check_exits(exits: Sequence[float]) -> None:
    """Refuse shares of the depth that cannot be.

    Raises:
        InputError: a share outside (0, 1].
    """
    for share in exits:
        if not 0 < share <= 1:
            raise InputError(f"exits {', '.join(map(str, exits))}: {share} is no share; give above 0 to 1")


def depth_at(t: Tensor, exits: Sequence[float], depth: int) -> list[int]:
    """Blocks that each image passes.

    Args:
        t: clock (B,), 0 to 1000.
        exits: shares of the depth for equal spans of the clock, from data to noise.
        depth: blocks in all.
    """
    spans = (t.float() * len(exits) / CLOCK).long().clamp(0, len(exits) - 1)  # (B,)
    return [max(1, round(exits[span] * depth)) for span in spans.tolist()]


def routed(blocks: nn.ModuleList, x: Tensor, c: Tensor, trace: Trace) -> Tensor:
    """Tokens (B, N, D) of which only some pass the middle blocks, in training (Krause et al., "TREAD", ICCV 2025).

    Args:
        blocks: all of them; a sixth at either end sees all tokens.
        x: tokens.
        c: condition.
        trace: `kept` holds the places (B, K) of the tokens that pass all blocks.
    """
    ends = max(1, round(len(blocks) / 6))
    assert trace.kept is not None
    for i, block in enumerate(blocks[:ends]):
        x = block(x, c)
        record(trace, i, x)
    where = trace.kept[..., None].expand(-1, -1, x.shape[-1])  # (B, K, D)
    some = x.gather(1, where)
    for i, block in enumerate(blocks[ends:-ends], start=ends):
        some = block(some, c, trace.kept)
        record(trace, i, some)
    x = x.scatter(1, where, some)
    for i, block in enumerate(blocks[-ends:], start=len(blocks) - ends):
        x = block(x, c)
        record(trace, i, x)
    return x


def through(blocks: nn.ModuleList, x: Tensor, c: Tensor, depths: Sequence[int]) -> Tensor:
    """Tokens (B, N, D) through as many blocks as each image's depth says."""
    for i, block in enumerate(blocks):
        staying = [place for place, depth in enumerate(depths) if depth > i]
        if not staying:
            break
        if len(staying) == len(depths):
            x = block(x, c)
        else:
            where = torch.tensor(staying, device=x.device)
            x = x.index_copy(0, where, block(x[where], c[where]))
    return x
