"""What U-shaped networks share: levels, each of which has half the grid and twice the width of the one before."""

from typing import cast

from torch import Tensor, nn

from ditlab.backbones.base import Backbone, Embedders, Modulation
from ditlab.backbones.layers import LabelEmbedder, TimestepEmbedder, last_linear
from ditlab.backbones.routing import Level


class LevelCondition(nn.Module):
    """Embeds timestep and label as one vector (B, 1, 1, D) of the width of a level."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.t_embedder, self.y_embedder = TimestepEmbedder(width), LabelEmbedder(classes, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (self.t_embedder(t) + self.y_embedder(y))[:, None, None]  # (B, 1, 1, D)


class LevelNetwork(Backbone):
    """A network with a condition for each level. Blocks and `final_layer` have an `adaLN_modulation`."""

    widths: list[int]
    """Channels of each level."""
    conditions: nn.ModuleList
    """A `LevelCondition` for each level."""
    final_layer: nn.Module

    def levels(self) -> list[Level]:
        """Return the blocks of each level, in execution order."""
        return [module for module in self.modules() if isinstance(module, Level)]

    @property
    def repeated(self) -> list[nn.Module]:
        return [block for blocks in self.levels() for block in blocks]

    @property
    def middle_block(self) -> int:  # type: ignore[override]
        levels = self.levels()
        middle = levels[len(levels) // 2]
        return middle.first + len(middle) - 1

    @property
    def matrix_width(self) -> int:
        return self.widths[0]

    def conditioning(self, timestep: Tensor, label: Tensor) -> list[Tensor]:
        return [condition(timestep, label)[:, 0, 0] for condition in self.conditions]

    def modulations(self) -> list[Modulation]:
        # A block reads the condition vector of its own width.
        vector_of = {width: i for i, width in enumerate(self.widths)}
        layers = [block.get_submodule("adaLN_modulation") for block in (*self.repeated, self.final_layer)]
        linears = [last_linear(layer) for layer in layers]
        return [
            Modulation(layer, vector_of[linear.in_features], linear.out_features)
            for layer, linear in zip(layers, linears, strict=True)
        ]

    def embedders(self) -> Embedders:
        levels = [cast(LevelCondition, level) for level in self.conditions]
        return Embedders([level.t_embedder for level in levels], [level.y_embedder for level in levels])
