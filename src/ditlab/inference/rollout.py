"""Roll out a model that predicts the next state of a field: each prediction is the input of the next step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Label
from ditlab.core.units import counted
from ditlab.core.values import check_finite
from ditlab.diffusion.next_state import NextState
from ditlab.inference.pipeline import Pipeline


def rollout(pipe: Pipeline, states: Tensor, steps: int, labels: Label | Sequence[Label] = None) -> Tensor:
    """Predict the states that follow each of B states.

    Args:
        pipe: a model that was trained with the objective next-state, or a published PDE-Transformer.
        states: the first states (B, C, H, W), in the numbers of the training data.
        steps: number of states to predict.
        labels: class of all states, or of each; None is the null condition.

    Returns:
        The given and the predicted states (B, steps + 1, C, H, W), float32 on the CPU, in the numbers of the training
        data.

    Raises:
        InputError: the model does not predict states, the states have another shape, or a prediction is not finite.
    """
    if not isinstance(pipe.objective, NextState):
        raise InputError(
            "this model generates images and does not predict the next state of a field; give one that was trained "
            "with the objective next-state"
        )
    net = pipe.net
    if states.ndim != 4 or states.shape[1] != net.channels:
        shape = "x".join(map(str, states.shape))
        raise InputError(f"states of {shape}; give (B, {net.channels}, height, width)")
    if steps < 1:
        raise InputError(f"{steps} steps; give 1 or more")
    net.check_size(tuple(states.shape[-2:]))
    values = pipe.values
    names = [labels] * len(states) if labels is None or isinstance(labels, int | str) else list(labels)  # type: ignore[arg-type]
    if len(names) != len(states):
        raise InputError(f"{counted(len(names), 'label')} for {counted(len(states), 'state')}; give one for each")
    condition = pipe.conditioner.encode(names).to(net.device)
    x, merged = values.normalized(states).to(net.device), net.fused()
    series = [x.cpu()]
    for step in range(steps):
        with torch.no_grad():
            x = pipe.objective.advanced(merged, x, condition)
        check_finite(
            x,
            lambda i, step=step: f"state {step + 1} of trajectory {i} is not finite; predict fewer steps",  # type: ignore[misc]
        )
        series.append(x.cpu())
    flat = values.restored(torch.stack(series, 1).flatten(0, 1))
    return torch.unflatten(flat.float(), 0, (len(states), steps + 1))
