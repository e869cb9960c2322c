"""Models that predict the next state of a field from the present one, and do not generate from noise."""

from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.objective import Network, Objective


@dataclass(frozen=True)
class NextState(Objective):
    """A network that receives a state in place of x_t, with the timestep of the data (t = 0), and returns the next one.

    This is how PDE-Transformer (Holzschuh et al., ICML 2025) is trained for simulations that have one continuation.
    """

    def advanced(self, net: Network, x: Tensor, condition: Condition, **tracing: object) -> Tensor:
        """Return the predicted next states (B, C, H, W), float32, of states x in the scale of the network.

        Args:
            net: the network.
            x: states (B, C, H, W).
            condition: B rows.
            tracing: `trace=` in training.
        """
        return self.split(net(x, self.clock(x.new_zeros(len(x)).double().cpu(), x), condition, **tracing), x)[0]

    def denoiser(self, net: Network) -> NoReturn:
        raise InputError(
            "this model predicts the next state of a field and does not generate from noise; roll it out instead, "
            "with ditlab.rollout or the command rollout"
        )
