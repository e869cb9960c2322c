"""Further inputs of a network beside the timestep: numbers whose embedding is added to that of the timestep.

A network with n further inputs takes (B, 1 + n) in place of the timestep (B,): the timestep, then the inputs in the
order of `Backbone.inputs`. One MLP, whose last layer is initialized to zero, embeds them all, so that a network that
starts from trained weights computes what it did before. This works for every family that embeds its timestep with a
`TimeEmbedder`.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from ditlab.backbones.base import Backbone
from ditlab.backbones.layers import FREQUENCIES, TimeEmbedder, embedding_mlp, set_to_zero, sinusoids
from ditlab.core.errors import InputError, lookup

INTERVAL, GUIDANCE, SCALE = "interval", "guidance", "scale"
INPUTS = {
    INTERVAL: "time from this evaluation to the next one, 0 to 1 (flow maps)",
    GUIDANCE: "1 / guidance scale, above 0 (guidance that costs no second evaluation)",
    SCALE: "guidance scale, 1 or more (the same, as Flux.1 dev reads it)",
}
"""The further inputs that a network can have, and what they mean."""
RATE = 1000  # inputs of 0 to 1 are embedded like timesteps of 0 to 1000; Flux.1 has this factor for its scale too


class FurtherInputs(nn.Module):
    """Embeds n numbers of about 0 to 1, (B, n), as (B, D): sinusoids of each, then an MLP that starts at zero."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.mlp = embedding_mlp(FREQUENCIES * count, width)
        first, _, last = self.mlp.children()
        nn.init.normal_(first.get_parameter("weight"), std=0.02)
        set_to_zero([last])

    def forward(self, values: Tensor) -> Tensor:
        waves = sinusoids(RATE * values.flatten(), FREQUENCIES).reshape(
            values.shape[0], -1
        )  # len() would fix the batch size of a graph
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))  # (B, D)


def add_inputs(net: Backbone, names: Sequence[str]) -> None:
    """Give a network further inputs; its output does not change before it is trained.

    Args:
        net: the network, changed in place.
        names: names in `INPUTS`.

    Raises:
        InputError: an unknown name, one that is given twice, or a family that embeds its timestep in another way.
    """
    for name in names:
        lookup(INPUTS, name, "further input")
    if len(set(names)) < len(names):
        raise InputError(f"further inputs {', '.join(names)}; give each once")
    if net.frame_times:
        raise InputError(
            f"{type(net).__name__} has a timestep for each frame, so that it cannot take further inputs "
            f"({', '.join(names)}); use another family"
        )
    embedders = [module for module in net.modules() if isinstance(module, TimeEmbedder)]
    if not embedders:
        raise InputError(
            f"{type(net).__name__} does not embed its timestep with a TimeEmbedder, so that it cannot take further "
            f"inputs ({', '.join(names)}); use another family"
        )
    for embedder in embedders:
        embedder.further = FurtherInputs(len(names), embedder.width)
    net.inputs = tuple(names)
