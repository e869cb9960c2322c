"""DyDiT (Zhao et al., "Dynamic Diffusion Transformer", ICLR 2025): a DiT whose width and tokens are dynamic.

In each block, two routers choose from the timestep which attention heads and which groups of hidden channels of the MLP
are computed; the first head and the first group always are. A third router chooses the tokens that pass the MLP. The
state dict has the published keys. In training, decisions are masks with straight-through gradients (Gumbel-sigmoid). At
inference the weights are sliced and the tokens gathered, which gives the same output with less work. In shapes, B is
the batch, N tokens, D width, d channels of a head, H heads and groups, and K kept tokens.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditlab.backbones.base import Modulation
from ditlab.backbones.dit import DiT
from ditlab.backbones.dydit_block import SHARES, DynamicBlock, Pattern
from ditlab.backbones.layers import LinearGELU
from ditlab.backbones.routing import record
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

KEPT = 15.0, 35.0  # initial scores of heads and groups, and of tokens, with which all are kept
SPREAD = 5.0  # standard deviation of random scores over timesteps


class DyDiT(DiT):
    """The DiT with dynamic width and dynamic tokens; before training it computes the same as a DiT.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads, and of groups of hidden channels.
        patch: side of a token in pixels (or latent positions).
        condition: conditioning mechanism for timestep and label.
        qk_norm: RMS-normalize queries and keys.
        frequency_shift: timestep frequencies as in DiT (0) or as in diffusers (1).
        rms_norm: use RMS norm instead of layer norm.
        swiglu: use gated feed-forward layers (SwiGLU).
        rope: use rotary positions.
        budget: share of the compute of the blocks that training aims at; above 0, up to 1.
        routers: those that are trained: all, of width (heads and groups) or of tokens. The others keep everything. With
            "random", the routers of width choose at random for each timestep and stay as they are, for comparison.
    """

    changeable = ("budget",)
    marks = (*DiT.marks, "blocks.0.attn_rate.router.weight")

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        width: int,
        heads: int,
        patch: int,
        condition: Literal["in-context", "cross-attention", "adaln", "adaln-zero"] = "adaln-zero",
        qk_norm: bool = False,
        frequency_shift: int = 0,
        rms_norm: bool = False,
        swiglu: bool = False,
        rope: bool = False,
        budget: float = 1.0,
        routers: Literal["all", "width", "tokens", "random"] = "all",
    ) -> None:
        if condition != "adaln-zero":
            raise InputError(f'condition "{condition}" for DyDiT, whose blocks need "adaln-zero"; leave condition out')
        if not 0 < budget <= 1:
            raise InputError(f"budget {budget:g} is not a share; give a number above 0, up to 1")
        if heads == 1:
            raise InputError("DyDiT with 1 head has no heads to choose from; give 2 or more")
        self.budget, self.routers = budget, routers  # which the initialization needs
        super().__init__(
            size=size, channels=channels, classes=classes, learn_variance=learn_variance, depth=depth, width=width,
            heads=heads, patch=patch, qk_norm=qk_norm, frequency_shift=frequency_shift, rms_norm=rms_norm,
            swiglu=swiglu, rope=rope,
        )  # fmt: skip
        attention = 2 * self.tokens * width * (2 * width + self.tokens)
        mlp = self.tokens * self.dynamic[0].hidden_weights
        self.dynamic_macs = depth * (attention + mlp)  # as published
        for block in self.dynamic:
            block.costs = attention / self.dynamic_macs, mlp / self.dynamic_macs, 1 / depth
        of_width, of_tokens = 1 if routers == "tokens" else 1 / heads, 0 if routers in ("all", "tokens") else 1
        if budget < (least := depth * of_width * (attention + mlp * of_tokens) / self.dynamic_macs):
            raise InputError(
                f"budget {budget:g} is less than {least:.3f}, the share that is always computed; give more"
            )

    def block_type(self, condition: str) -> type[nn.Module]:
        return DynamicBlock

    @property
    def one_size(self) -> str:
        return "its budget is counted for one number of tokens"

    @property
    def undivided(self) -> str:
        return "each image chooses among its tokens"

    @property
    def dynamic(self) -> "list[DynamicBlock]":
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, DynamicBlock)]

    @property
    def routable(self) -> list[nn.Module]:
        return []  # the third router decides on tokens

    @property
    def gates(self) -> int:  # type: ignore[override]
        return len(self.blocks) * (2 * (self.dynamic[0].heads - 1) + self.tokens)

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        t = self.t_embedder(timestep)
        return [self.condition(t, self.y_embedder(label)), t]

    def modulations(self) -> list[Modulation]:
        routers = [router for block in self.dynamic for router in (block.attn_rate, block.mlp_rate)]
        return super().modulations() + [Modulation(router, 1, router.router.out_features) for router in routers]

    def packable(self) -> list[nn.Module]:
        sliced = {id(layer) for block in self.dynamic for layer in block.sliced_layers}
        return [layer for layer in super().packable() if id(layer) not in sliced]

    def initialize(self, zero_gates: bool) -> None:
        """Initialize as DiT, and the routers so that they keep everything."""
        super().initialize(zero_gates)
        for block in self.dynamic:
            for layer, score in zip(block.routers, (KEPT[0], *KEPT), strict=True):
                nn.init.zeros_(layer.weight)
                nn.init.constant_(layer.bias, score)
            *width, tokens = block.routers
            for layer in width:
                layer.requires_grad_(self.routers in ("all", "width"))
                if self.routers == "random" and self.budget < 1 and not layer.weight.is_meta:
                    self.keep_at_random(layer)
            tokens.requires_grad_(self.routers in ("all", "tokens"))

    @torch.no_grad()
    def keep_at_random(self, router: nn.Linear) -> None:
        """Let a router of width keep the share of the budget, of other heads or groups at each timestep."""
        t = self.t_embedder(torch.linspace(0, 1000, 200))  # (T, D)
        nn.init.normal_(router.weight)
        router.weight.mul_(SPREAD / (t @ router.weight.T).std(0)[:, None])
        free = (self.budget * (len(router.bias) + 1) - 1) / len(router.bias)  # the first is always kept
        router.bias.copy_(-torch.quantile(t @ router.weight.T, 1 - free, dim=0))

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,), labels (B,) -> (B, out_channels, H, W).

        The trace can record "compute" (B,), the share of the compute of the blocks that each image uses; "tokens" (B,),
        the share of the tokens that pass the MLPs; and "complete", the output of the network without its routers.
        """
        if trace is not None and "complete" in trace.wanted:
            trace.tap("complete", super().forward(x, timestep, condition, trace=Complete()))
        return super().forward(x, timestep, condition, trace=trace)

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks."""
        c, t, timestep, trace, _ = context
        if isinstance(trace, Complete):
            for block in self.blocks:
                x = block(x, c)  # (B, N, D)
            return x
        if self.slices_weights(timestep):
            return self.through_slices(x, c, t, timestep, trace)
        noise = trace.noise if trace is not None else None
        noises = [None] * len(self.blocks) if noise is None else noise.chunk(len(self.blocks), dim=1)
        for i, (block, values) in enumerate(zip(self.blocks, noises, strict=True)):
            x = block(x, c, t, values, trace)  # (B, N, D)
            record(trace, i, x)
        return x

    def slices_weights(self, timestep: Tensor) -> bool:
        """Whether weights are sliced: at inference, but not in exported graphs, and not with low-rank updates."""
        if self.training or torch.is_grad_enabled() or timestep.is_meta or torch.compiler.is_exporting():
            return False
        layers = [layer for block in self.dynamic for layer in block.sliced_layers]
        return all(type(layer) in (nn.Linear, LinearGELU) for layer in layers)

    def through_slices(self, x: Tensor, c: Tensor, t: Tensor, timestep: Tensor, trace: Trace | None) -> Tensor:
        """Pass tokens (B, N, D) through sliced blocks; images for which the same is kept are computed together."""
        patterns, groups = self.patterns(t, timestep)
        fused = self.fused_kernels and self.blocks[0]._compiled_call_impl is None
        order = None if len(patterns) == 1 else [(groups == i).nonzero()[:, 0] for i in range(len(patterns))]
        parts = [x] if order is None else [x[rows] for rows in order]
        conditions = [c] if order is None else [c[rows] for rows in order]
        traces = [None if trace is None else Trace([*trace.wanted & SHARES]) for _ in patterns]

        def joined(values: list[Tensor]) -> Tensor:
            return values[0] if order is None else torch.cat(values)[torch.cat(order).argsort()]

        for i, block in enumerate(self.dynamic):
            kept = [block.cut(pattern[i], fused) for pattern in patterns]
            inputs = zip(parts, conditions, kept, traces, strict=True)
            parts = [block(part, rows, None, None, seen, weights) for part, rows, weights, seen in inputs]
            if trace is not None:
                record(trace, i, joined(parts))
        if trace is not None:
            for name in trace.wanted & SHARES:
                trace.add(name, joined([seen.taps[name] for seen in traces if seen is not None]))
        return joined(parts)

    def patterns(self, t: Tensor, timestep: Tensor) -> tuple[list[list[Pattern]], Tensor]:
        """Return what the routers keep: the different patterns of all blocks, and the index of the pattern of each row.

        Args:
            t: embedding of the timestep (B, D).
            timestep: timestep input (B,).
        """
        if bool((timestep == timestep[0]).all()):  # as in a sampler
            t = t[:1]
        scores = [torch.cat([block.attn_rate(t), block.mlp_rate(t)], dim=1) for block in self.dynamic]
        kept = torch.stack(scores, dim=1) > 0  # (B, depth, 2 H - 2)
        kept, index = torch.unique(kept, dim=0, return_inverse=True)  # (G, depth, 2 H - 2), (B,)
        return [[tuple(block) for block in pattern] for pattern in kept.tolist()], index


class Complete(Trace):
    """The trace of a forward pass in which all heads, groups and tokens are kept."""
