"""Pairs of noise and the teacher's image: the student learns the steps of the teacher's trajectories by regression.

With one step this is the distillation of Luhman & Luhman ("Knowledge Distillation in Iterative Generative Models",
2021). With n steps, a trajectory gives the states between which the student steps. The pairs replace each other during
the run, and the teacher takes more steps for later ones. Pair number i is a function of the seed of the run and i, so
that a resumed run trains on the same pairs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.conditioning import Text
from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.diffusion.flow_map import FlowMap
from ditlab.training.objectives.flow_map import FlowMapObjective, Jump
from ditlab.training.rng import PAIRS, Randomness, RunRandomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

CHUNK = 256  # pairs that are generated at a time
FIRST = 4  # chunks with which a run begins


@dataclass(frozen=True)
class Chunk:
    """Trajectories of the teacher."""

    states: Tensor  # (n + 1, CHUNK, C, ...): noise, states between the steps of the student, images
    condition: Condition  # CHUNK rows
    scale: float  # guidance scale


class Pairs(FlowMapObjective):
    """Trains the steps of `distill.steps` on the teacher's trajectories, without data."""

    distill = (*FlowMapObjective.distill, "teacher_steps", "pool", "uses")
    early = 0.5
    """Share of the pairs, the first ones, for which the teacher takes half of the steps."""

    def setup(self, run: "TrainingContext") -> None:
        super().setup(run)
        self.chunks: dict[int, Chunk] = {}
        conditioner = run.pipe.conditioner
        if run.pipe.conditional and not isinstance(conditioner, Text) and conditioner.all_values() == [None]:
            raise InputError(
                f"train.objective pairs needs classes or captions, and the conditioner "
                f'"{conditioner.config["kind"]}" has neither; use halves'
            )

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        return {"pairs": self.error(run, self.jump(run, randomness, randomness.of_batch()))}

    def jump(self, run: "TrainingContext", randomness: Randomness, generator: torch.Generator) -> Jump:
        """Choose steps of trajectories at random."""
        objective = run.pipe.objective
        assert isinstance(objective, FlowMap)
        random = torch.rand(3, randomness.batch, generator=generator, dtype=torch.float64)
        which, row, step = (randomness.part(values) for values in random)
        window = self.window(run, randomness.seen)
        numbers = [window[int(value * len(window))] for value in which.tolist()]
        rows, steps = (row * CHUNK).long(), (step * self.settings.steps).long()
        chunks = {number: self.chunk(run, number) for number in window}
        picked = [
            (chunks[number].states[k, i], chunks[number].states[k + 1, i])
            for number, i, k in zip(numbers, rows.tolist(), steps.tolist(), strict=True)
        ]
        condition = Condition.cat([chunks[n].condition[i : i + 1] for n, i in zip(numbers, rows.tolist(), strict=True)])
        times = objective.times(self.settings.steps)
        randomness.times = times[steps]
        scale = torch.tensor([chunks[number].scale for number in numbers], dtype=torch.float64)
        start, end = (torch.stack([pair[side] for pair in picked]) for side in (0, 1))
        return Jump(start, times[steps], times[steps + 1], condition, scale, end)

    def window(self, run: "TrainingContext", seen: int) -> list[int]:
        """Numbers of the chunks that are trained on after `seen` images; chunks before them are forgotten."""
        last = FIRST + seen // (self.settings.uses * CHUNK)
        first = max(0, last - max(FIRST, -(-self.settings.pool // CHUNK)))
        for old in [number for number in self.chunks if number < first]:
            del self.chunks[old]
        return list(range(first, last))

    def chunk(self, run: "TrainingContext", number: int) -> Chunk:
        """The trajectories of a chunk, which are generated when they are first used."""
        if number not in self.chunks:
            self.chunks[number] = self.generate(run, number)
        return self.chunks[number]

    def generate(self, run: "TrainingContext", number: int) -> Chunk:
        """Generate the trajectories of a chunk."""
        objective, settings = run.pipe.objective, self.settings
        assert isinstance(objective, FlowMap)
        generator = torch.Generator().manual_seed((run.settings.seed * 1_000_003 + number) % 2**63)
        condition = self.conditions(run, number, generator).to(run.device)
        scale = float(self.scales(torch.rand((), generator=generator, dtype=torch.float64)))
        total = FIRST + run.settings.images // (settings.uses * CHUNK)
        least = settings.teacher_steps / settings.steps  # steps of the teacher for each step of the student
        parts = -(-int(least) // 2) if number < self.early * total else -(-settings.teacher_steps // settings.steps)
        shape = (CHUNK, *run.pipe.shape)
        noise = RunRandomness(run.settings.seed).normal(PAIRS, number * CHUNK, shape).to(run.device)
        times = objective.times(settings.steps)
        return Chunk(self.teacher.states(noise, condition, scale, times, max(1, parts)), condition, scale)

    def conditions(self, run: "TrainingContext", number: int, generator: torch.Generator) -> Condition:
        """The conditions of a chunk: all classes in turn, or captions of the data; some are the null condition."""
        if run.captions is not None:
            texts = run.captions.captions.numbers
            chosen = torch.randint(len(texts), (CHUNK,), generator=generator)
            condition = run.captions.conditions(texts[chosen])
        else:
            values = run.pipe.conditioner.all_values()
            condition = run.pipe.conditioner.encode([values[(number * CHUNK + i) % len(values)] for i in range(CHUNK)])
        dropped = torch.rand(CHUNK, generator=generator) < run.settings.label_dropout
        return run.pipe.conditioner.drop(condition, dropped)
