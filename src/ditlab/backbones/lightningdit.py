"""LightningDiT (Yao et al., "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion Models",
CVPR 2025): a DiT with RMS norms that have weights, gated feed-forward layers and rotary positions.

It is trained as SiT, on latents of 16x16 positions with 32 channels. The state dict has the published keys. In shapes,
N is the number of tokens and d the width of a head.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.backbones.dit import SIZES, DiT
from ditlab.backbones.positions import rotations
from ditlab.backbones.published import negated, sit_objective
from ditlab.core.errors import InputError

PATCHES = (1, 2)


class LightningDiT(DiT):
    """The DiT of latents with many channels; before training, its output is exactly zero.

    Args:
        depth: number of transformer blocks.
        width: channels of a token.
        heads: number of attention heads.
        patch: side of a token in pixels (or latent positions).
        qk_norm: RMS-normalize queries and keys.
    """

    changeable = ()
    norm_weights = True
    marks = (*DiT.marks, "feat_rope.freqs_cos")
    published: Mapping[str, Any] = MappingProxyType({})

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
        qk_norm: bool = False,
    ) -> None:
        super().__init__(
            size=size,
            channels=channels,
            classes=classes,
            learn_variance=learn_variance,
            depth=depth,
            width=width,
            heads=heads,
            patch=patch,
            qk_norm=qk_norm,
            rms_norm=True,
            swiglu=True,
            rope=True,
        )
        h, w = self.grid
        self.feat_rope = Rope(self.rotation(h, w, width // heads))

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            f"{name}/{patch}": size._asdict() | {"patch": patch}
            for name, size in SIZES.items()
            if name != "S"
            for patch in PATCHES
        }

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of `create` that can be derived from a published state dict: all of them."""
        sizes = super().read_sizes(tensors)
        del sizes["condition"]
        heads = sizes["width"] // tensors["feat_rope.freqs_cos"].shape[1]
        return sizes | {"heads": heads, "qk_norm": "blocks.0.attn.q_norm.weight" in tensors}

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        return sit_objective()

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict with ditlab's velocity; the keys are the same.

        Raises:
            InputError: an option of the published code that no released model uses.
        """
        rows, width = tensors["blocks.0.adaLN_modulation.1.weight"].shape
        for unsupported, what in (
            (rows != 6 * width, "without shifts (wo_shift)"),
            ("blocks.0.norm1.weight" not in tensors, "without RMS norm"),
            ("blocks.0.mlp.w12.weight" not in tensors, "without SwiGLU"),
        ):
            if unsupported:
                raise InputError(f"LightningDiT {what} is not supported; give a model with the released settings")
        return negated(tensors, cls.heads_out)

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return negated(tensors, cls.heads_out)

    @staticmethod
    def rotation(h: int, w: int, width: int, more: int = 0) -> Tensor:
        """Compute rotary positions (2, h w + more, d) as `rotations`, with the row first."""
        columns, rows = rotations(h, w, width, more).chunk(2, dim=-1)
        return torch.cat([rows, columns], dim=-1)

    @staticmethod
    def gated_width(width: int) -> int:
        return 8 * width // 3


class Rope(nn.Module):
    """The table of rotary positions in the published state dict; attention has its own."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("freqs_cos", table[0].clone())
        self.register_buffer("freqs_sin", table[1].clone())
