"""U-ViT (Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023).

A plain ViT on the sequence of label, timestep and patches, with long skip connections: outputs of the first half are
concatenated to inputs of the second half. The state dict has the published keys. In shapes, B is the batch, N tokens,
D width, p patch and h x w the grid of patches.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.any_size import LEARNED
from ditlab.backbones.base import Backbone
from ditlab.backbones.layers import Attention, Mlp, PatchEmbed, SinusoidEmbedder, check_positive, unpatchify
from ditlab.backbones.published import IMAGENET
from ditlab.backbones.routing import check_late_exits, depth_at, leaves_early, partly, record
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table; depth is the number of all blocks."""

    depth: int
    width: int
    heads: int
    final_conv: bool


SIZES = {  # sizes of the paper; final_conv as in the released code
    "S": Size(13, 512, 8, True),
    "M": Size(17, 768, 12, True),
    "L": Size(21, 1024, 16, True),
    "H": Size(29, 1152, 16, False),
}
VARIANTS = ("S/2", "M/4", "L/2", "L/4", "H/2", "H/4")


class UViT(Backbone):
    """The ViT with long skip connections; no layer is initialized to zero.

    Args:
        depth: number of transformer blocks, including the middle one; an odd number.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        final_conv: add a 3x3 convolution after the last layer.
        exits: early exit: shares of the blocks that run, for equal intervals of the timestep from data to noise.
    """

    label_tables = ("label_emb.weight",)
    heads_out = ("decoder_pred.weight", "decoder_pred.bias", "final_layer.weight", "final_layer.bias")
    changeable = ("exits",)
    published = MappingProxyType({"exits": False})
    lora_targets = ("attn.qkv", "attn.proj", "skip_linear")
    decayed = ("pos_embed",)
    marks = ("patch_embed.proj.weight", "pos_embed", "mid_block.attn.qkv.weight", "decoder_pred.weight")

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
        final_conv: bool = True,
        exits: Sequence[float] = (),
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, depth, width, heads, patch)
        check_late_exits(exits, depth, depth // 2 + 1)
        self.patch, self.exits = patch, exits
        self.extras = 2 if classes else 1  # tokens before the patches: label (if there are classes), timestep

        count = self.extras + (size[0] // patch) * (size[1] // patch)
        self.time_embedder = SinusoidEmbedder(width)
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.label_emb = nn.Embedding(classes + 1, width) if classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, count, width))
        self.in_blocks = nn.ModuleList([Block(width, heads, skip=False) for _ in range(depth // 2)])
        self.mid_block = Block(width, heads, skip=False)
        self.out_blocks = nn.ModuleList([Block(width, heads, skip=True) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * self.out_channels)
        # Separate groups, so that adding or removing the variance channels does not change the other channels.
        groups = self.out_channels // channels
        conv = nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1, groups=groups)
        self.final_layer = conv if final_conv else nn.Identity()
        self.initialize()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        rows = ((variant, *variant.split("/")) for variant in VARIANTS)
        return {variant: SIZES[name]._asdict() | {"patch": int(patch)} for variant, name, patch in rows}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict.

        The number of heads is only known for published sizes. Released class-embedding tables have 1001 rows (256 and
        512 pixels, trained for guidance) or 1000 (64 pixels, without a null class). For other tables the number of
        classes is left out.
        """
        width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        depth = 1 + 2 * len({key.split(".")[1] for key in tensors if key.startswith("in_blocks.")})
        labels = tensors.get("label_emb.weight")
        patches = tensors["pos_embed"].shape[1] - (1 if labels is None else 2)
        side = round(patches**0.5) * patch  # assumes a square; callers can override the size
        heads = {(row.depth, row.width): {"heads": row.heads} for row in SIZES.values()}
        classes = 0 if labels is None else cls.count_classes(len(labels))
        sizes = {
            "size": (side, side),
            "channels": channels,
            "learn_variance": len(tensors["decoder_pred.weight"]) == 2 * channels * patch**2,
            "width": width,
            "depth": depth,
            "patch": patch,
            "final_conv": "final_layer.weight" in tensors,
        } | heads.get((depth, width), {})
        return sizes | {"classes": classes} if classes in (0, IMAGENET) else sizes

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """Return the objective: noise on the VP process for pixels, and on Stable Diffusion's process, with timesteps
        counted from 1, for latents."""
        process = {"name": "vp"} if sizes["channels"] == 3 else {"name": "scaled-linear", "clock_start": 1.0}
        return {"process": process, "target": "eps"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict, whose keys are the same in ditlab.

        Raises:
            InputError: an option of the published code that no released model uses.
        """
        for key, what in (
            ("time_embed.0.weight", "an MLP for the timestep"),
            ("mid_block.attn.qkv.bias", "biases of q, k, v"),
        ):
            if key in tensors:
                raise InputError(f"U-ViT with {what} is not supported; give a model with the released settings")
        return dict(tensors)

    @property
    def one_size(self) -> str:
        return LEARNED

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def initialize(self) -> None:
        """Set initial weights: truncated N(0, 0.02) for linear layers and positions, PyTorch's default for the rest."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,), labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        h, w = self.grid
        # fmt: off
        x = self.patch_embed(x.to(self.dtype))                            # (B, h w, D)
        time = self.time_embedder(timestep).to(self.dtype)                # (B, D)
        x = torch.cat([time[:, None], x], dim=1)                          # (B, h w + 1, D)
        if self.label_emb is not None:
            x = torch.cat([self.label_emb(y)[:, None], x], dim=1)         # (B, h w + 2, D)
        x = x + self.pos_embed                                            # (B, N, D)   N = h w + 1 or 2
        skip = x = self.in_blocks[0](x)                                   # (B, N, D)
        record(trace, 0, x)
        depths = None
        if leaves_early(self.exits, timestep):
            depths = depth_at(timestep, self.exits, len(self.repeated))
        x = self.late(-1, self.inner(x, depths, trace), skip, depths)     # (B, N, D)
        record(trace, len(self.in_blocks) + len(self.out_blocks), x)
        x = self.decoder_pred(self.norm(x[:, self.extras :]))             # (B, h w, p p C)
        return self.final_layer(unpatchify(x, h, w, self.patch))          # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """Pass tokens (B, N, D) through all blocks but the first and the last."""
        depths, trace = context
        skips: list[Tensor] = []
        for i, block in enumerate(self.in_blocks[1:], start=1):
            x = block(x)  # (B, N, D)
            record(trace, i, x)
            skips.append(x)
        x = self.mid_block(x)
        record(trace, len(self.in_blocks), x)
        first = len(self.in_blocks) + 1
        for i in range(len(self.out_blocks) - 1):
            x = self.late(i, x, skips.pop(), depths)
            record(trace, first + i, x)
        return x

    def late(self, i: int, x: Tensor, skip: Tensor, depths: Sequence[int] | None) -> Tensor:
        """Pass tokens (B, N, D) through block i of the second half; of images that exited, only join the skip.

        Args:
            i: number of the block; -1 is the last one.
            x: tokens.
            skip: output of a block of the first half (B, N, D).
            depths: number of blocks that each image uses; None is all blocks.
        """
        block, before = self.out_blocks[i], len(self.in_blocks) + 1 + i % len(self.out_blocks)
        if depths is None or min(depths) > before:
            return block(x, skip)
        joined = block.get_submodule("skip_linear")(torch.cat([x, skip], dim=-1))
        return partly(joined, [depth > before for depth in depths], lambda part, rows: block(part))


class Block(nn.Module):
    """A pre-norm ViT block; blocks of the second half have a skip connection from the first half at their input."""

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=False)
        self.mlp = Mlp(width, approximate="none")

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        if self.skip_linear is not None and skip:
            x = self.skip_linear(torch.cat([x, *skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def check_sizes(size: tuple[int, int], depth: int, width: int, heads: int, patch: int) -> None:
    """Check that sizes fit together.

    Raises:
        InputError: they do not.
    """
    check_positive(depth=depth, width=width, heads=heads, patch=patch)
    if depth % 2 == 0 or depth < 3:
        raise InputError(
            f"depth {depth}; give an odd number of 3 or more: a middle block, and equal numbers before and after it"
        )
    if size[0] % patch or size[1] % patch:
        raise InputError(f"size {size[0]}x{size[1]} is not divisible by patch {patch}; choose another size or patch")
    if width % heads or width % 2:
        raise InputError(
            f"width {width} must be divisible by heads {heads} and by 2 (cosines and sines of the timestep)"
        )
