"""The settings of built-in guidance, and of distillation, in which training objectives use a teacher."""

from dataclasses import dataclass

from ditlab.config.fields import setting
from ditlab.config.sampling import Interval
from ditlab.config.values import Located, Location, Whole


@dataclass(frozen=True)
class Distill(Located):
    """Guidance of the objectives guided and mean-flow, and what halves, pairs and correction learn from a teacher."""

    teacher: Location = setting("", resume="ask")
    """The teacher: a model folder, run folder, file or hub id (default: train.init_from)."""
    steps: Whole = setting(1, at_least=1)
    """Number of sampler steps of the student, each with one function evaluation."""
    guidance: tuple[float, ...] = setting((1.0,), between=(0.01, 1000))
    """Guidance scale that is built into the model; two numbers are a range, in which it stays free at sampling."""
    guidance_interval: Interval = setting(None, up_to=1)
    """Times between which guidance acts, 0 is data and 1 is noise (default: those of the teacher)."""
    teacher_steps: Whole = setting(12, resume="ask", at_least=1)
    """With pairs and correction: steps in which the teacher generates an image; pairs begins with half of it."""
    pool: Whole = setting(4096, resume="ask", at_least=1)
    """With pairs and correction: pairs of noise and image that are trained on at a time."""
    uses: Whole = setting(8, resume="ask", at_least=1)
    """With pairs and correction: how often each pair is trained on, before a new one takes its place."""
