"""DiMSUM (Phung et al., "DiMSUM: Diffusion Mamba - A Scalable and Unified Spatial-Frequency Method for Image
Generation", NeurIPS 2024).

Each block passes one half of the channels through Mamba in space, and the other half through Mamba on wavelet
coefficients; one attention block with shared weights runs after every few blocks. The published weights need the layout
of the published code to the letter, see `haar`. In shapes, B is the batch, N tokens, D width and h x w the grid.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones import dimsum_published
from ditlab.backbones.any_size import LEARNED
from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.dit_blocks import AdaLNZeroBlock, FinalLayer, Style
from ditlab.backbones.layers import (
    LabelEmbedder,
    PatchEmbed,
    RMSNorm,
    TimestepEmbedder,
    attend,
    check_positive,
    last_linear,
    modulate,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.positions import sincos_positions
from ditlab.backbones.published import sit_objective
from ditlab.backbones.routing import record
from ditlab.backbones.scan import SCANS, selective_scan
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Condition, Trace

STATE, KERNEL = 16, 4  # size of Mamba's state, width of its convolution
CELL = 4  # side of the squares of tokens that two levels of wavelets turn into coefficients


class Size(NamedTuple):
    """One row of the size table."""

    depth: int
    width: int
    patch: int = 2


SIZES = {"B/2": Size(12, 768), "L/2": Size(16, 1024), "XL/2": Size(24, 1152)}


class DiMSUM(Backbone):
    """The Mamba network with a wavelet branch; before training, its output is exactly zero.

    Args:
        depth: number of blocks.
        width: channels of a token.
        heads: heads of the shared attention block; the fusion of the two branches has half of them.
        patch: side of a token in pixels (or latent positions).
        attention_every: the shared attention block runs after every N-th block.
        final_norm: normalize the sum of all blocks before the head, instead of reading the last block alone.
        dead_weights: keep the weights of published files that do not influence the output.
        scan: how the recurrence is computed: automatically, step by step, in chunks, or by mamba-ssm on CUDA.
    """

    label_tables = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    lora_targets = ("attn.qkv", "attn.proj", "in_proj", "out_proj", "adaLN_modulation.1")
    decayed = ("pos_embed",)
    not_muon = ("dt_proj.weight",)  # it has few columns, and a careful range
    changeable = ("scan",)
    marks = (
        "x_embedder.proj.weight",
        "pos_embed",
        "blocks.0.freq_mamba.mixer.A_log",
        "blocks.0.spatial_mamba.mixer.A_log",
        "attn_block.attn.qkv.weight",
        *heads_out,
    )

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        depth: int,
        width: int,
        heads: int = 16,
        patch: int = 2,
        attention_every: int = 4,
        final_norm: bool = False,
        dead_weights: bool = False,
        scan: Literal["auto", "loop", "chunked", "mamba-ssm"] = "auto",
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        lookup(dict.fromkeys(SCANS), scan, "scan")
        check_sizes(size, depth, width, heads, patch, attention_every)
        self.patch, self.attention_every = patch, attention_every
        h, w = self.grid
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.pos_embed = nn.Parameter(sincos_positions(h, w, width))
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(Block(width, heads, (h, w), i, depth, scan, dead_weights) for i in range(depth))
        style = Style(width, heads, qk_norm=False, rms_norm=False, swiglu=False, rotation=None)
        self.attn_block = AdaLNZeroBlock(style)
        self.attn_block.mlp = GatedMlp(width)
        self.norm_f = RMSNorm(width, eps=1e-5) if final_norm else None
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=True)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in SIZES.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The heads and the interval of the shared attention block are not in it; those of the released models are used.
        """
        return dimsum_published.read_sizes(tensors) | {
            "classes": cls.count_classes(len(tensors["y_embedder.embedding_table.weight"])),
            "heads": 16,
            "dead_weights": True,
        }

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        return sit_objective("cosine")

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dimsum_published.from_published(tensors)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dimsum_published.to_published(tensors)

    @property
    def one_size(self) -> str:
        return LEARNED

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [self.t_embedder(timestep) + self.y_embedder(label)]

    def modulations(self) -> list[Modulation]:
        layers = [module for name, module in self.named_modules() if name.endswith("adaLN_modulation")]
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [self.y_embedder])

    def initialize(self) -> None:
        """Set initial weights: zero for the head and the outer modulation of blocks, as in the published code.

        The other modulations, and those of the shared attention block, have PyTorch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Mamba):
                module.initialize(len(self.blocks))
        for weight in (self.y_embedder.embedding_table.weight, *self.t_embedder.mlp.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        assert self.final_layer.adaLN_modulation is not None
        zero = [block.get_submodule("adaLN_modulation") for block in self.blocks]
        set_to_zero([*zero, self.final_layer.adaLN_modulation, self.final_layer.linear])

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..1 as published, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        h, w = self.grid
        (c,) = self.conditioning(timestep, y)  # (B, D)
        x = self.x_embedder(x.to(self.dtype)) + self.pos_embed  # (B, N, D)
        residual = torch.zeros_like(x)
        for i, block in enumerate(self.blocks):
            residual = residual + x
            x = block(residual, c)
            record(trace, i, x)
            if (i + 1) % self.attention_every == 0:
                x = self.attn_block(x, c)
        if self.norm_f is not None:  # otherwise the residual is discarded, as in the published models
            x = self.norm_f(residual + x)
        return unpatchify(self.final_layer(x, c), h, w, self.patch)  # (B, C, H, W)


class Block(nn.Module):
    """The two branches of Mamba, their fusion, and a feed-forward layer; the output includes the normalized input."""

    def __init__(
        self, width: int, heads: int, grid: tuple[int, int], i: int, depth: int, scan: str, dead_weights: bool
    ) -> None:
        super().__init__()
        (h, w), half = grid, width // 2
        self.norm, self.norm_2 = RMSNorm(width, eps=1e-5), RMSNorm(width, eps=1e-5)
        self.spatial_mamba = Branch(width, spatial_order(h, w, i), scan, dead_weights)
        self.freq_mamba = WaveletBranch(width, window_order(h, w, i), scan, dead_weights)
        self.freq_mamba.grid = grid
        self.proj = Fusion(half, heads // 2)
        self.mlp = GatedMlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.norm(x)
        space, frequency = x.chunk(2, dim=-1)  # (B, N, D / 2) each
        x = x + self.proj(self.spatial_mamba(space, c), self.freq_mamba(frequency, c))
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=1)  # (B, D) each
        return torch.addcmul(x, gate[:, None], self.mlp(modulate(self.norm_2(x), shift, scale)))


class Branch(nn.Module):
    """Mamba on tokens (B, N, D / 2) in some order, with shift, scale and gate from the condition (B, D)."""

    def __init__(self, width: int, order: Tensor, scan: str, dead_weights: bool) -> None:
        super().__init__()
        self.order: Tensor
        self.back: Tensor
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)
        self.mixer = Mamba(width // 2, width, scan, dead_weights)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width // 2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=1)
        mixed = self.mixer(modulate(x, shift, scale)[:, self.order])[:, self.back]
        return torch.addcmul(x, gate[:, None], mixed)


class WaveletBranch(Branch):
    """The same on wavelet coefficients."""

    grid: tuple[int, ...]

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return unhaar(super().forward(haar(x, self.grid), c), self.grid)


class Mamba(nn.Module):
    """Mamba: a gated selective scan after a causal convolution.

    Args:
        width: channels of a token, d.
        condition: width of the condition, for `dead_weights`.
        scan: see `selective_scan`.
        dead_weights: keep the projection of the condition, which the published kernel overwrites before it is read.
    """

    def __init__(self, width: int, condition: int, scan: str, dead_weights: bool) -> None:
        super().__init__()
        inner, self.rank, self.scan = 2 * width, math.ceil(width / 16), scan
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, KERNEL, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.zeros(inner, STATE))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        if dead_weights:
            self.cond_proj = DeadLinear(condition, inner)

    def initialize(self, depth: int) -> None:
        """Set initial weights: A to -1 to -N, step sizes log-uniform in 0.001..0.1."""
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, STATE + 1, dtype=torch.float32).log().expand_as(self.A_log))
            low, high = math.log(1e-3), math.log(1e-1)
            step = torch.exp(low + (high - low) * torch.rand(self.D.shape))
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
            nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.in_proj(u).chunk(2, dim=-1)  # (B, N, 2 d) each
        x = F.silu(self.conv1d(F.pad(x.transpose(1, 2), (KERNEL - 1, 0)))).transpose(1, 2)
        dt, b, c = self.x_proj(x).split((self.rank, STATE, STATE), dim=-1)
        y = selective_scan(x, F.softplus(self.dt_proj(dt)), -torch.exp(self.A_log), b, c, self.scan)
        return self.out_proj(torch.addcmul(y, x, self.D) * F.silu(z))


class DeadLinear(nn.Module):
    """Weight and bias of a linear layer that is not computed."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out, width))
        self.register_buffer("bias", torch.zeros(out))


