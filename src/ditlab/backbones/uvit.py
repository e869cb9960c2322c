"""U-ViT (Bao et al., "All are Worth Words: A ViT Backbone for Diffusion Models", CVPR 2023): everything is a token.

Label, time and patches form one sequence of a plain ViT, whose second half also reads the outputs of the first, by
concatenation. The state dict has the published keys. B images, N tokens, D width, p patch, h x w patches.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditlab.backbones.base import IMAGENET, Backbone
from ditlab.backbones.layers import Attention, Mlp, PatchEmbed, sinusoids, unpatchify
from ditlab.backbones.routing import record
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace


class Size(NamedTuple):
    """One row of the size table; depth counts all blocks."""

    depth: int
    width: int
    heads: int
    final_conv: bool


SIZES = {  # of the paper; the last column as released
    "S": Size(13, 512, 8, True),
    "M": Size(17, 768, 12, True),
    "L": Size(21, 1024, 16, True),
    "H": Size(29, 1152, 16, False),
}
VARIANTS = ("S/2", "M/4", "L/2", "L/4", "H/2", "H/4")


class UViT(Backbone):
    """The ViT with long skips; nothing in it starts at zero.

    Args:
        depth: number of transformer blocks, the middle one included; an odd number.
        width: channels of a token.
        heads: number of attention heads.
        patch: pixels (or latent places) along each side of a token.
        final_conv: a 3x3 convolution at the end.
    """

    label_tables = ("label_emb.weight",)
    heads_out = ("decoder_pred.weight", "decoder_pred.bias", "final_layer.weight", "final_layer.bias")
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
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        check_sizes(size, depth, width, heads, patch)
        self.patch = patch
        self.extras = 2 if classes else 1  # tokens before the patches: label (if there is one), time

        count = self.extras + (size[0] // patch) * (size[1] // patch)
        self.patch_embed = PatchEmbed(patch, channels, width)
        self.label_emb = nn.Embedding(classes + 1, width) if classes else None
        self.pos_embed = nn.Parameter(torch.empty(1, count, width))
        self.in_blocks = nn.ModuleList([Block(width, heads, skip=False) for _ in range(depth // 2)])
        self.mid_block = Block(width, heads, skip=False)
        self.out_blocks = nn.ModuleList([Block(width, heads, skip=True) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(width)
        self.decoder_pred = nn.Linear(width, patch * patch * self.out_channels)
        # The variance half has a convolution of its own, so that adding or dropping it leaves the other half alone.
        groups = self.out_channels // channels
        conv = nn.Conv2d(self.out_channels, self.out_channels, 3, padding=1, groups=groups)
        self.final_layer = conv if final_conv else nn.Identity()
        self.initialise()

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        rows = ((variant, *variant.split("/")) for variant in VARIANTS)
        return {variant: SIZES[name]._asdict() | {"patch": int(patch)} for variant, name, patch in rows}

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments of `create` that a published state dict tells; heads from the size table where it has them.

        Released tables have 1001 rows (256 and 512 pixels, trained for guidance) or 1000 (64 pixels, without a row for
        "no condition"). Other tables do not tell which they are, and the classes are left out.
        """
        width, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
        depth = 1 + 2 * len({key.split(".")[1] for key in tensors if key.startswith("in_blocks.")})
        labels = tensors.get("label_emb.weight")
        patches = tensors["pos_embed"].shape[1] - (1 if labels is None else 2)
        side = round(patches**0.5) * patch  # a square, unless the caller says otherwise
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
        """Noise on Stable Diffusion's chain, counted from 1, for latents; on the continuous VP process for pixels."""
        process = {"name": "vp"} if sizes["channels"] == 3 else {"name": "scaled-linear", "clock_start": 1.0}
        return {"process": process, "target": "eps"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published keys are ours.

        Raises:
            InputError: variants of the published code that none of its released models is.
        """
        for key, what in (
            ("time_embed.0.weight", "an MLP for the time"),
            ("mid_block.attn.qkv.bias", "biases of q, k, v"),
        ):
            if key in tensors:
                raise InputError(f"U-ViT with {what} is not supported; give a model with the released settings")
        return dict(tensors)

    @property
    def tokens(self) -> int:
        return self.pos_embed.shape[1]

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def initialise(self) -> None:
        """Linears and positions truncated N(0, 0.02); labels and convolutions as torch makes them."""
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
        time = sinusoids(timestep, x.shape[-1]).to(self.dtype)            # (B, D)
        x = torch.cat([time[:, None], x], dim=1)                          # (B, h w + 1, D)
        if self.label_emb is not None:
            x = torch.cat([self.label_emb(y)[:, None], x], dim=1)         # (B, h w + 2, D)
        x = x + self.pos_embed                                            # (B, N, D)   N = h w + 1 or 2
        skip = x = self.in_blocks[0](x)                                   # (B, N, D)
        record(trace, 0, x)
        x = self.out_blocks[-1](self.inner(x, trace), skip)               # (B, N, D)
        record(trace, len(self.in_blocks) + len(self.out_blocks), x)
        x = self.decoder_pred(self.norm(x[:, self.extras :]))             # (B, h w, p p C)
        return self.final_layer(unpatchify(x, h, w, self.patch))          # (B, C, H, W)
        # fmt: on

    def inner(self, x: Tensor, *rest: Any) -> Tensor:
        """All blocks but the first and the last."""
        (trace,) = rest
        skips: list[Tensor] = []
        for i, block in enumerate(self.in_blocks[1:], start=1):
            x = block(x)  # (B, N, D)
            record(trace, i, x)
            skips.append(x)
        x = self.mid_block(x)
        record(trace, len(self.in_blocks), x)
        for i, block in enumerate(self.out_blocks[:-1], start=len(self.in_blocks) + 1):
            x = block(x, skips.pop())
            record(trace, i, x)
        return x


class Block(nn.Module):
    """A plain pre-norm ViT block; behind the middle it first joins the output of its mirror image before it."""

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(2 * width, width) if skip else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias=False)
        self.mlp = Mlp(width, approximate="none")

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, *skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def check_sizes(size: tuple[int, int], depth: int, width: int, heads: int, patch: int) -> None:
    """Refuse sizes that do not fit together."""
    for what, value in (("depth", depth), ("width", width), ("heads", heads), ("patch", patch)):
        if value < 1:
            raise InputError(f"{what} {value}; give 1 or more")
    if depth % 2 == 0 or depth < 3:
        raise InputError(f"depth {depth}; give an odd one from 3: a middle block and as many behind it as before it")
    if size[0] % patch or size[1] % patch:
        raise InputError(f"size {size[0]}x{size[1]} is not divisible by patch {patch}; choose another size or patch")
    if width % heads or width % 2:
        raise InputError(f"width {width} must be divisible by heads {heads} and by 2 (cosines and sines of the time)")
