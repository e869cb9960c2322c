"""Early exit, and token routing in training: some images or tokens skip some blocks.

Early exit (Moon et al., "A Simple Early Exiting Framework for Accelerated Sampling in Diffusion Models", ICML 2024,
time-dependent schedule): noisy steps use fewer blocks, and the number of blocks depends on the timestep only. Train or
fine-tune the network with the same exits that it is sampled with. In networks with long skip connections, blocks of the
second half are left out, but not the layers that join the skip connections.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ditlab.backbones.layers import Where
from ditlab.core.errors import InputError
from ditlab.core.types import Trace

if TYPE_CHECKING:
    from ditlab.backbones.base import Backbone

LAST = 1000.0  # the largest timestep of all processes
PUBLISHED_DEPTHS = (28, 28, 24, 24, 20, 20, 16, 16, 12, 12)  # of DiT-XL/2's 28 blocks, the schedule "demo"


def check_exits(exits: Sequence[float]) -> None:
    """Check the shares of the depth at which images exit.

    Raises:
        InputError: a share outside (0, 1].
    """
    for share in exits:
        if not 0 < share <= 1:
            raise InputError(
                f"exits {', '.join(map(str, exits))}: {share} is not a share; give numbers above 0, up to 1"
            )


def check_late_exits(exits: Sequence[float], depth: int, least: int) -> None:
    """Check that exits are in the second half of a network with long skip connections.

    Args:
        exits: shares of the depth, see `check_exits`.
        depth: number of blocks.
        least: number of blocks that always run.

    Raises:
        InputError: an exit is earlier.
    """
    check_exits(exits)
    for share in exits:
        if round(share * depth) < least:
            raise InputError(
                f"exits {', '.join(map(str, exits))}: {share} of {depth} blocks, but the {least} blocks before the "
                f"joined skips always run; give shares of at least {-(-100 * least // depth) / 100:g}"
            )


def depth_at(t: Tensor, exits: Sequence[float], depth: int) -> list[int]:
    """Return the number of blocks that each image uses.

    Args:
        t: timesteps (B,), 0 to 1000; or (B, 1 + n) with further inputs of the network.
        exits: shares of the depth for equal intervals of the timestep, from data to noise.
        depth: number of blocks.
    """
    if len(exits) == 1:
        return [max(1, round(exits[0] * depth))] * len(t)
    t = t if t.ndim == 1 else t[:, 0]
    intervals = (t.float() * len(exits) / LAST).long().clamp(0, len(exits) - 1)  # (B,)
    return [max(1, round(exits[interval] * depth)) for interval in intervals.tolist()]


def leaves_early(exits: Sequence[float], t: Tensor) -> bool:
    """Whether images leave before the last block; on the meta device only if that does not depend on the timesteps."""
    return len(exits) == 1 or (bool(exits) and not t.is_meta)


def record(trace: Trace | None, i: int, x: Tensor) -> None:
    """Record the output of block i in the trace, if there is one."""
    if trace is not None:
        trace.tap(f"blocks.{i}", x)


class Level(nn.ModuleList):
    """The blocks of one level of a network that has several."""

    first = 0
    """Index of the first block among all blocks of the network, see `number`."""

    def run(self, x: Tensor, *context: Any, trace: Trace | None) -> Tensor:
        """Pass x through all blocks, which also receive the context."""
        for i, block in enumerate(self, start=self.first):
            x = block(x, *context)
            record(trace, i, x)
        return x


def number(levels: Iterable[Level]) -> None:
    """Number the blocks of all levels, in execution order."""
    first = 0
    for level in levels:
        level.first, first = first, first + len(level)


def routed(
    blocks: nn.ModuleList | list[nn.Module], x: Tensor, c: Any, kept: Tensor, trace: Trace, grid: Where | None = None
) -> Tensor:
    """Pass some of the tokens (B, N, D) through all blocks; the others bypass the middle blocks, in training.

    This is token routing of Krause et al., "TREAD", ICCV 2025.

    Args:
        blocks: all blocks; the first and the last sixth process all tokens.
        x: tokens.
        c: condition, which blocks receive unchanged.
        kept: positions (B, K) of the tokens that pass through all blocks.
        trace: records the outputs of blocks; those of the middle blocks have K tokens.
        grid: the rotary positions of a grid that the network was not made for.
    """
    places, part = ((), kept) if grid is None else ((grid,), grid._replace(tokens=kept))
    ends = max(1, round(len(blocks) / 6))
    last = len(blocks) - ends
    for i, block in enumerate(blocks[:ends]):
        x = block(x, c, *places)
        record(trace, i, x)
    where = kept[..., None].expand(-1, -1, x.shape[-1])  # (B, K, D)
    routed_tokens = x.gather(1, where)
    for i, block in enumerate(blocks[ends:last], start=ends):
        routed_tokens = block(routed_tokens, c, part)
        record(trace, i, routed_tokens)
    x = x.scatter(1, where, routed_tokens)
    for i, block in enumerate(blocks[last:], start=last):
        x = block(x, c, *places)
        record(trace, i, x)
    return x


class Bypass(nn.Module):
    """Replaces a block: returns its tokens unchanged."""

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        return x


def without_blocks(net: "Backbone", layers: Sequence[int]) -> "Backbone":
    """Return a network that shares all weights with this one and leaves some blocks out.

    Args:
        net: the network.
        layers: indices among its `routable` blocks.

    Raises:
        InputError: the family has no blocks that can be left out, or not these.
    """
    blocks = net.routable
    if not blocks:
        raise InputError(f"{net.config['name']} has no blocks that can be left out; leave skip_layers out")
    if wrong := [layer for layer in layers if not 0 <= layer < len(blocks)]:
        raise InputError(
            f"skip_layers {', '.join(map(str, wrong))}: {net.config['name']} has the blocks 0 to {len(blocks) - 1}"
        )
    skipped = {id(blocks[layer]) for layer in layers}
    shared = copy.copy(net)
    shared._modules = {name: _bypassed(module, skipped) for name, module in net._modules.items()}
    return shared


def _bypassed(module: nn.Module | None, skipped: set[int]) -> nn.Module | None:
    """Return a list of blocks without those skipped; other modules are returned as they are."""
    if not isinstance(module, nn.ModuleList) or not any(id(block) in skipped for block in module):
        return module
    shortened = copy.copy(module)
    shortened._modules = {name: Bypass() if id(block) in skipped else block for name, block in module._modules.items()}
    return shortened


def through(
    blocks: nn.ModuleList,
    x: Tensor,
    c: Any,
    depths: Sequence[int],
    trace: Trace | None = None,
    grid: Where | None = None,
) -> Tensor:
    """Pass the tokens (B, N, D) of each image through as many blocks as `depths` (B,) gives for it.

    Images that have passed all their blocks leave the batch.
    """
    places: tuple[Where, ...] = () if grid is None else (grid,)
    rows, out = list(range(len(depths))), x  # rows that are still in the batch, and the tokens of those that left it

    def whole() -> Tensor:
        if len(rows) in (0, len(depths)):
            return x if rows else out
        return out.index_copy(0, torch.tensor(rows, device=x.device), x)

    for i, block in enumerate(blocks):
        kept = [place for place, row in enumerate(rows) if depths[row] > i]
        if len(kept) < len(rows):
            out = whole()
            rows = [rows[place] for place in kept]
            where = torch.tensor(rows, device=x.device, dtype=torch.long)
            left = torch.tensor(kept, device=x.device, dtype=torch.long)
            x, c = out[where], c[left] if isinstance(c, Tensor) else c.of(left)
        if not rows:
            break
        x = block(x, c, *places)
        if trace is not None:
            record(trace, i, whole())
    return whole()


def partly(x: Tensor, active: Sequence[bool], run: Callable[[Tensor, Tensor | slice], Tensor]) -> Tensor:
    """Apply a function to some rows of x (B, ...), and leave the others as they are.

    Args:
        x: input.
        active: B values, true for the rows that change.
        run: receives these rows of x and their indices, and returns the new rows.
    """
    if all(active):
        return run(x, slice(None))
    where = torch.tensor([row for row, is_active in enumerate(active) if is_active], device=x.device, dtype=torch.long)
    return x.index_copy(0, where, run(x[where], where)) if len(where) else x
