"""The interface of networks, `Backbone`.

A family must define `variants`, `forward` and `tokens`. All other members have defaults that are correct for any
network. A family overrides them to become faster or to support a feature, which the docstring of the member names.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ditlab.backbones.layers import LinearGELU
from ditlab.backbones.published import IMAGENET, PublishedForm
from ditlab.backbones.text import TextEmbedder, TextShape
from ditlab.backbones.token_share import TokenSharing
from ditlab.core.errors import InputError
from ditlab.core.modules import with_modules
from ditlab.core.types import Condition, Trace


class Modulation(NamedTuple):
    """A layer that computes shift, scale or gate from a conditioning vector and nothing else."""

    layer: nn.Module  # (B, D) -> (B, outputs)
    vector: int  # index of its input among the vectors of `Backbone.conditioning`
    outputs: int  # number of values that it computes


class Embedders(NamedTuple):
    """The layers that embed the timestep (B,) and the class labels (B,) as conditioning vectors."""

    timestep: Sequence[nn.Module] = ()
    label: Sequence[nn.Module] = ()


class ParameterGroup(NamedTuple):
    """Parameters with the same treatment by the optimizer."""

    parameters: list[nn.Parameter]
    decay: bool  # whether weight decay applies to them
    muon: bool  # whether Muon may update them; AdamW updates all others


class Backbone(PublishedForm, TokenSharing, nn.Module, ABC):
    """A denoising network: x (B, *shape), timestep (B,), condition (B rows) -> (B, C or 2 C, *size).

    Args:
        size: (height, width), or (frames, height, width), of the input.
        channels: channels of the input.
        classes: number of classes; 0 is unconditional.
        learn_variance: double the output channels; the second half is the learned reverse variance.
    """

    spatial: int | tuple[int, ...] = 2
    """Supported numbers of input dimensions: 2 is (height, width), 3 is (frames, height, width)."""
    label_tables: tuple[str, ...] = ()
    """Names of the class-embedding tables (classes + 1, D); the last row is the null class."""
    heads_out: tuple[str, ...] = ()
    """Names of the output layer's weights and biases, (positions in a patch x out_channels, ...), channels fastest."""
    lora_targets: tuple[str, ...] = ("attn.qkv", "attn.proj", "adaLN_modulation.1")
    """Suffixes of the names of layers that low-rank adaptation changes: attention and modulation."""
    muon_kernels: bool = False
    """Whether Muon may also update the convolution kernels in `repeated` blocks."""
    not_muon: tuple[str, ...] = ()
    """Suffixes of the names of matrices in `repeated` blocks that Muon must not update."""
    decayed: tuple[str, ...] = ()
    """Suffixes of the names of parameters that have weight decay although they are not the matrix of a layer."""
    fused_kernels: bool = False
    """Whether layers whose weights are made at inference use packed CPU kernels (`inference.optimize.packing`)."""
    quantized: str = ""
    """Precision of the quantized layers (`inference.optimize.quantized`): "int8" or "float8"; empty without any."""
    changeable: tuple[str, ...] = ()
    """Options that a run may change when it starts from a trained model, because no weight depends on them."""

    defaults: Mapping[str, Any] = {"size": 32, "channels": 4, "classes": IMAGENET, "learn_variance": True}
    """Shape of input and output if `create` is called without it."""
    frame_times: bool = False
    """Whether the timestep may be (B, T), with one for each frame of a clip, which given frames need."""
    graph_batch: int | None = None
    """Largest batch size of an exported graph; None is no limit."""
    patch: int = 1
    """Side of a token in pixels (or latent positions)."""
    extras: int = 0
    """Number of extra tokens before the image tokens."""
    joined: int = 0
    """Number of extra tokens after the image tokens."""
    exits: Sequence[float] = ()
    """Early exit: shares of the blocks that run, for equal intervals of the timestep from data to noise."""
    middle_block: int | None = None
    """Number of the last block of the middle of a U-shaped network; None for other networks."""
    channels_first: bool = False
    """Whether blocks pass on grids (B, D, h, w), instead of tokens (B, N, D) or grids (B, h, w, D)."""
    gates: int = 0
    """Number of random decisions for each image in training, which take `Trace.noise`; 0 for networks that are not
    dynamic. A dynamic network records the share of `dynamic_macs` that it computes as "compute" in a trace."""
    dynamic_macs: int = 0
    """Multiply-accumulates for one image of which a dynamic network computes a part."""
    budget: float = 1.0
    """The share of `dynamic_macs` that a dynamic network is trained to compute on average."""
    inputs: tuple[str, ...] = ()
    """Further inputs beside the timestep, see `ditlab.backbones.inputs`. With n of them, `forward` takes (B, 1 + n) in
    place of the timestep (B,)."""
    text: TextShape = TextShape(0)
    """The text condition that the network reads; length 0 is none."""

    config: dict[str, Any]
    """The arguments of `create` that build this network."""

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
        """Check that this family supports inputs with this number of dimensions.

        Raises:
            InputError: it does not.
        """
        ranks = (cls.spatial,) if isinstance(cls.spatial, int) else cls.spatial
        if len(size) not in ranks:
            forms = {2: "(height, width)", 3: "(frames, height, width)"}
            supported = " or ".join(forms.get(rank, f"{rank} sides") for rank in ranks)
            raise InputError(f"size {'x'.join(map(str, size))} for {cls.__name__}; give {supported}, or another family")

    @classmethod
    @abstractmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Published sizes: suffix of the name ("XL/2") -> constructor arguments."""

    @abstractmethod
    def forward(
        self, x: Tensor, timestep: Tensor, condition: Condition | Tensor, *, trace: Trace | None = None
    ) -> Tensor:
        """Compute the output (B, out_channels, *size).

        A family with `repeated` blocks records the output of block i as "blocks.i" in the trace. A family with
        `routable` blocks passes only the tokens `trace.kept`, to which all tokens belong that are not of the image,
        through them.

        Args:
            x: noisy input (B, *shape).
            timestep: timestep input (B,) float; also (B, T) with `frame_times`.
            condition: B rows; class-conditional families also accept labels (B,) long.
            trace: records intermediate values, for training aids.
        """

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Length of the longest token sequence that attention processes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (channels, height, width) or (channels, frames, height, width)."""
        return (self.channels, *self.size)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of patches along each dimension of the input."""
        return tuple(side // self.patch for side in self.size)

    def grid_of(self, tokens: int) -> tuple[int, ...] | None:
        """Return the grid of the image tokens in a self-attention over `tokens` tokens; None if no grid has this size.

        Networks with several resolutions have grids of half the sides, a quarter, and so on.
        """
        for step in range(1, min(self.grid) + 1):
            grid = tuple(side // step for side in self.grid)
            divisible = all(side % step == 0 for side in self.grid)
            if divisible and tokens == self.extras + prod(grid) + self.joined:
                return grid
        return None

    # Faster training and inference.

    @property
    def repeated(self) -> list[nn.Module]:
        """The blocks in execution order. They are compiled, sharded and checkpointed separately."""
        return []

    @property
    def routable(self) -> list[nn.Module]:
        """The blocks that tokens may bypass in training (`trace.kept`); none if the family does not support routing."""
        return []

    @property
    def dynamic_depth(self) -> bool:
        """Whether the number of blocks depends on the timestep, which an exported graph cannot express."""
        return bool(self.exits)

    @property
    def matrix_width(self) -> int:
        """Inner dimension of a typical large matrix product of the network, used to compare bfloat16 with float32."""
        linears = [m for m in self.modules() if isinstance(m, nn.Linear)]
        convolutions = [m.out_channels for m in self.modules() if isinstance(m, _ConvNd)]
        return max((min(m.in_features, m.out_features) for m in linears), default=max(convolutions, default=1))

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        """Compute the inputs (B, D) of the modulations; none if the network has no modulations."""
        return []

    def modulations(self) -> list[Modulation]:
        """The layers whose outputs can be computed for all timesteps and labels before sampling begins.

        A family that overrides this must also override `embedders` and `conditioning`. Its forward pass must use the
        outputs of the embedders only for the inputs of the modulations.
        """
        return []

    def embedders(self) -> Embedders:
        """The layers that are replaced by row indices if the modulations are precomputed."""
        return Embedders()

    def packable(self) -> list[nn.Module]:
        """The linear layers that may be computed by packed CPU kernels at inference.

        By default these are all linear layers except those of modulations and embedders. A family that reads the weight
        of a linear layer, instead of calling the layer, must exclude it.
        """
        excluded = {id(part) for module in self._conditioning_layers() for part in module.modules()}
        layers = [module for module in self.modules() if type(module) in (nn.Linear, LinearGELU)]
        return [module for module in layers if id(module) not in excluded]

    def _conditioning_layers(self) -> list[nn.Module]:
        return [*(modulation.layer for modulation in self.modulations()), *chain(*self.embedders())]

    def fused(self) -> "Backbone":
        """Return an independent network with merged layers and the same outputs; this one if nothing can be merged."""
        return self

    def encoded(self, condition: Condition) -> Condition:
        """Compute what depends on the condition alone, once for all steps of sampling; by default the embedded text."""
        embedder = next((module for module in self.modules() if isinstance(module, TextEmbedder)), None)
        return condition if embedder is None else embedder.encoded(condition)

    def inner(self, x: Tensor, *context: Any) -> Tensor:
        """The layers that feature caching skips in some steps (`inference.optimize.reuse`): all but the outer ones."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """Group the parameters by whether they have weight decay, and whether Muon may update them.

        Weight decay applies to the matrices of linear, convolution and embedding layers. Muon may update the matrices
        of linear layers in `repeated` blocks (and kernels, see `muon_kernels`), except those of modulations, embedders
        and the output layer, and `not_muon`. Neither applies to other parameters, such as the A_log (D, N) of a
        state-space layer.
        """
        excluded = {id(parameter) for module in self._conditioning_layers() for parameter in module.parameters()}
        excluded |= {id(parameter) for name, parameter in self.named_parameters() if name in self.heads_out}
        excluded |= {id(value) for name, value in self.named_parameters() if name.endswith(self.not_muon or ("\0",))}
        kinds = (nn.Linear, _ConvNd) if self.muon_kernels else nn.Linear
        hidden = {
            id(module.weight)
            for block in self.repeated
            for module in block.modules()
            if isinstance(module, kinds) and module.weight.requires_grad
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

    starts_from: tuple[str, ...] = ()
    """Other families whose trained weights this family takes over, see `options_from`, `weights_of` and `adopt`."""

    @classmethod
    def options_from(cls, source: "Backbone", options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that a network needs to start from the weights of one of another family.

        Args:
            source: the network to start from.
            options: the options that the recipe sets, by the name of a size or each by itself.

        Raises:
            InputError: it cannot start from this network.
        """
        return {}

    def weights_of(self, source: "Backbone") -> dict[str, Tensor]:
        """Return the weights of a network of another family with the names and shapes of this one."""
        return source.state_dict()

    def adopt(self, source: "Backbone") -> dict[str, str]:
        """Set weights that follow from those of a network of another family, after equal weights have been copied.

        Returns:
            The names of these weights, each with a description.
        """
        return {}

    # The same for every network.

    def with_parts(self, parts: dict[nn.Module, nn.Module]) -> Self:
        """Return a network with some modules replaced, which shares all other weights with this one."""
        return with_modules(self, parts, shared=chain(self.parameters(), self.buffers()))

    def labels(self, condition: Condition | Tensor) -> Tensor:
        """Return the class labels (B,) long of a condition, for families that are class-conditional only.

        Raises:
            InputError: the condition has no labels.
        """
        if isinstance(condition, Tensor):
            return condition
        if condition.label is None and self.text:
            raise InputError(f"{type(self).__name__} reads text; this is possible only for networks with class labels")
        if condition.label is None:
            fields = ", ".join(condition.parts()) or "nothing"
            raise InputError(f"a condition with {fields} for a class-conditional network; give class labels")
        return condition.label

    def texts(self, condition: Condition | Tensor) -> Condition:
        """Return the condition of a family that reads text.

        Raises:
            InputError: class labels instead.
        """
        if isinstance(condition, Tensor):
            raise InputError("a condition with labels for a network that reads text; give tokens")
        return condition

    def example(
        self, batch: int, generator: torch.Generator | None = None, size: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor, Condition]:
        """Make inputs for a trial call, on the network's device.

        Args:
            batch: number of rows.
            generator: CPU generator for random x; timesteps and conditions then differ, starting with the null
                condition. None is x = 0 and the null condition in every row.
            size: size of x; empty is the size of the network.

        Returns:
            x (B, C, *size) float32, timestep (B,) in 0..1, or (B, 1 + n) with n further inputs, condition (B rows).
        """
        x = torch.zeros(batch, self.channels, *(size or self.size), device=self.device)
        timestep = torch.full((batch,), 0.5, device=self.device)
        label = torch.full((batch,), self.classes, dtype=torch.long, device=self.device)
        if generator is not None:
            x = torch.randn(x.shape, generator=generator).to(self.device)
            timestep = torch.linspace(0.1, 0.9, batch, device=self.device)
            label = (torch.arange(batch, device=self.device) - 1) % (self.classes + 1)
        if self.inputs:
            timestep = torch.cat([timestep[:, None], timestep.new_full((batch, len(self.inputs)), 0.5)], dim=1)
        if self.text:
            return x, timestep, self.text.example(batch, self.device, generator)
        return x, timestep, Condition(label=label)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype

    @property
    def precision(self) -> str:
        """Name of the precision of the products of the network: that of its weights, or "int8" or "float8"."""
        return self.quantized or str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device
