"""The contract of a network: a function of (x, timestep, condition) with a shape, and what general code may ask of it.

A family must define `variants`, `forward` and `tokens`. Everything else has a default that is correct for any network;
a family overrides a member to become faster, or to support a further feature (each docstring says which).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ditlab.backbones.layers import LinearGELU
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

IMAGENET = 1000  # classes


class Modulation(NamedTuple):
    """A layer that computes shift, scale or gate from a conditioning vector alone."""

    layer: nn.Module  # (B, D) -> (B, outputs)
    vector: int  # which of the vectors of `Backbone.conditioning` it reads
    outputs: int


class Embedders(NamedTuple):
    """The layers that turn the timestep (B,) and the class labels (B,) into the terms of conditioning vectors."""

    timestep: Sequence[nn.Module] = ()
    label: Sequence[nn.Module] = ()


class ParameterGroup(NamedTuple):
    """Parameters that the optimizer treats alike."""

    parameters: list[nn.Parameter]
    decay: bool  # whether weight decay acts on them
    muon: bool  # whether Muon may update them; AdamW updates all others


class Backbone(nn.Module, ABC):
    """A denoising network: x (B, *shape), timestep (B,), condition (B rows) -> (B, C or 2 C, *size).

    Args:
        size: (height, width), or (frames, height, width), of the input.
        channels: channels of the input.
        classes: number of classes; 0 is unconditional.
        learn_variance: give the output a second half of channels for the learned reverse variance.
    """

    spatial: int | tuple[int, ...] = 2
    """The numbers of sides that an input may have: 2 is (height, width), 3 is (frames, height, width)."""
    label_tables: tuple[str, ...] = ()
    """Names of the class-embedding tables: one row for each class, and a last one for the null class."""
    heads_out: tuple[str, ...] = ()
    """Names of the output layer's weights and biases, (positions in a patch x out_channels, ...), channels fastest."""
    lora_targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "adaLN_modulation.1")
    """Ends of the names of the layers that low-rank adaptation changes: attention and modulation."""
    decayed: tuple[str, ...] = ()
    """Ends of the names of parameters that weight decay acts on although they are no layer's matrix."""
    changeable: tuple[str, ...] = ()
    """Options that a run may change when it starts from a trained model, because no weight depends on them."""

    marks: tuple[str, ...] = ()
    """Keys by which a published state dict of this family is recognized; of several families the one with most keys."""
    published: Mapping[str, Any] = {}
    """The family's settings in the published code, where there is a choice."""
    graph_batch: int | None = None
    """The largest batch that one exported graph serves; None is any."""
    patch: int = 1
    """Pixels (or latent places) along each side of a token."""
    extras: int = 0
    """Tokens that stand before those of the image."""
    joined: int = 0
    """Tokens that stand after those of the image."""

    config: dict[str, Any]
    """The arguments of `create` that build this network again."""

    def __init__(self, size: tuple[int, ...], channels: int, classes: int, learn_variance: bool) -> None:
        super().__init__()
        self.check_rank(size)
        names = ("frames", "height", "width")[-len(size) :]
        for what, value in (*zip(names, size, strict=True), ("channels", channels)):
            if value < 1:
                raise InputError(f"{what} {value} of the network's input; give 1 or more")
        if classes < 0:
            raise InputError(f"{classes} classes; give 0 for an unconditional model, or more")
        self.size, self.channels, self.classes = size, channels, classes
        self.learn_variance = learn_variance
        self.out_channels = 2 * channels if learn_variance else channels

    @classmethod
    def check_rank(cls, size: Sequence[int]) -> None:
        """Reject an input with a number of sides that this family does not take.

        Raises:
            InputError: such an input.
        """
        ranks = (cls.spatial,) if isinstance(cls.spatial, int) else cls.spatial
        if len(size) not in ranks:
            kinds = {2: "(height, width)", 3: "(frames, height, width)"}
            wanted = " or ".join(kinds.get(rank, f"{rank} sides") for rank in ranks)
            raise InputError(f"size {'x'.join(map(str, size))} for {cls.__name__}; give {wanted}, or another family")

    @classmethod
    @abstractmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Published sizes: the part of the name after the family -> constructor arguments."""

    @abstractmethod
    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """x (B, *shape), timestep (B,) float, condition (B rows) -> (B, out_channels, *size).

        A class-conditional family also takes the labels (B,) long as they are. A family with `repeated` blocks records
        the output of block i as "blocks.i" in the trace; one with `routable` blocks routes the tokens `trace.kept`.
        """

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of the longest sequence that attention processes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) or (channels, frames, height, width)."""
        return (self.channels, *self.size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each side."""
        return tuple(side // self.patch for side in self.size)

    def grid_of(self, tokens: int) -> tuple[int, ...] | None:
        """The grid of image tokens in a self-attention over this many tokens; None if it is no such grid.

        Networks that work at several resolutions have grids of half the sides, a quarter, and so on.
        """
        for step in range(1, min(self.grid) + 1):
            grid = tuple(side // step for side in self.grid)
            whole = all(side % step == 0 for side in self.grid)
            if whole and tokens == self.extras + prod(grid) + self.joined:
                return grid
        return None

    # What makes training and inference faster.

    @property
    def repeated(self) -> list[nn.Module]:
        """The blocks in the order in which they run; they are compiled, sharded and checkpointed one by one."""
        return []

    @property
    def routable(self) -> list[nn.Module]:
        """The blocks that tokens may bypass in training (`trace.kept`); none where the family does not support it."""
        return []

    @property
    def dynamic_depth(self) -> bool:
        """Whether the blocks that an image passes depend on its timestep, which no exported graph can express."""
        return False

    @property
    def matrix_width(self) -> int:
        """Inner dimension of the network's typical large matrix product, for which bfloat16 and float32 are timed."""
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        convolutions = [module.out_channels for module in self.modules() if isinstance(module, _ConvNd)]
        return max((min(each.in_features, each.out_features) for each in linears), default=max(convolutions, default=1))

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        """The vectors (B, D) that the modulations of this network read; none where it has no modulations."""
        return []

    def modulations(self) -> list[Modulation]:
        """The layers whose outputs can be computed for all timesteps and labels before sampling begins.

        A family that lists some must also list its `embedders` and compute `conditioning`; its forward pass must use
        the embedders' outputs for nothing but the vectors that the modulations read.
        """
        return []

    def embedders(self) -> Embedders:
        """The layers that precomputed modulations replace by the number of the row."""
        return Embedders()

    def packable(self) -> list[nn.Module]:
        """The linear layers that other CPU kernels may replace at inference.

        By default these are all but the layers of modulations and embedders. A family that reads the weight of a linear
        layer, instead of calling the layer, must leave that layer out.
        """
        modulations = [each.layer for each in self.modulations()]
        apart = {id(part) for each in (*modulations, *chain(*self.embedders())) for part in each.modules()}
        layers = [module for module in self.modules() if type(module) in (nn.Linear, LinearGELU)]
        return [module for module in layers if id(module) not in apart]

    def fused(self) -> "Backbone":
        """An independent network that computes the same with fewer weights; this one where nothing can be merged."""
        return self

    def inner(self, x: Tensor, *rest: Any) -> Tensor:
        """The part that feature caching skips at some steps (`inference.optimize.reuse`): all but the outer layers."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """Which parameters have weight decay, and which Muon may update.

        Weight decay acts on the matrices of linear, convolution and embedding layers. Muon takes the matrices of linear
        layers in `repeated` blocks that are no part of modulations, embedders or the output layer. Any other parameter,
        such as the A_log (D, N) of a state-space layer, gets neither.
        """
        apart = [*(each.layer for each in self.modulations()), *chain(*self.embedders())]
        excluded = {id(parameter) for module in apart for parameter in module.parameters()}
        excluded |= {id(parameter) for name, parameter in self.named_parameters() if name in self.heads_out}
        hidden = {
            id(module.weight)
            for block in self.repeated
            for module in block.modules()
            if isinstance(module, nn.Linear) and module.weight.requires_grad
        } - excluded
        matrices = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, nn.Linear | _ConvNd | nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim >= 2
        }
        matrices |= {id(value) for name, value in self.named_parameters() if name.endswith(self.decayed or ("\0",))}
        groups = {key: ParameterGroup([], *key) for key in ((True, False), (False, False), (True, True))}
        for parameter in self.parameters():
            groups[id(parameter) in matrices, id(parameter) in hidden].parameters.append(parameter)
        return list(groups.values())

    # Reading and writing published weights.

    @classmethod
    def read_sizes(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments of `create` that follow from a published state dict; those that do not are left out."""
        raise NotImplementedError

    @classmethod
    def read_objective(cls, sizes: dict[str, Any]) -> dict[str, Any]:
        """The objective that published weights of these sizes were trained for, as in `config.json`.

        By default it is DiT's.
        """
        return {"process": {"name": "ddpm"}, "target": "eps"}

    @classmethod
    def from_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under our keys, without a copy; by default the keys are the same."""
        return tensors

    @classmethod
    def to_published(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `from_published`."""
        return tensors

    @staticmethod
    def count_classes(rows: int) -> int:
        """Classes of a published class-embedding table: without the null class, which ImageNet's may not have."""
        return rows if rows == IMAGENET else rows - 1

    # What every network does.

    def with_parts(self, parts: dict[nn.Module, nn.Module]) -> Self:
        """A network with other modules in some places, which shares all other weights with this one."""
        shared = {id(each): each for each in chain(self.parameters(), self.buffers())}
        return copy.deepcopy(self, shared | {id(old): new for old, new in parts.items()})

    def check_input(self, x: Tensor) -> None:
        """Reject an input of another shape than the network was made for."""
        if x.shape[1:] != self.shape:
            given, wanted = ("x".join(map(str, shape)) for shape in (x.shape[1:], self.shape))
            raise InputError(f"input of {given} for a network made for {wanted}")

    def labels(self, condition: Condition | Tensor) -> Tensor:
        """The class labels (B,) long of a condition, for families that only know classes.

        Raises:
            InputError: a condition without labels.
        """
        if isinstance(condition, Tensor):
            return condition
        if condition.label is None:
            given = ", ".join(condition.parts()) or "nothing"
            raise InputError(f"a condition with {given} for a class-conditional network; give class labels")
        return condition.label

    def example(self, batch: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Condition]:
        """Inputs for a trial call, on the network's device.

        Args:
            batch: number of rows.
            generator: on the CPU, for random x and different timesteps and conditions, the null condition first; None
                is x = 0 and the null condition in every row.

        Returns:
            x (B, *shape) float32, timestep (B,) in 0..1, condition (B rows).
        """
        x = torch.zeros(batch, *self.shape, device=self.device)
        timestep = torch.full((batch,), 0.5, device=self.device)
        label = torch.full((batch,), self.classes, dtype=torch.long, device=self.device)
        if generator is not None:
            x = torch.randn(x.shape, generator=generator).to(self.device)
            timestep = torch.linspace(0.1, 0.9, batch, device=self.device)
            label = (torch.arange(batch, device=self.device) - 1) % (self.classes + 1)
        return x, timestep, Condition(label=label)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
