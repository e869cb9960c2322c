"""Run the steps of a sampler."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.core.types import Step


def evaluated(net: Backbone, steps: Iterator[Step], x: Tensor, sampler: str | None) -> Iterator[Step]:
    """Compute the steps in evaluation mode and without gradients; the mode of the network is restored at the end.

    Raises:
        InputError: a sampler that yields no steps, or none of the shape of x.
    """
    was_training, count = net.training, 0
    net.eval()
    try:
        while True:
            with torch.no_grad():  # not around the yield, because it would also affect the caller's code
                step = next(steps, None) if isinstance(steps, Iterator) else steps
            if step is None and count:
                return
            if not isinstance(step, Step) or step.x.shape != x.shape:
                raise InputError(f'the sampler "{sampler}" must yield at least one Step, with x of {tuple(x.shape)}')
            count += 1
            yield step
    finally:
        net.train(was_training)
