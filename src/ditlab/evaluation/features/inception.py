"""The Inception network that TensorFlow published on 2015-12-05, with which all published FIDs are computed.

The weights and their names are those of pytorch-fid and torch-fidelity. The network differs from that of Szegedy et
al. 2015 ("Rethinking the Inception Architecture"), and published numbers depend on all differences: average pooling
excludes the padding, the last block uses maximum pooling, there are 1008 classes, and TensorFlow 1's bilinear resize
neither smooths nor aligns pixel centers. Tests compare the features with both packages (tests/golden).
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor, nn

from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.io import hash_file, replacing
from ditlab.core.modules import skip_init
from ditlab.core.spelling import expand
from ditlab.core.terminal import make_console
from ditlab.core.weights import read_state
from ditlab.evaluation.features.base import Extracted, Features

FILE = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = FILE[-12:-4]  # beginning of its SHA-256
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
VARIABLE = "DITLAB_INCEPTION"
REMEDY = f"download {ADDRESS} and give it as feature weights"

SIDE = 299  # side of its input
SPATIAL = 7  # channels of sFID; with 17x17 positions they have about as many values as the pool (Nash et al. 2021)

Kernel = tuple[int, int]
Branch = Sequence[tuple[int, Kernel | tuple[Kernel, Kernel]]]  # widths and kernels; two kernels are parallel layers

POINT, WIDE, TALL = (1, 1), (1, 7), (7, 1)
FORK = ((1, 3), (3, 1))

STEM = {  # width, kernel, stride, padded, followed by a maximum
    "Conv2d_1a_3x3": (32, (3, 3), 2, False, False),
    "Conv2d_2a_3x3": (32, (3, 3), 1, False, False),
    "Conv2d_2b_3x3": (64, (3, 3), 1, True, True),
    "Conv2d_3b_1x1": (80, POINT, 1, False, False),
    "Conv2d_4a_3x3": (192, (3, 3), 1, False, True),
}


def fine(pool: int) -> dict[str, Branch]:
    """Branches at 35x35."""
    return {
        "branch1x1": [(64, POINT)],
        "branch5x5": [(48, POINT), (64, (5, 5))],
        "branch3x3dbl": [(64, POINT), (96, (3, 3)), (96, (3, 3))],
        "branch_pool": [(pool, POINT)],
    }


def middle(width: int) -> dict[str, Branch]:
    """Branches at 17x17."""
    return {
        "branch1x1": [(192, POINT)],
        "branch7x7": [(width, POINT), (width, WIDE), (192, TALL)],
        "branch7x7dbl": [(width, POINT), (width, TALL), (width, WIDE), (width, TALL), (192, WIDE)],
        "branch_pool": [(192, POINT)],
    }


COARSE: dict[str, Branch] = {  # branches at 8x8
    "branch1x1": [(320, POINT)],
    "branch3x3": [(384, POINT), (384, FORK)],
    "branch3x3dbl": [(448, POINT), (384, (3, 3)), (384, FORK)],
    "branch_pool": [(192, POINT)],
}
TO_MIDDLE: dict[str, Branch] = {
    "branch3x3": [(384, (3, 3))],
    "branch3x3dbl": [(64, POINT), (96, (3, 3)), (96, (3, 3))],
    "branch_pool": [],
}
TO_COARSE: dict[str, Branch] = {
    "branch3x3": [(192, POINT), (320, (3, 3))],
    "branch7x7x3": [(192, POINT), (192, WIDE), (192, TALL), (192, (3, 3))],
    "branch_pool": [],
}
BLOCKS: dict[str, tuple[dict[str, Branch], str]] = {  # branches, and what is pooled
    "Mixed_5b": (fine(32), "mean"),
    "Mixed_5c": (fine(64), "mean"),
    "Mixed_5d": (fine(64), "mean"),
    "Mixed_6a": (TO_MIDDLE, "halve"),
    "Mixed_6b": (middle(128), "mean"),
    "Mixed_6c": (middle(160), "mean"),
    "Mixed_6d": (middle(160), "mean"),
    "Mixed_6e": (middle(192), "mean"),
    "Mixed_7a": (TO_COARSE, "halve"),
    "Mixed_7b": (COARSE, "mean"),
    "Mixed_7c": (COARSE, "max"),  # not the paper's, but the published graph's
}


class Convolution(nn.Module):
    """Convolution, normalization by running statistics, ReLU."""

    def __init__(self, before: int, after: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else 0
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.ModuleDict):
    """Parallel branches, one of them pooled, concatenated along the channels.

    Args:
        before: channels of the input.
        branches: the layers of each branch; `branch_pool` reads the pooled input.
        pool: "mean" or "max" of 3x3 positions; "halve": the maximum, and every branch ends with stride 2.
    """

    def __init__(self, before: int, branches: dict[str, Branch], pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branches: dict[str, list[list[str]]] = {}  # names of the layers; two are parallel
        self.width = 0
        for branch, layers in branches.items():
            width, names = before, []
            for depth, (after, kernels) in enumerate(layers, 1):
                name = f"{branch}_{depth}" if len(layers) > 1 else branch
                halves = pool == "halve" and depth == len(layers)
                if isinstance(kernels[0], int):
                    parallel = {name: kernels}
                else:
                    parallel = {name + letter: kernel for letter, kernel in zip("ab", kernels, strict=True)}
                for layer, kernel in parallel.items():
                    self[layer] = Convolution(width, after, kernel, 2 if halves else 1, not halves)
                names.append(list(parallel))
                width = after * len(parallel)
            self.branches[branch] = names
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        done = []
        for branch, layers in self.branches.items():
            y = self.pooled(x) if branch == "branch_pool" else x
            for names in layers:
                y = self[names[0]](y) if len(names) == 1 else torch.cat([self[name](y) for name in names], 1)
            done.append(y)
        return torch.cat(done, 1)

    def pooled(self, x: Tensor) -> Tensor:
        """The input of `branch_pool`."""
        if self.pool == "mean":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 2) if self.pool == "halve" else F.max_pool2d(x, 3, 1, 1)


class InceptionNet(nn.ModuleDict):
    """The network, with the published names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for name, (after, kernel, stride, padded, _) in STEM.items():
            self[name] = Convolution(width, after, kernel, stride, padded)
            width = after
        for name, (branches, pool) in BLOCKS.items():
            self[name] = block = Block(width, branches, pool)
            width = block.width
        self.fc = nn.Linear(width, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 299, 299) in -1..1 -> pool (B, 2048), spatial features (B, 2023), logits (B, 1008)."""
        for name, (*_, maximum) in STEM.items():
            x = self[name](x)
            x = F.max_pool2d(x, 3, 2) if maximum else x
        for name in BLOCKS:
            x = self[name](x)  # (B, ., 35, 35), then 17x17, then 8x8
            if name == "Mixed_6d":
                spatial = x[:, :SPATIAL]  # of branch1x1, which comes first
        pool = x.mean((2, 3))
        logits = pool @ self.fc.weight.T  # without the bias, as published Inception scores are
        return pool, spatial.permute(0, 2, 3, 1).flatten(1), logits  # rows, columns, channels, as TensorFlow has them


class Inception(Features):
    """Features of FID, sFID and the Inception score: Heusel et al. 2017, Nash et al. 2021, Salimans et al. 2016."""

    name = "inception"
    dimension = 2048

    def __init__(self, net: InceptionNet, weights: str, device: torch.device | None = None) -> None:
        self.net = net.to(device or "cpu").eval().requires_grad_(False)
        self.weights = weights

    @classmethod
    def load(cls, weights: str = "", device: torch.device | None = None) -> "Inception":
        """Load the network with the published weights.

        Args:
            weights: a .pth, .pt or .safetensors file. If empty, the file that the environment variable
                DITLAB_INCEPTION names, or the file in the user's cache, to which it is downloaded if it is missing.
            device: device of the network (default: the CPU).

        Raises:
            InputError: the file is missing, incomplete or of another network, its hash differs from that in its name,
                or there is neither a file nor an internet connection.
        """
        path = find(weights)
        try:
            digest = hash_file(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}; {REMEDY}") from None
        named = re.search(r"-([0-9a-f]{8})\.pth?$", path.name)
        if named and not digest.startswith(named[1]):
            raise InputError(
                f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {named[1]}; remove it, then {REMEDY}"
            )
        return cls(build(read(path), path), digest[:16], device)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        """Features of uint8 images (B, 1 or 3, H, W) of any size, in float32."""
        x = resize(images.to(self.device).float().expand(-1, 3, -1, -1), SIDE)
        pool, spatial, logits = self.net((x - 128) / 128)
        return Extracted(pool.cpu(), spatial.cpu(), logits.softmax(1).cpu())


def resize(x: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resize of (B, C, H, W) to (B, C, side, side), to the bit.

    Position i of the result is i H/side of the image (others use (i + 1/2) H/side - 1/2), interpolated between at most
    two pixels in each direction, so that some pixels are ignored when the image shrinks.
    """
    for dim in (3, 2):  # columns first: the order decides the last bit
        size = x.shape[dim]
        position = torch.arange(side, dtype=torch.float32, device=x.device) * (size / side)
        lower = position.long()
        share = (position - lower).reshape(-1, *[1] * (3 - dim))
        low, high = x.index_select(dim, lower), x.index_select(dim, (lower + 1).clamp(max=size - 1))
        x = low + (high - low) * share  # torch.lerp rounds otherwise
    return x


