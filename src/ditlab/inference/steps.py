"""Run the steps of a sampler."""

import inspect
from collections.abc import Callable, Iterator

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


def check_callback(callback: Callable[[Step], None] | None) -> None:
    """Check that a callback can be called with one argument, a `Step`; None is no callback.

    Raises:
        InputError: it cannot, such as one with the four arguments of diffusers.
    """
    if callback is None:
        return
    if not callable(callback):
        raise InputError(f"callback_on_step_end is a {type(callback).__name__}; give a function of a Step")
    try:
        inspect.signature(callback).bind(None)
    except TypeError as error:
        raise InputError(
            "callback_on_step_end is called with one argument, a Step with i, t, x and x0, which your function does "
            f"not accept ({error}); give a function of a Step"
        ) from None
    except ValueError:  # a function of C without a signature
        return
