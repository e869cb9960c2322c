"""Skip-DiT (Chen et al., "Accelerating Vision Diffusion Transformers with Skip Branches", ICCV 2025).

A DiT whose second half also reads the outputs of the first: block L - 1 - j joins the output of block j by
concatenation, layer norm and projection. The state dict has the published keys, a DiT's and those of the skips.
B images, N tokens, D width, p patch, L depth.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones.dit import DiT
from ditlab.backbones.layers import norm
from ditlab.backbones.routing import record
from ditlab.core.errors import InputError
from ditlab.core.types import Trace


class SkipDiT(DiT):
    """DiT with long skips; sizes, options and everything else are DiT's."""

    marks = (*DiT.marks, "skip_linears.0.linear.weight", "skip_norms.0.weight")

    def initialise(self, zero_gates: bool) -> None:
        """DiT's initialisation, and only then the skips, which keep the one that torch gives them, as published."""
        if len(self.blocks) < 2:
            raise InputError("depth 1 leaves nothing to skip; give 2 or more")
        if self.exits:
            raise InputError("exits leave nothing for the skips of Skip-DiT to join; take DiT, or leave them out")
        super().initialise(zero_gates)
        width, count = self.x_embedder.proj.out_channels, len(self.blocks) // 2
        self.skip_norms = nn.ModuleList([norm(2 * width, affine=True) for _ in range(count)])
        self.skip_linears = nn.ModuleList(
            [nn.Sequential(OrderedDict(linear=nn.Linear(2 * width, width))) for _ in range(count)]
        )

    @property
    def routable(self) -> list[nn.Module]:
        return []  # the skips join all tokens

    def through_blocks(self, x: Tensor, c: Tensor, timestep: Tensor, trace: Trace | None) -> Tensor:
        last = len(self.blocks) - 1
        skip = x = self.blocks[0](x, c)  # (B, N, D)
        record(trace, 0, x)
        x = self.inner(x, c, trace)  # (B, N, D)
        x = self.blocks[last](self.join(-1, x, skip), c)  # (B, N, D)
        record(trace, last, x)
        return x

    def inner(self, x: Tensor, *rest: Any) -> Tensor:
        """All blocks but the first and the last."""
        c, trace = rest
        count = len(self.skip_linears)
        skips: list[Tensor] = []
        for i, block in enumerate(self.blocks[1:-1], start=1):
            j = i - (len(self.blocks) - count)  # from 0 in the second half
            if j >= 0:
                x = self.join(j, x, skips.pop())
            x = block(x, c)  # (B, N, D)
            record(trace, i, x)
            if i < count:
                skips.append(x)
        return x

    def join(self, j: int, x: Tensor, skip: Tensor) -> Tensor:
        """The input of block j of the second half: what is before it, and the output of its mirror image."""
        joined: Tensor = self.skip_linears[j](self.skip_norms[j](torch.cat([x, skip], dim=-1)))  # (B, N, D)
        return joined
