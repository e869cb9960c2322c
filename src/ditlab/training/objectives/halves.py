"""A flow map by halves: one step of the student equals two steps of half its length.

This is the form of shortcut models (Frans et al., "One Step Diffusion via Shortcut Models", 2024) with a teacher, which
gives the shortest steps and has guidance, so that guidance does not compound over the levels. It needs no derivative of
the network, and therefore works with every attention kernel, with compiled blocks and with sharding.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.config.distill import Distill
from ditlab.core.types import Batch, Condition
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.samplers.flow_map import moved
from ditlab.training.objectives.flow_map import FlowMapObjective, Jump
from ditlab.training.rng import EPS, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

FINEST = 8  # least number of steps of the level that the teacher gives


class Halves(FlowMapObjective):
    """Trains steps of lengths 1/n, 1/2n, ... up to 1/8 or less, where n is `distill.steps`, on noisy data."""

    @classmethod
    def counts(cls, settings: Distill) -> tuple[int, ...]:
        counts = [settings.steps]
        while counts[-1] < FINEST:
            counts.append(2 * counts[-1])
        return tuple(counts)

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        objective, generator = run.pipe.objective, randomness.of_batch()
        assert isinstance(objective, FlowMap)
        x0 = run.latents(batch, randomness)
        condition = run.condition(batch, randomness, generator)
        random = torch.rand(3, randomness.batch, generator=generator, dtype=torch.float64)
        level, place, scale = (randomness.part(values) for values in random)
        counts = torch.tensor(objective.steps)[(level * len(objective.steps)).long()]  # (B,) steps of each row's level
        t, s = interval(objective, counts, (place * counts).long())
        randomness.times = t
        scale = self.scales(scale)
        x = objective.process.add_noise(x0, randomness.noise(EPS)(x0), t)
        end = self.two_halves(run, x, t, s, condition, scale, counts == max(objective.steps))
        return {"halves": self.error(run, Jump(x, t, s, condition, scale, end))}

    @torch.no_grad()
    def two_halves(
        self,
        run: "TrainingContext",
        x: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Condition,
        scale: Tensor,
        finest: Tensor,
    ) -> Tensor:
        """Move x (B, C, ...) from times t to s: with the teacher where `finest` (B,) is true, else with the student.

        The teacher takes one step of the midpoint method. The student with averaged weights takes two steps.
        """
        objective, end, middle = run.pipe.objective, torch.empty_like(x), (t + s) / 2
        assert isinstance(objective, FlowMap)
        process, net = objective.process, run.net if run.ema is None else run.ema.net

        def jump(x: Tensor, t: Tensor, s: Tensor, rows: Tensor) -> Tensor:
            output = net(x, objective.timesteps_at(t, s, scale[rows], x), condition[rows.to(x.device)])
            return moved(process, x, t, s, objective.predict(objective.split(output, x)[0], x, t))

        if len(objective.steps) > 1:
            rows = (~finest).nonzero()[:, 0]
            rows = rows if len(rows) else torch.arange(1)  # with sharding, all processes must call the network
            half = jump(x[rows.to(x.device)], t[rows], middle[rows], rows)
            end[rows.to(x.device)] = jump(half, middle[rows], s[rows], rows)
        if len(rows := finest.nonzero()[:, 0]):
            here = rows.to(x.device)
            start, rows_of = x[here], condition[here]
            first = self.teacher.predict(start, t[rows], rows_of, scale[rows])
            half = moved(process, start, t[rows], middle[rows], first)
            second = self.teacher.predict(half, middle[rows], rows_of, scale[rows])
            end[here] = moved(process, start, t[rows], s[rows], second)
        return end


def interval(objective: FlowMap, counts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the times t and s (B,) of step number `places` (B,) in the schedules of `counts` (B,) steps."""
    grids = {count: objective.times(count) for count in objective.steps}
    pairs = [(grids[count][i], grids[count][i + 1]) for count, i in zip(counts.tolist(), places.tolist(), strict=True)]
    return torch.stack([t for t, _ in pairs]), torch.stack([s for _, s in pairs])
