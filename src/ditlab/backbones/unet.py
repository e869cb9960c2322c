"""Convolutional U-Nets, as baselines for diffusion transformers, built with diffusers (extra `unet`).

`ADM` (Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021) adds the label embedding to the
timestep embedding; `LDM` (Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022)
uses it in cross-attention. Both are initialized as published: the last layer of each residual branch and the head are
zero.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import gcd
from typing import Any

from torch import Tensor, nn

from ditlab.backbones.base import Backbone
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.core.units import counted

CONTEXT = 512  # width of the label in LDM


class UNet(Backbone):
    """A U-Net of residual blocks, with attention at some resolutions.

    Args:
        width: channels at full resolution.
        multiples: channels of each level as multiples of the width; each level has half the grid of the previous one.
        depth: residual blocks of each encoder level; decoder levels have one more.
        attention_at: down-sampling factors of the levels with attention.
        head_width: channels of an attention head; 0 is a single head.
    """

    heads_out = ("net.conv_out.weight", "net.conv_out.bias")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    graph_batch = 63  # diffusers branches on a batch of 64 or more
    zero: tuple[str, ...]
    """Suffixes of the names of layers that are initialized to zero."""

    def __init__(
        self,
        *,
        size: tuple[int, int],
        channels: int,
        classes: int,
        learn_variance: bool,
        width: int,
        multiples: Sequence[float],
        depth: int,
        attention_at: Sequence[int],
        head_width: int = 64,
    ) -> None:
        super().__init__(size, channels, classes, learn_variance)
        for what, value in (("width", width), ("depth", depth), ("multiples", min(multiples, default=0))):
            if value <= 0:
                raise InputError(f"{what} {value}; give more than 0")
        widths = [int(width * multiple) for multiple in multiples]
        factors = [2**i for i in range(len(widths))]
        if size[0] % factors[-1] or size[1] % factors[-1]:
            raise InputError(f"size {size[0]}x{size[1]} is not divisible by {factors[-1]}; give fewer multiples")
        for factor in attention_at:
            if factor not in factors:
                raise InputError(f"attention_at {factor}; give some of the factors {', '.join(map(str, factors))}")
        attends = [factor in attention_at for factor in factors]
        heads = [level // head_width if head_width else 1 for level in widths]
        for level, count in zip(widths, heads, strict=True):
            if count < 1 or level % count or (head_width and level % head_width):
                raise InputError(
                    f"{counted(level, 'channel')} cannot be split into heads of {head_width}; give another head_width"
                )
        # The middle, at the smallest grid, always has attention.
        self.width = width
        self.smallest = factors[-1]
        self.longest = size[0] * size[1] // min([*attention_at, factors[-1]]) ** 2
        self.net = self.build(
            {
                "in_channels": channels,
                "out_channels": self.out_channels,
                "block_out_channels": tuple(widths),
                "layers_per_block": depth,
                "norm_num_groups": gcd(32, *widths),
                "norm_eps": 1e-5,
                "time_embedding_dim": 4 * width,
            },
            attends,
            heads,
        )
        for name, module in self.net.named_modules():
            if name.endswith(self.zero):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    @abstractmethod
    def build(self, common: dict[str, Any], attends: list[bool], heads: list[int]) -> nn.Module:
        """Build the network with diffusers.

        Args:
            common: arguments that all networks of diffusers have.
            attends: whether each level has attention.
            heads: number of attention heads of each level.
        """

    @property
    def one_size(self) -> str:
        return ""

    @property
    def side_multiples(self) -> tuple[int, ...]:
        return (self.smallest,) * 2

    @property
    def tokens(self) -> int:
        return self.longest

    @property
    def matrix_width(self) -> int:
        return self.width


class ADM(UNet):
    """The U-Net of "Diffusion Models Beat GANs": timestep and label modulate the residual blocks."""

    label_tables = ("net.class_embedding.weight",)
    zero = ("conv2", "to_out.0", "conv_out")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            "64": {"width": 192, "multiples": (1, 2, 3, 4), "depth": 3, "attention_at": (2, 4, 8)},
            "128": {"width": 256, "multiples": (1, 1, 2, 3, 4), "depth": 2, "attention_at": (4, 8, 16)},
            "256": {"width": 256, "multiples": (1, 1, 2, 2, 4, 4), "depth": 2, "attention_at": (8, 16, 32)},
            "512": {"width": 256, "multiples": (0.5, 1, 1, 2, 2, 4, 4), "depth": 2, "attention_at": (16, 32, 64)},
        }

    def build(self, common: dict[str, Any], attends: list[bool], heads: list[int]) -> nn.Module:
        network = library().UNet2DModel(
            **common,
            down_block_types=["AttnDownBlock2D" if attend else "ResnetDownsampleBlock2D" for attend in attends],
            up_block_types=["AttnUpBlock2D" if attend else "ResnetUpsampleBlock2D" for attend in attends[::-1]],
            attention_head_dim=common["block_out_channels"][-1] // heads[-1],
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
            num_class_embeds=self.classes + 1,
        )
        assert isinstance(network, nn.Module)
        return network

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 as published, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        out: Tensor = self.net(x.to(self.dtype), timestep, y).sample
        return out


class LDM(UNet):
    """The U-Net of latent diffusion: residual blocks, and transformer blocks with cross-attention to the label."""

    label_tables = ("label_embedding.weight",)
    zero = ("conv2", "proj_out", "conv_out")

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        return {
            "4": {"width": 192, "multiples": (1, 2, 3, 5), "depth": 2, "attention_at": (2, 4, 8), "head_width": 0},
            "8": {"width": 256, "multiples": (1, 2, 4), "depth": 2, "attention_at": (1, 2, 4), "head_width": 32},
        }

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        process = {"name": "scaled-linear", "beta_start": 0.0015, "beta_end": 0.0195}
        return {"process": process, "target": "eps"}

    def build(self, common: dict[str, Any], attends: list[bool], heads: list[int]) -> nn.Module:
        network = library().UNet2DConditionModel(
            **common,
            down_block_types=["CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
            up_block_types=["CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]],
            attention_head_dim=heads,  # despite its name, diffusers uses this as the number of heads
            cross_attention_dim=CONTEXT,
        )
        assert isinstance(network, nn.Module)
        self.label_embedding = nn.Embedding(self.classes + 1, CONTEXT)
        return network

    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Images (B, C, H, W), timestep (B,) in 0..999 as published, labels (B,) -> (B, out_channels, H, W)."""
        y = self.labels(condition)
        self.check_input(x)
        out: Tensor = self.net(x.to(self.dtype), timestep, self.label_embedding(y)[:, None]).sample
        return out


def library() -> Any:
    """Import diffusers.

    Raises:
        InputError: it is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError("U-Nets need diffusers; pip install 'ditlab[unet]'") from None
    return diffusers
