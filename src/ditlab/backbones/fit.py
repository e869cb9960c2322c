"""FiT (Lu et al., "FiT: Flexible Vision Transformer for Diffusion Model", ICML 2024) and FiTv2 (Wang et al., 2024).

DiTs for images of any size: positions are rotary only, so that no weight depends on the size, and a batch may hold
images of several sizes as padded token sequences. FiTv2 normalizes queries and keys, computes a low-rank modulation for
each block on top of a common one, and is trained as SiT. In shapes, B is the batch, N tokens, D width, d the width of a
head, p patch and h x w the token grid.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.dit_blocks import FinalLayer, Style
from ditlab.backbones.layers import (
    LabelEmbedder,
    PatchEmbed,
    TimestepEmbedder,
    attend,
    check_positive,
    initialize_linears,
    last_linear,
    modulate,
    norm,
    set_to_zero,
    unpatchify,
)
from ditlab.backbones.positions import rotated
from ditlab.backbones.published import count_of, negated, sit_objective
from ditlab.backbones.routing import record
from ditlab.backbones.segments import Segments, attend_segments
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.core.units import counted


class Size(NamedTuple):
    """One row of a size table."""

    depth: int
    width: int
    heads: int
    patch: int = 2


class FiT(Backbone):
    """The DiT for images of any size; before training, its output is exactly zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
    """

    sizes: Mapping[str, Size] = MappingProxyType({"XL/2": Size(28, 1152, 16)})
    """The size table."""
    modern = False
    """Whether this is the second version."""
    label_tables = ("y_embedder.embedding_table.weight",)
    heads_out = ("final_layer.linear.weight", "final_layer.linear.bias")
    marks: tuple[str, ...] = ("x_embedder.proj.weight", "blocks.0.mlp.fc1_g.weight", *heads_out)

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
        patch: int = 2,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, depth, width, heads, patch)
        self.patch, self.heads = patch, heads
        self.x_embedder = PatchEmbed(patch, channels, width)
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)
        self.global_adaLN_modulation = modulation(width, 6 * width) if self.modern else None
        self.blocks = nn.ModuleList(Block(width, heads, self.modern) for _ in range(depth))
        style = Style(width, heads, qk_norm=False, rms_norm=False, swiglu=False, rotation=None)
        self.final_layer = FinalLayer(style, patch * patch * self.out_channels, adaptive=True)
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {name: size._asdict() for name, size in cls.sizes.items()}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict: all but the size.

        The number of heads is only known for published sizes, and patches of 2 are assumed.
        """
        width, values = tensors["x_embedder.proj.weight"].shape
        depth, patch = count_of(tensors, "blocks."), 2
        heads = {(row.depth, row.width): {"heads": row.heads} for row in cls.sizes.values()}
        return {
            "channels": values // patch**2,
            "classes": cls.count_classes(len(tensors["y_embedder.embedding_table.weight"])),
            "learn_variance": len(tensors[cls.heads_out[0]]) == 2 * values,
            "width": width,
            "depth": depth,
            "patch": patch,
        } | heads.get((depth, width), {})

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ditlab's state dict: an embedding of patches, and a head with channels fastest.

        Raises:
            InputError: an option of the published code that no released model uses.
        """
        for key, what in (("blocks.0.adaLN_modulation.fc2.weight", "SwiGLU"), ("blocks.0.attn.q_norm.weight", "norms")):
            if key in tensors:
                raise InputError(f"FiT with {what} of its own ({key}) is not supported; give a released model")
        embedding, patch = tensors["x_embedder.proj.weight"], 2
        changed = {"x_embedder.proj.weight": torch.unflatten(embedding, 1, (-1, patch, patch))}
        for name in cls.heads_out:
            changed[name] = torch.unflatten(tensors[name], 0, (-1, patch * patch)).transpose(0, 1).flatten(0, 1)
        return tensors | changed

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        embedding = tensors["x_embedder.proj.weight"]
        positions = embedding.shape[2] * embedding.shape[3]
        changed = {"x_embedder.proj.weight": embedding.flatten(1)}
        for name in cls.heads_out:
            changed[name] = torch.unflatten(tensors[name], 0, (positions, -1)).transpose(0, 1).flatten(0, 1)
        return tensors | changed

    @property
    def one_size(self) -> str:
        return ""

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, self.final_layer]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [self.t_embedder(timestep) + self.y_embedder(label)]

    def modulations(self) -> list[Modulation]:
        layers = [block.get_submodule("adaLN_modulation") for block in self.repeated]
        if self.global_adaLN_modulation is not None:
            layers.append(self.global_adaLN_modulation)
        return [Modulation(layer, 0, last_linear(layer).out_features) for layer in layers]

    def embedders(self) -> Embedders:
        return Embedders([self.t_embedder], [self.y_embedder])

    def initialize(self) -> None:
        """Set initial weights as published: as DiT, with the last layer of each modulation zero."""
        initialize_linears(self)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        assert self.x_embedder.proj.bias is not None
        nn.init.zeros_(self.x_embedder.proj.bias)
        for weight in (self.y_embedder.embedding_table.weight, *self.t_embedder.mlp.parameters()):
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)
        set_to_zero([*(last_linear(part.layer) for part in self.modulations()), self.final_layer.linear])

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 for FiT and 0..1 for FiTv2, labels (B,) -> (B, C', H, W)."""
        y = self.labels(condition)
        h, w = self.grid_of_input(x)
        x = self.through(self.x_embedder(x.to(self.dtype)), timestep, y, places(h, w, x.device), None, trace)
        return unpatchify(x, h, w, self.patch)

    def forward_tokens(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, where: Tensor, mask: Tensor
    ) -> Tensor:
        """Compute the output for images of several sizes, as padded sequences of patches.

        Args:
            x: patches (B, N, C p p), positions in a patch fastest.
            timestep: timestep input (B,).
            condition: B rows, or labels (B,).
            where: row and column of each patch (B, 2, N); in the published code, the column is the first.
            mask: true for patches, false for padding (B, N).

        Returns:
            (B, N, p p C'), channels fastest; zero for padding.
        """
        projection = self.x_embedder.proj
        x = F.linear(x.to(self.dtype), projection.weight.flatten(1), projection.bias)
        return self.through(x, timestep, self.labels(condition), where, mask, None) * mask.unsqueeze(-1)

    def forward_packed(self, images: Sequence[Tensor], timestep: Tensor, condition: Condition | Tensor) -> list[Tensor]:
        """Compute the output for images of several sizes as one list of tokens, without padding.

        Args:
            images: B images (C, H, W).
            timestep: timestep input (B,).
            condition: B rows, or labels (B,).

        Returns:
            B outputs (C', H, W).
        """
        grids = [self.grid_of_input(image[None]) for image in images]
        tokens = [self.x_embedder(image[None].to(self.dtype))[0] for image in images]
        where = torch.cat([places(h, w, self.device) for h, w in grids], dim=1)
        segments = Segments.of_lengths([len(part) for part in tokens], self.device)
        # The list is a batch of N sequences of one token, so that each token is modulated by its image.
        x = torch.cat(tokens)[:, None]
        x = self.through(x, timestep, self.labels(condition), where, segments, None)[:, 0]
        parts = zip(torch.split(x, list(segments.lengths)), grids, strict=True)
        return [unpatchify(part[None], h, w, self.patch)[0] for part, (h, w) in parts]

    def through(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        where: Tensor,
        mask: Tensor | Segments | None,
        trace: Trace | None,
    ) -> Tensor:
        """Pass tokens (B, N, D), or the list (N, 1, D) of those of several images, through all layers."""
        (c,) = self.conditioning(timestep, y)  # (B, D)
        table = rotary(where, x.shape[-1] // self.heads).to(x.dtype)
        x = self.inner(x, c, table, mask, trace)
        x = self.final_layer(x, c[mask.of] if isinstance(mask, Segments) else c)
        record(trace, len(self.blocks), x)
        return x

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks; feature caching skips them."""
        c, table, mask, trace = context
        shared = None if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)
        for i, block in enumerate(self.blocks):
            x = block(x, c, table, mask, shared)
            record(trace, i, x)
        return x


class FiTv2(FiT):
    """The second version of FiT.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
    """

    sizes = MappingProxyType({"XL/2": Size(36, 1152, 16), "3B/2": Size(40, 2304, 24)})
    modern = True
    marks = (*FiT.marks, "global_adaLN_modulation.1.weight")

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        return sit_objective()

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return negated(super().from_published(tensors), cls.heads_out)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return negated(super().to_published(tensors), cls.heads_out)


class Block(nn.Module):
    """Attention and gated MLP, each with shift, scale and gate from the condition; the identity at initialization."""

    def __init__(self, width: int, heads: int, modern: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width, affine=False), norm(width, affine=False)
        self.attn = Attention(width, heads, modern)
        self.mlp = GatedMlp(width, 8 * width // 3 if modern else 4 * width)
        self.adaLN_modulation = modulation(width, 6 * width, width // 4 if modern else 0)

    def forward(
        self, x: Tensor, c: Tensor, table: Tensor, mask: Tensor | Segments | None, shared: Tensor | None
    ) -> Tensor:
        values = self.adaLN_modulation(c) if shared is None else self.adaLN_modulation(c) + shared
        values = values[mask.of] if isinstance(mask, Segments) else values
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = values.chunk(6, dim=1)  # (B, D) each
        x = torch.addcmul(x, gate_a[:, None], self.attn(modulate(self.norm1(x), shift_a, scale_a), table, mask))
        return torch.addcmul(x, gate_m[:, None], self.mlp(modulate(self.norm2(x), shift_m, scale_m)))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions, among the tokens of an image."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | Segments | None) -> Tensor:
        if isinstance(mask, Segments):
            x = x.transpose(0, 1)  # (1, N, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        if self.qk_norm:
            q, k = (F.layer_norm(part, part.shape[-1:], eps=1e-6) for part in (q, k))
        q, k = rotated(q, table.to(q.dtype)), rotated(k, table.to(k.dtype))
        if isinstance(mask, Segments):
            return self.proj(attend_segments(q, k, v, mask).transpose(1, 2).flatten(2)).transpose(0, 1)
        x = attend(q, k, v) if mask is None else attend_within(q, k, v, mask)
        return self.proj(x.transpose(1, 2).flatten(2))


def attend_within(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Compute the attention (B, heads, N, d) of padded sequences, of which `mask` (B, N) is true for patches.

    On a CPU the images are computed one after the other without their padding. The result for padding is zero there.
    """
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    out = torch.zeros_like(q)
    for i, patches in enumerate(mask):
        query, key, value = (part[i : i + 1, :, patches] for part in (q, k, v))
        out[i, :, patches] = attend(query, key, value)[0]
    return out


class GatedMlp(nn.Module):
    """Gated feed-forward layer D -> inner -> D."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1_g, self.fc1_x = nn.Linear(width, inner), nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1_g(x)) * self.fc1_x(x))


def modulation(width: int, out: int, rank: int = 0) -> nn.Sequential:
    """Return a layer from the condition (B, D) to values (B, out), of low rank if `rank` is given."""
    if rank:
        return nn.Sequential(nn.SiLU(), nn.Linear(width, rank), nn.Linear(rank, out))
    return nn.Sequential(nn.SiLU(), nn.Linear(width, out))


def places(h: int, w: int, device: torch.device) -> Tensor:
    """Return row and column (2, N) of the patches of a grid."""
    place = torch.arange(h * w, device=device)
    return torch.stack([place // w, place % w])


def rotary(where: Tensor, width: int) -> Tensor:
    """Compute rotary positions (2, [B, 1,] N, d) of patches at `where` ([B,] 2, N), with the row in the first half."""
    steps = torch.arange(width // 4, device=where.device, dtype=torch.float32)
    frequencies = 10000 ** (-steps / (width // 4))
    angles = (where.float().unsqueeze(-1) * frequencies).transpose(-3, -2).flatten(-2).repeat_interleave(2, dim=-1)
    angles = angles if where.ndim == 2 else angles.unsqueeze(1)
    return torch.stack([angles.cos(), angles.sin()])


def check_sizes(size: tuple[int, int], depth: int, width: int, heads: int, patch: int) -> None:
    """Raise an `InputError` if sizes do not fit together."""
    check_positive(depth=depth, width=width, heads=heads, patch=patch)
    if size[0] % patch or size[1] % patch:
        raise InputError(f"size {size[0]}x{size[1]} is not divisible by patch {patch}; choose another size or patch")
    if width % heads or width // heads % 4:
        raise InputError(
            f"width {width} with {counted(heads, 'head')}; give a multiple of {4 * heads} (positions in two dimensions)"
        )