class Fusion(nn.Module):
    """Cross-attention of two sequences (B, N, d) to each other, joined to (B, N, 2 d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv1, self.qkv2 = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.proj = nn.Linear(2 * width, 2 * width)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = ((self.qkv1, first), (self.qkv2, second))
        (q1, k1, v1), (q2, k2, v2) = (
            layer(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4) for layer, x in pairs
        )  # (B, heads, N, d / heads) each
        x = torch.cat([attend(q1, k2, v2), attend(q2, k1, v1)], dim=1)  # (B, 2 heads, N, d / heads)
        return self.proj(x.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """Gated feed-forward layer with GELU: D -> 2 x 4 D -> D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.gelu(gate, approximate="tanh") * value)


def spatial_order(h: int, w: int, i: int) -> Tensor:
    """Return the positions (N,) in the order in which block i scans them: by columns, and backwards, in some blocks."""
    order = torch.arange(h * w).view(h, w)
    order = (order.T if i % 4 >= 2 else order).flatten()
    return order.flip(0) if i % 2 else order


def window_order(h: int, w: int, i: int) -> Tensor:
    """Return the positions (N,) in the order in which block i scans windows of h / 4 x w / 4, by columns if odd."""
    order = torch.arange(h * w).view(CELL, h // CELL, CELL, w // CELL)
    return order.permute((2, 0, 3, 1) if i % 2 else (0, 2, 1, 3)).flatten()


def wavelets(like: Tensor) -> Tensor:
    """Compute the matrix (16, 16) from the positions of 4x4 tokens to the coefficients of two levels, divided by 4."""
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=like.device, dtype=like.dtype)
    level = torch.kron(one, one).view(4, 2, 2).transpose(1, 2) / 2  # sub-band, row, column
    both = torch.einsum("sab,tcd->tsacbd", level, level) / 4  # the second level is on the results of the first
    return both.reshape(16, 16)


