"""What every network is: a function of (x, t, y) with a size, a class count and its own "no condition"."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

IMAGENET = 1000  # classes


def record(trace: Trace | None, number: int, output: Tensor) -> None:
    """Record the output of the block with this number in `Backbone.repeated`, if a trace asks for it."""
    if trace is not None:
        trace.tap(f"blocks.{number}", output)


class Backbone(nn.Module, ABC):
    """A denoising network (B, C, H, W), (B,), (B,) -> (B, C or 2C, H, W)."""

    label_tables: tuple[str, ...] = ()
    """Weights with a row for each class and a last one for "no condition"."""
    heads_out: tuple[str, ...] = ()
    """Weights and biases of the output layer, (positions in a patch x out_channels, ...), channels fastest."""
    lora_targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "adaLN_modulation.1")
    """Ends of the names of the layers that low-rank adaptation changes: attention and modulation."""

    marks: tuple[str, ...] = ()
    """Keys that tell a published state dict of this family; where those of several families fit, the most keys win."""
    published: Mapping[str, Any] = {}
    """What the published code has of the family's settings, where there is a choice."""
    graph_batch: int | None = None
    """The largest batch that one exported graph serves; None is any."""

    config: dict[str, Any]
    """The arguments of `create` that build this network again."""

    def __init__(self, size: tuple[int, int], channels: int, classes: int, learn_variance: bool) -> None:
        super().__init__()
        for what, value, least in (("height", size[0], 1), ("width", size[1], 1), ("channels", channels, 1)):
            if value < least:
                raise InputError(f"{what} {value} of the network's input; give {least} or more")
        if classes < 0:
            raise InputError(f"{classes} classes; give 0 for an unconditional model, or more")
        self.size, self.channels, self.classes = size, channels, classes
        self.learn_variance = learn_variance
        self.out_channels = 2 * channels if learn_variance else channels

    extras = 0
    """Tokens that stand before those of the picture."""
    joined = 0
    """Tokens that stand after those of the image, and that routing always keeps."""

    @classmethod
    @abstractmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Published sizes: the part of the name behind the family -> constructor arguments."""

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments of `create` that a published state dict tells; those that it leaves open are left out."""
        raise NotImplementedError

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """What published weights of these sizes were trained on, as in `config.json`; DiT's chain and noise if not
        overridden."""
        return {"process": {"name": "ddpm"}, "target": "eps"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under our keys, without a copy; these are the published ones if not overridden."""
        return tensors

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `from_published`."""
        return tensors

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None) -> Tensor:
        """Images (B, C, H, W), timestep (B,) float, condition (B rows) -> (B, out_channels, H, W).

        A class-conditional family also takes the labels (B,) long as they are.
        """

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of the longest sequence that attention sees."""

    def fused(self) -> "Backbone":
        """An independent network that computes the same with fewer weights; this one where nothing can be merged."""
        return self

    def conditioning(self, t: Tensor, y: Tensor) -> list[Tensor]:
        """The vectors (B, D) that the modulations of this network read, of different widths; none where it has none."""
        return []

    @property
    def no_routing(self) -> str:
        """Why `Trace.kept` cannot be used with this network; empty if it can."""
        return "its blocks need all tokens"

    @property
    def repeated(self) -> list[nn.Module]:
        """The blocks that are compiled, one by one; none where the family is not worth the wait."""
        return []

    def inner(self, x: Tensor, *rest: Any) -> Tensor:
        """The part that may be left out at some steps (`inference.optimize.reuse`): not the first and last layers."""
        raise NotImplementedError

    def with_parts(self, parts: dict[nn.Module, nn.Module]) -> Self:
        """A network with other modules in some places, which shares all other weights with this one."""
        shared = {id(each): each for each in chain(self.parameters(), self.buffers())}
        return copy.deepcopy(self, shared | {id(old): new for old, new in parts.items()})

    @staticmethod
    def count_classes(rows: int) -> int:
        """Classes of a published label table, whose last row is "no condition"; ImageNet's came without it too."""
        return rows if rows == IMAGENET else rows - 1

    def check_input(self, x: Tensor) -> None:
        """Refuse images of another size than the network was made for."""
        expected = (self.channels, *self.size)
        if x.shape[1:] != expected:
            given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], expected))
            raise InputError(f"input of {given} for a network made for {wanted}")

    def labels(self, condition: Condition | Tensor) -> Tensor:
        """The class labels (B,) long of a condition, for families that know classes only.

        Raises:
            InputError: a condition without labels.
        """
        if isinstance(condition, Tensor):
            return condition
        if condition.label is None:
            given = ", ".join(condition.parts()) or "nothing"
            raise InputError(f"a condition with {given} for a class-conditional network; give class labels")
        return condition.label

    def example(self, batch: int) -> tuple[Tensor, Tensor, Condition]:
        """Inputs for a trial call: x, timestep and condition, as many rows as asked for."""
        x = torch.zeros(batch, self.channels, *self.size, device=self.device)
        timestep = torch.full((batch,), 0.5, device=self.device)
        label = torch.full((batch,), self.classes, dtype=torch.long, device=self.device)
        return x, timestep, Condition(label=label)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
