"""Skip-layer guidance and rescaling of a sampling plan, and its condition, for one network."""

import torch

from ditlab.backbones import Backbone
from ditlab.backbones.routing import without_blocks
from ditlab.core.types import Condition
from ditlab.diffusion.guidance import Further, Rescale, plain
from ditlab.diffusion.objective import Objective
from ditlab.inference.memory import RowLimit, Splitting
from ditlab.inference.plan import Plan


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


def encoded_pair(net: Backbone, condition: Condition, null: Condition, scale: float) -> tuple[Condition, Condition]:
    """Compute what depends on a condition and on its null condition alone, in one call where guidance has both."""
    if scale == 1:
        return encoded(net, condition), encoded(net, null)
    both = encoded(net, condition.joined(null))
    return both[: len(condition)], both[len(condition) :]