def haar(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Transform tokens (B, h w, C) to wavelet coefficients in the layout of the published code.

    The 16 sub-bands of C channels are numbered s C + c, and read as 16 k + 4 p + q: this coefficient of the cell of 4x4
    tokens at (i, j) becomes channel k of the token at (4 i + p, 4 j + q).
    """
    h, w = grid
    x = torch.unflatten(x, 1, (h // CELL, CELL, w // CELL, CELL)).transpose(2, 3).flatten(3, 4)  # (B, i, j, 16, C)
    x = torch.unflatten((wavelets(x) @ x).flatten(3), 3, (-1, CELL, CELL))  # (B, i, j, C, 4, 4)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(1, 4)


def unhaar(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Transform wavelet coefficients to tokens, the inverse of `haar`."""
    h, w = grid
    x = torch.unflatten(x, 1, (h // CELL, CELL, w // CELL, CELL)).permute(0, 1, 3, 5, 2, 4)  # (B, i, j, C, 4, 4)
    x = 16 * wavelets(x).T @ torch.unflatten(x.flatten(3), 3, (16, -1))  # (B, i, j, 16, C)
    return torch.unflatten(x, 3, (CELL, CELL)).transpose(2, 3).flatten(1, 4)


def check_sizes(size: tuple[int, int], depth: int, width: int, heads: int, patch: int, attention_every: int) -> None:
    """Raise an `InputError` if sizes do not fit together."""
    check_positive(depth=depth, width=width, heads=heads, patch=patch, attention_every=attention_every)
    if width % (multiple := math.lcm(4, 2 * heads)) or heads % 2:
        raise InputError(
            f"width {width} with {heads} heads; give an even number of heads, and a multiple of {multiple}"
        )
    if depth < attention_every:
        raise InputError(f"depth {depth} has no place for the attention after block {attention_every}; give a lower N")
    if size[0] % (CELL * patch) or size[1] % (CELL * patch):
        raise InputError(
            f"size {size[0]}x{size[1]} is not divisible by {CELL * patch} (patch {patch} and two levels of wavelets); "
            "choose another size"
        )
