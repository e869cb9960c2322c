"""The block of DyDiT (`ditlab.backbones.dydit`): routers, masks for training, and slices of weights for inference.

In shapes, B is the batch, N tokens, D width, d channels of a head, H heads and groups, and K kept tokens.
"""

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.dit_blocks import AdaLNZeroBlock, Style
from ditlab.backbones.layers import LinearGELU, Mlp, SwiGLU, last_linear, modulate
from ditlab.core.types import Trace

SHARES = frozenset(("compute", "tokens"))  # the values that a trace records
TEMPERATURE = 5.0  # of the sigmoid that gives decisions their gradient
RECENT = 4  # sliced copies of a block's weights that are kept, for the service, whose rows differ in timestep

Pattern = tuple[bool, ...]
"""Which heads, and then which groups, of a block are kept, without the first ones: 2 H - 2 decisions."""


class Router(nn.Module):
    """Scores (B, H - 1) of all heads or groups but the first, from the embedding of the timestep (B, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, heads - 1)

    def forward(self, t: Tensor) -> Tensor:
        return self.router(t)


class TokenSelection(nn.Module):
    """Scores (B, N) of tokens (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(1, width // 16)
        self.mlp_head = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp_head(x)[..., 0]


class Layer(NamedTuple):
    """The weight and bias of a linear layer, or a part of them."""

    weight: Tensor
    bias: Tensor | None
    fused: bool = False  # computed by a packed kernel; in bfloat16 its weight is stored in the order of the kernel

    def __call__(self, x: Tensor, gelu: str = "") -> Tensor:
        """Apply the layer; a fused one also applies GELU in this approximation."""
        if not self.fused:
            return F.linear(x, self.weight, self.bias)
        activation: tuple[str, list[Any], str] = ("gelu", [], gelu) if gelu else ("none", [], "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *activation)
        return out


class Kept(NamedTuple):
    """What a block computes for one pattern."""

    qkv: Layer
    proj: Layer
    first: Layer
    second: Layer
    attention: float  # share of the compute of all blocks
    mlp: float  # the same, if all tokens are kept


class Slices(dict[tuple[Any, ...], Kept]):
    """The last slices of a block. A copy of the block starts without any."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slices":
        return Slices()


class DynamicBlock(AdaLNZeroBlock):
    """DiT's block in which routers choose heads and groups of hidden channels, and the tokens that pass the MLP."""

    costs: tuple[float, float, float]
    """Attention, MLP and tokens of this block, as shares of those of all blocks."""

    def __init__(self, style: Style) -> None:
        super().__init__(style)
        self.heads = style.heads
        self.attn_rate, self.mlp_rate = Router(style.width, style.heads), Router(style.width, style.heads)
        self.token_selection = TokenSelection(style.width)
        hidden = self.second.in_features
        group = torch.arange(hidden) * style.heads // hidden  # of each hidden channel
        self.group: Tensor
        self.register_buffer("group", group.repeat(self.first.out_features // hidden), persistent=False)
        self.slices = Slices()

    @property
    def first(self) -> nn.Linear:
        """The first layer of the MLP, with one output for each hidden channel, or two (SwiGLU)."""
        return cast(nn.Linear, self.mlp.w12 if isinstance(self.mlp, SwiGLU) else self.mlp.fc1)

    @property
    def second(self) -> nn.Linear:
        """The second layer of the MLP."""
        return cast(nn.Linear, self.mlp.w3 if isinstance(self.mlp, SwiGLU) else self.mlp.fc2)

    @property
    def hidden_weights(self) -> int:
        """Number of weights of the MLP, without biases."""
        return self.first.weight.numel() + self.second.weight.numel()

    @property
    def sliced_layers(self) -> list[nn.Linear]:
        """The layers of which only a part is computed."""
        return [self.attn.qkv, self.attn.proj, self.first, self.second]

    @property
    def routers(self) -> list[nn.Linear]:
        """The layers that compute the scores of heads, of groups and of tokens."""
        return [self.attn_rate.router, self.mlp_rate.router, last_linear(self.token_selection.mlp_head)]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        c: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        trace: Trace | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Compute the block for tokens (B, N, D).

        Args:
            x: tokens.
            c: condition (B, D).
            t: embedding of the timestep (B, D), from which decisions are made; None keeps everything.
            noise: standard normal values (B, 2 H - 2 + N), with which decisions become random.
            trace: records the compute.
            kept: what is kept, instead of decisions on heads and groups.
        """
        if kept is not None:
            return self.sliced(x, c, kept, trace)
        return super().forward(x, c) if t is None else self.masked(x, c, t, noise, trace)

    def masked(self, x: Tensor, c: Tensor, t: Tensor, noise: Tensor | None, trace: Trace | None) -> Tensor:
        """Compute everything, and multiply what is not kept by zero."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, D) each
        sizes = [self.heads - 1, self.heads - 1, x.shape[1]]
        noises = [None] * 3 if noise is None else torch.split(noise, sizes, dim=1)
        heads = with_first(decided(self.attn_rate(t), noises[0]))  # (B, H)
        mixed = self.attn.mix(self.attn.qkv(modulate(self.norm1(x), shift_a, scale_a)))  # (B, N, H, d)
        mixed = mixed * heads[:, None, :, None].to(mixed.dtype)
        x = torch.addcmul(x, gate_a[:, None], self.attn.proj(mixed.flatten(2)))
        channels = with_first(decided(self.mlp_rate(t), noises[1]))[:, self.group]  # (B, hidden)
        tokens = decided(self.token_selection(x), noises[2])  # (B, N)
        hidden = F.linear(modulate(self.norm2(x), shift_m, scale_m), self.first.weight, self.first.bias)
        hidden = self.activate(hidden * channels[:, None].to(hidden.dtype))
        if trace is not None:
            attention, mlp, share = self.costs
            trace.add("compute", attention * heads.mean(1) + mlp * channels.mean(1) * tokens.mean(1))
            trace.add("tokens", share * tokens.mean(1))
        return torch.addcmul(x, gate_m[:, None] * tokens[..., None].to(gate_m.dtype), self.second(hidden))

    def activate(self, hidden: Tensor) -> Tensor:
        """Apply the activation of the MLP."""
        layer = self.mlp if isinstance(self.mlp, SwiGLU) else cast(LinearGELU, self.first)
        return layer.activate(hidden)

    def sliced(self, x: Tensor, c: Tensor, kept: Kept, trace: Trace | None) -> Tensor:
        """Compute only what is kept."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # (B, D) each
        mixed = self.attn.mix(kept.qkv(modulate(self.norm1(x), shift_a, scale_a)))  # (B, N, heads, d)
        x = torch.addcmul(x, gate_a[:, None], kept.proj(mixed.flatten(2)))
        tokens = self.token_selection(x) > 0  # (B, N)
        if trace is not None:
            share = tokens.float().mean(1)
            trace.add("compute", kept.attention + kept.mlp * share)
            trace.add("tokens", self.costs[2] * share)
        where = tokens.flatten().nonzero()[:, 0]  # (K,), of the whole batch
        if len(where) == 0:
            return x
        values = modulate(self.norm2(x), shift_m, scale_m).flatten(0, 1)[where]  # (K, D)
        values = self.feed_forward(values, kept) * gate_m[where // x.shape[1]]
        x.flatten(0, 1).index_add_(0, where, values)  # x is not needed any more
        return x

    def feed_forward(self, x: Tensor, kept: Kept) -> Tensor:
        """Apply the kept part of the MLP to tokens (K, D)."""
        if kept.first.fused and isinstance(self.mlp, Mlp):
            return kept.second(kept.first(x, self.mlp.fc1.approximate))
        return kept.second(self.activate(kept.first(x)))

    def cut(self, pattern: Pattern, fused: bool) -> Kept:
        """Return the parts of the weights that a pattern keeps; the last ones are kept in memory.

        Args:
            pattern: which of the heads, and then of the groups, are kept, without the first ones.
            fused: whether layers use packed kernels.
        """
        weights = [layer.weight for layer in self.sliced_layers]
        key = (pattern, fused, *((weight.data_ptr(), version(weight), weight.dtype) for weight in weights))
        if (kept := self.slices.pop(key, None)) is None:
            kept = self.make_slices(pattern, fused)
        self.slices[key] = kept
        for old in list(self.slices)[:-RECENT]:
            self.slices.pop(old, None)
        return kept

    def make_slices(self, pattern: Pattern, fused: bool) -> Kept:
        """Copy the parts of the weights that a pattern keeps; what is kept whole is not copied."""
        heads, groups = (
            torch.tensor((True, *part), device=self.group.device)
            for part in (pattern[: self.heads - 1], pattern[self.heads - 1 :])
        )
        channels, outputs = heads.repeat_interleave(self.attn.head), groups[self.group]
        hidden = outputs[: self.second.in_features]
        attention, mlp, _ = self.costs
        return Kept(
            part_of(self.attn.qkv, channels.repeat(3), None, fused),
            part_of(self.attn.proj, None, channels, fused),
            part_of(self.first, outputs, None, fused),
            part_of(self.second, None, hidden, fused),
            attention * float(heads.float().mean()),
            mlp * float(hidden.float().mean()),
        )


def decided(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Return 1 where a score is positive and 0 elsewhere, with the gradient of a sigmoid; float32.

    Args:
        scores: scores of any shape.
        noise: standard normal values of the same shape; they become the difference of two Gumbel variables, which is
            added to the scores.
    """
    scores = scores.float()
    if noise is not None:
        scores = scores + torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)
    soft = torch.sigmoid(scores / TEMPERATURE)
    return (scores > 0).float() + (soft - soft.detach())


def with_first(decisions: Tensor) -> Tensor:
    """Put the first head or group, which is always kept, before decisions (B, H - 1)."""
    return torch.cat([torch.ones_like(decisions[:, :1]), decisions], dim=1)


def version(weight: Tensor) -> int:
    """Return a number that increases when a weight is changed; tensors of `torch.inference_mode` never change."""
    return 0 if weight.is_inference() else weight._version


def part_of(layer: nn.Linear, outputs: Tensor | None, inputs: Tensor | None, fused: bool) -> Layer:
    """Return the part of a layer with some outputs (out,) or some inputs (in,) bool; None is all."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if outputs is not None and not outputs.all():
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    if inputs is not None and not inputs.all():
        weight = weight[:, inputs]
    if fused and weight.dtype is torch.bfloat16:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)
    return Layer(weight, bias, fused)
