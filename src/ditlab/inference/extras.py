"""The network with which a sampling plan runs, what it adds to guidance, its condition, and guidance on two devices."""

from typing import TYPE_CHECKING

import torch

from ditlab.backbones import Backbone
from ditlab.backbones.routing import without_blocks
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.guidance import Elsewhere, Further, Rescale, plain
from ditlab.diffusion.objective import Objective
from ditlab.inference.memory import RowLimit, Splitting
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.plan import Plan

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline


def further_guidance(plan: Plan, objective: Objective, net: Backbone, condition: Condition, limit: RowLimit) -> Further:
    """Return what the plan adds to guidance.

    Args:
        plan: the sampling plan.
        objective: the objective of the model.
        net: the network with which it samples.
        condition: B rows.
        limit: number of rows that fit into memory.
    """
    share, without = plan.options.guidance_rescale, None
    if plan.skip is not None:
        weaker = objective.denoiser(Splitting(without_blocks(net, plan.skip.layers), limit))
        without = plain(weaker, condition)
    return Further(plan.skip, without, Rescale(objective, share) if share else None)


@torch.no_grad()
def encoded(net: Backbone, condition: Condition) -> Condition:
    """Compute what depends on a condition alone, once for all steps of sampling."""
    return net.encoded(condition)


def other_half(second: "BasePipeline | None", plan: Plan, condition: Condition, limit: RowLimit) -> Elsewhere | None:
    """Return the model on a second device, which evaluates the null condition; None if there is no second device.

    Raises:
        InputError: feature caching, whose features are those of one network.
    """
    if second is None:
        return None
    if plan.cache is not None:
        (name, value), *_ = plan.cache.settings.items()
        raise InputError(
            f"{name} is {value}, which does not work with guidance on two devices; leave out {name}, or guidance_device"
        )
    return Elsewhere(second.objective.denoiser(Splitting(inference_net(second, plan, condition), limit)), second.device)


def encoded_pair(net: Backbone, condition: Condition, null: Condition, scale: float) -> tuple[Condition, Condition]:
    """Compute what depends on a condition and on its null condition alone, in one call where guidance has both."""
    if scale == 1:
        return encoded(net, condition), encoded(net, null)
    both = encoded(net, condition.joined(null))
    return both[: len(condition)], both[len(condition) :]


def inference_net(pipe: "BasePipeline", plan: Plan, condition: Condition) -> Backbone:
    """Return the network with merged layers, and adaLN modulation precomputed for these times and labels."""
    net = pipe.net.fused()
    conditions = (condition, condition.other, pipe.null(1))
    labels = [rows.label.to(pipe.device) for rows in conditions if rows and rows.label is not None]
    # Compiled blocks compute their modulation themselves, and given frames have another one in the same call.
    if is_compiled(net) or not labels or condition.given is not None:
        return net
    following = torch.cat([plan.times[1:], plan.times[-1:]])
    clock = pipe.objective.at_guidance(plan.guidance).timesteps(plan.times, following, plan.times)
    return tabulated(net, clock, torch.cat(labels))
