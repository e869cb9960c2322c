"""Keep parts of a run in the memory of the host instead of the GPU: the moments of the optimizer, and activations.

The average (`ditlab.training.ema`) can be kept there too. All of it is exact; it costs the time of the transfers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from ditlab.backbones import Backbone

Group = dict[str, Any]


class HostOptimizer:
    """An optimizer whose parameters are copies on the CPU, so that its moments and its work are there too.

    A step moves gradients to the CPU and the new weights back.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []  # copy, parameter
        for group in optimizer.param_groups:
            self._move(group)

    def _move(self, group: Group) -> None:
        parameters = list(group["params"])
        group["params"] = [nn.Parameter(value.detach().to("cpu", copy=True)) for value in parameters]
        self.pairs += zip(group["params"], parameters, strict=True)

    @property
    def param_groups(self) -> list[Group]:
        """The parameter groups, with the copies."""
        return self.optimizer.param_groups

    def add_param_group(self, group: Group) -> None:
        """Add a parameter group."""
        self.optimizer.add_param_group(group)
        self._move(self.optimizer.param_groups[-1])

    @torch.no_grad()
    def step(self) -> None:
        """Take a step on the CPU, and copy the new weights to the parameters."""
        trained = [(copy, parameter) for copy, parameter in self.pairs if parameter.grad is not None]
        for copy, parameter in trained:
            assert parameter.grad is not None
            copy.grad = parameter.grad.to("cpu")
        self.optimizer.step()
        for copy, parameter in trained:
            parameter.copy_(copy)

    def zero_grad(self) -> None:
        """Clear the gradients of all parameters."""
        for copy, parameter in self.pairs:
            copy.grad = parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer, as without offloading."""
        return self.optimizer.state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state, and copy the parameters, which have been restored before."""
        self.optimizer.load_state_dict(state)
        for copy, parameter in self.pairs:
            copy.copy_(parameter)


def offload_activations(net: Backbone) -> None:
    """Keep what the blocks save for the backward pass in the memory of the host."""
    for block in net.repeated:
        block.forward = saved_on_host(block.forward, pinned=net.device.type == "cuda")


def saved_on_host(forward: Callable[..., Tensor], *, pinned: bool) -> Callable[..., Tensor]:
    """Wrap a forward pass so that the tensors that it saves lie in the memory of the host until they are needed."""

    def offloaded(*inputs: Any) -> Tensor:
        with save_on_cpu(pin_memory=pinned):
            return forward(*inputs)

    return offloaded
