"""Skip-DiT (Chen et al., "Accelerating Vision Diffusion Transformers with Skip Branches", ICCV 2025).

A DiT whose second half also reads the outputs of the first: block L - 1 - j joins the output of block j by
concatenation, layer norm and projection. The state dict has the published keys, a DiT's and those of the skips.
B images, N tokens, D width, p patch, L depth.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ditlab.backbones.dit import DiT
from ditlab.backbones.layers import norm, unpatchify


class SkipDiT(DiT):
    """DiT with long skips; sizes, options and everything else are DiT's."""

    marks = (*DiT.marks, "skip_linears.0.linear.weight", "skip_norms.0.weight")

    def initialise(self, zero_gates: bool) -> None:
        """DiT's initialisation, and only then the skips, which keep the one that torch gives them, as published."""
        super().initialise(zero_gates)
        width, count = self.x_embedder.proj.out_channels, len(self.blocks) // 2
        self.skip_norms = nn.ModuleList([norm(2 * width, affine=True) for _ in range(count)])
        self.skip_linears = nn.ModuleList(
            [nn.Sequential(OrderedDict(linear=nn.Linear(2 * width, width))) for _ in range(count)]
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W), clock (B,) in 0..999 for DiT, labels (B,) -> (B, out_channels, H, W)."""
        self.check_input(x)
        h, w = self.size[0] // self.patch, self.size[1] // self.patch
        skips: list[Tensor] = []
        count = len(self.skip_linears)
        # fmt: off
        c = self.condition(self.t_embedder(t), self.y_embedder(y))     # (B, D) or (B, 2, D)
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed         # (B, N, D)   N = h w
        if self.tokens_join:
            x = torch.cat([x, c], dim=1)                               # (B, N + 2, D)
        for i, block in enumerate(self.blocks):
            j = i - (len(self.blocks) - count)                         # from 0 in the second half
            if j >= 0:
                x = torch.cat([x, skips.pop()], dim=-1)                # (B, N, 2 D)
                x = self.skip_linears[j](self.skip_norms[j](x))        # (B, N, D)
            x = block(x, c)                                            # (B, N, D)
            if i < count:
                skips.append(x)
        x = self.final_layer(x[:, : h * w], c)                         # (B, N, p p C)
        return unpatchify(x, h, w, self.patch)                         # (B, C, H, W)
        # fmt: on
