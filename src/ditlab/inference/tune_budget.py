"""Search the number of steps, the timestep schedule and feature caching together, under a budget for an image.

For each interval of feature caching, the schedule of as many steps as the budget allows is tuned with this caching
(`ditlab.inference.tune`). The errors of all of them refer to the same images of a fine schedule, so that they can be
compared.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.core.progress import progress_bar
from ditlab.core.types import Prediction
from ditlab.inference.base import BasePipeline
from ditlab.inference.optimize.reuse import Reuse
from ditlab.inference.optimize.timing import interleaved, waiter
from ditlab.inference.plan import Plan
from ditlab.inference.prepared import trial_call
from ditlab.inference.tune import Tuned, check_tunable, descend, distance, fine_images, trials

INTERVALS = (None, 2, 3, 4)  # of feature caching; None is without
MOST_STEPS = 250
ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """A tuned schedule with feature caching."""

    steps: int
    reuse: int | None
    cost: float  # of an image, in the unit of the budget
    tuned: Tuned


def search(
    pipe: BasePipeline,
    budget: float,
    unit: str,
    sampler: str,
    images: int,
    console: Console,
    guidance: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
) -> list[Candidate]:
    """Tune a schedule for each interval of feature caching that a budget allows; the best one comes first.

    Args:
        pipe: the model.
        budget: largest cost of an image.
        unit: "ms", milliseconds of the network on this machine in float32; or "evaluations", in which a partial
            evaluation counts as its share of the time of a whole one, measured on this machine.
        sampler, images, console, guidance, guidance_interval: as in `ditlab.inference.tune.tune`.

    Raises:
        InputError: the schedules of the model cannot be tuned, or the budget is too small for two steps.
    """
    check_tunable(pipe, [2], sampler, images)
    pipe = pipe.model.fused()
    options: dict[str, Any] = {"sampler": sampler, "guidance": guidance, "guidance_interval": guidance_interval}
    whole, part = call_costs(pipe, images)
    whole, part = (whole, part) if unit == "ms" else (1.0, part / whole)
    affordable = {}
    for reuse in INTERVALS if type(pipe.net).inner is not Backbone.inner else INTERVALS[:1]:
        for steps in range(2 if reuse is None else reuse + 1, MOST_STEPS + 1):
            count, total = evaluations(pipe.resolve(steps=steps, **options), reuse)
            cost = count * whole + (total - count) * part
            if cost > budget:
                break
            affordable[reuse] = steps, cost
        if not affordable:
            raise InputError(f"the budget is {budget:g} {unit}; give at least {cost:.3g}, the cost of 2 steps")
    fine = fine_images(pipe, images, options)
    found = []
    with progress_bar(console) as progress:
        for reuse, (steps, cost) in affordable.items():
            task = progress.add_task(f"{steps} steps, reuse {reuse or 'off'}", total=trials(steps))
            error = distance(pipe, fine, images, options | {"reuse": reuse}, partial(progress.advance, task))
            found.append(Candidate(steps, reuse, cost, descend(pipe, steps, error)))
    return sorted(found, key=lambda candidate: candidate.tuned.after)


@torch.no_grad()
def call_costs(pipe: BasePipeline, batch: int) -> tuple[float, float]:
    """Milliseconds of a whole and of a partial evaluation for an image, with `batch` images at a time.

    Both are equal for a family without feature caching. On a CPU they are CPU times, which other programs hardly
    change.
    """
    net, call = pipe.net.eval(), trial_call(pipe, batch)
    calls = {"whole": lambda: net(*call)}
    if type(net).inner is not Backbone.inner:
        cached = Reuse(10**9).on(net)  # only its first call is whole
        cached(*call)
        calls["partial"] = lambda: cached(*call)
    clock = time.process_time if net.device.type == "cpu" else time.perf_counter
    seconds = interleaved(calls, ROUNDS, waiter(net.device), clock=clock)
    whole = 1000 * seconds["whole"] / batch
    return whole, 1000 * seconds.get("partial", seconds["whole"]) / batch


def evaluations(plan: Plan, reuse: int | None) -> tuple[int, int]:
    """Numbers of whole evaluations and of all, for an image, counted by running the plan without a network."""
    if reuse is None:
        return plan.evaluations, plan.evaluations
    cache = Reuse(reuse)
    cache.inner = lambda rows: rows

    def denoise(x: Tensor, t: Tensor, s: Tensor) -> Prediction:
        cache(torch.zeros(1 + plan.guides(float(t)), 1))
        return Prediction(x, x, torch.zeros_like(x) if plan.learn_variance else None, guided=plan.guides(float(t)))

    for _ in plan.run(cache.timed(denoise), torch.ones(1, 1, 1, 1), torch.zeros_like):
        pass
    return cache.computed, cache.asked