def find(weights: str) -> Path:
    """Path of the weights: the argument, the environment variable, or the cache, to which they are downloaded."""
    if weights:
        return Path(expand(weights))
    if named := os.environ.get(VARIABLE):
        return Path(expand(named))
    cached = cache_folder() / FILE
    if not cached.exists():
        download(cached)
    return cached


def download(target: Path) -> None:
    """Download the published weights; the file appears when it is complete."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    digest, console = hashlib.sha256(), make_console(stderr=True)
    try:
        with replacing(target) as draft:
            with (
                urlopen(ADDRESS, timeout=30) as source,
                draft.open("wb") as file,
                Progress(*columns, console=console, disable=not console.is_terminal) as progress,
            ):
                length = int(source.headers.get("Content-Length") or 0)
                task = progress.add_task("downloading the Inception weights", total=length or None)
                while part := source.read(1 << 20):
                    file.write(part)
                    digest.update(part)
                    progress.advance(task, len(part))
            if not digest.hexdigest().startswith(PUBLISHED):
                raise InputError(f"{ADDRESS} is incomplete; try again, or {REMEDY}")
    except (OSError, HTTPException) as error:
        raise InputError(f"{target} cannot be downloaded ({error}); on another machine {REMEDY}") from None


def read(path: Path) -> Any:
    """Read the content of a weight file."""
    with interpreting(path, REMEDY, "is not a weight file, or incomplete"):
        return load_file(path) if path.suffix == ".safetensors" else read_state(path)


def build(content: Any, path: Path) -> InceptionNet:
    """Create the network with weights; an auxiliary head in them is ignored.

    Raises:
        InputError: tensors are missing or have other shapes.
    """
    with skip_init():  # the initial weights would be replaced
        net = InceptionNet()
    counts = {name: torch.tensor(0) for name in net.state_dict() if name.endswith("num_batches_tracked")}
    shapes = {name: value.shape for name, value in net.state_dict().items() if name not in counts}
    tensors = content if isinstance(content, Mapping) else {}
    missing = [name for name in shapes if not isinstance(tensors.get(name), Tensor)]
    if missing:
        raise InputError(f"{path} lacks {missing[0]} ({len(missing)} of {len(shapes)} tensors are missing); {REMEDY}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise InputError(f"{path}: {name} is {tuple(tensors[name].shape)}, not {tuple(shape)}; {REMEDY}")
    net.load_state_dict(counts | {name: tensors[name].float() for name in shapes}, assign=True)
    return net
