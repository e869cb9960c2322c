"""What objectives that distil a teacher into a flow map share; see `ditlab.diffusion.flow_map`."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ditlab.config.distill import Distill
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.process import Process, per_image
from ditlab.training.objectives.built_in import BuiltInGuidance, check_no_aids, guidance_range
from ditlab.training.teacher import Teacher

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext


class FlowMapObjective(BuiltInGuidance):
    """Trains a flow map with a teacher; [distill] in the recipe has the settings."""

    parametrization = FlowMap
    distill = (*BuiltInGuidance.distill, "teacher", "steps")
    teacher: Teacher

    @classmethod
    def reading(cls, recipe: Recipe) -> FlowMap:
        plain = super().reading(recipe)
        assert isinstance(plain, FlowMap)
        return replace(plain, steps=cls.counts(recipe.distill))

    @classmethod
    def counts(cls, settings: Distill) -> tuple[int, ...]:
        """The numbers of steps for which the student is trained."""
        return (settings.steps,)

    def setup(self, run: "TrainingContext") -> None:
        super().setup(run)
        check_no_aids(run)
        if run.device.type != "meta":  # a network without weights, whose memory is predicted
            self.teacher = Teacher.of(run)
            check_guidance(self.teacher, self.settings)

    def predict(
        self, run: "TrainingContext", x: Tensor, t: Tensor, s: Tensor, condition: Condition, scale: Tensor
    ) -> Prediction:
        """Predict x0 and eps (B, C, ...) with the student; eps - x0 is its mean velocity from times t (B,) to s (B,).

        Args:
            run: the run.
            x: states (B, C, ...) at times t.
            t, s: times (B,).
            condition, scale: condition and guidance scale of each of the B rows.
        """
        objective = run.pipe.objective
        assert isinstance(objective, FlowMap)
        output = run.network(x, objective.timesteps_at(t, s, scale, x), condition)
        return objective.predict(objective.split(output, x)[0], x, t)

    def error(self, run: "TrainingContext", jump: "Jump") -> Tensor:
        """Compute the squared error (B,) of the student's mean velocity of a jump."""
        x, t, s = jump.x, jump.t, jump.s
        prediction = self.predict(run, x, t, s, jump.condition, jump.scale)
        wanted = mean_velocity(run.pipe.objective.process, x, t, jump.end, s)
        return (prediction.eps - prediction.x0 - wanted).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Jump:
    """Steps of B images that the student learns to take at once."""

    x: Tensor  # (B, C, ...), states at times t
    t: Tensor  # (B,)
    s: Tensor  # (B,), earlier times
    condition: Condition  # B rows
    scale: Tensor  # (B,), guidance scales
    end: Tensor  # (B, C, ...), states at times s


def mean_velocity(process: Process, x: Tensor, t: Tensor, end: Tensor, s: Tensor) -> Tensor:
    """Return the mean velocity, in straight coordinates, that moves x at times t (B,) to `end` at times s."""
    (scale_t, from_), (scale_s, to) = process.straight(t), process.straight(s)
    return (end / per_image(scale_s, x) - x / per_image(scale_t, x)) / per_image(to - from_, x)


def check_guidance(teacher: Teacher, settings: Distill) -> None:
    """Check that a teacher with built-in guidance has the scale of the student, and no interval is asked for.

    Raises:
        InputError: it has another one, or the student has a range or an interval.
    """
    if (fixed := teacher.pipe.objective.built_in) is None:
        return
    if settings.guidance_interval is not None:
        raise InputError(
            "distill.guidance_interval has no effect, because the teacher has guidance built in; remove it"
        )
    if fixed != guidance_range(settings):
        raise InputError(
            f"the teacher has guidance {fixed[0]:g} to {fixed[1]:g} built in; set distill.guidance to the same scale"
        )
