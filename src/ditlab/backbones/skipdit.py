"""Skip-DiT (Chen et al., "Accelerating Vision Diffusion Transformers with Skip Branches", ICCV 2025).

A DiT with long skip connections: the output of block j is concatenated to the input of block L - 1 - j, and the result
is normalized and projected to the width. The state dict has the published keys. In shapes, B is the batch, N tokens,
D width, and L the depth.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones.dit import DiT
from ditlab.backbones.layers import Where, norm
from ditlab.backbones.routing import check_late_exits, depth_at, leaves_early, partly, record
from ditlab.core.errors import InputError
from ditlab.core.types import Trace


class SkipDiT(DiT):
    """DiT with long skip connections; sizes and options are those of DiT.

    With early exit, blocks of the second half are left out, but their skip connections are not.
    """

    marks = (*DiT.marks, "skip_linears.0.linear.weight", "skip_norms.0.weight")

    def initialize(self, zero_gates: bool) -> None:
        """Initialize as DiT, except for the skip connections, which have PyTorch's default as in the published code."""
        if len(self.blocks) < 2:
            raise InputError("depth 1 has no blocks to connect by skips; give 2 or more")
        check_late_exits(self.exits, len(self.blocks), len(self.blocks) - len(self.blocks) // 2)
        super().initialize(zero_gates)
        width, count = self.x_embedder.proj.out_channels, len(self.blocks) // 2
        self.skip_norms = nn.ModuleList([norm(2 * width, affine=True) for _ in range(count)])
        self.skip_linears = nn.ModuleList(
            [nn.Sequential(OrderedDict(linear=nn.Linear(2 * width, width))) for _ in range(count)]
        )

    @property
    def routable(self) -> list[nn.Module]:
        return []  # the skip connections need all tokens

    def through_blocks(
        self, x: Tensor, c: Any, t: Tensor, timestep: Tensor, trace: Trace | None, grid: Where | None = None
    ) -> Tensor:
        last = len(self.blocks) - 1
        leaving = leaves_early(self.exits, timestep)
        depths = depth_at(timestep, self.exits, last + 1) if leaving else []
        places = () if grid is None else (grid,)
        skip = x = self.blocks[0](x, c, *places)  # (B, N, D)
        record(trace, 0, x)
        x = self.inner(x, c, depths, trace, *places)  # (B, N, D)
        x = self.late(last, self.join(-1, x, skip), c, depths, *places)  # (B, N, D)
        record(trace, last, x)
        return x

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks but the first and the last."""
        c, depths, trace, *places = context
        count = len(self.skip_linears)
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks[1:-1], start=1):
            j = i - (len(self.blocks) - count)  # index in the second half
            if j >= 0:
                x = self.join(j, x, skips.pop())
            x = self.late(i, x, c, depths, *places) if j >= 0 else block(x, c, *places)  # (B, N, D)
            record(trace, i, x)
            if i < count:
                skips.append(x)
        return x

    def late(self, i: int, x: Tensor, c: Tensor, depths: Sequence[int], *places: Where) -> Tensor:
        """Pass the tokens of images that have not exited before block i through it; without depths, all of them."""
        if not depths:
            return self.blocks[i](x, c, *places)
        return partly(x, [depth > i for depth in depths], lambda part, rows: self.blocks[i](part, c[rows], *places))

    def join(self, j: int, x: Tensor, skip: Tensor) -> Tensor:
        """Compute the input of block j of the second half from the previous output and the skip connection."""
        joined: Tensor = self.skip_linears[j](self.skip_norms[j](torch.cat([x, skip], dim=-1)))  # (B, N, D)
        return joined
