"""The settings of distillation: how training objectives use a trained model, the teacher."""

from dataclasses import dataclass

from ditlab.config.fields import setting
from ditlab.config.values import Located, Location, Whole


@dataclass(frozen=True)
class Distill(Located):
    """What the objectives halves and pairs learn from a teacher; other objectives ignore it."""

    teacher: Location = setting("", resume="ask")
    """The teacher: a model folder, run folder, file or hub id (default: train.init_from)."""
    steps: Whole = setting(1, at_least=1)
    """Number of sampler steps of the student, each with one function evaluation."""
    guidance: tuple[float, ...] = (1.0,)
    """Guidance scale that is built into the student; two numbers are a range, whose scale stays free at sampling."""
    teacher_steps: Whole = setting(12, resume="ask", at_least=1)
    """With objective pairs: steps in which the teacher generates an image, for the first half of the pairs half of it.
    """
    pool: Whole = setting(4096, resume="ask", at_least=1)
    """With objective pairs: pairs of noise and image that are trained on at a time."""
    uses: Whole = setting(8, resume="ask", at_least=1)
    """With objective pairs: how often each pair is trained on, before a new one takes its place."""
