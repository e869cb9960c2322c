"""Checks of what guides a model in place of its null condition: another model, or a negative prompt."""

from typing import TYPE_CHECKING

from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline


def check_guide(pipe: "BasePipeline", guide: "BasePipeline | None", negative: str | None) -> None:
    """Check that a model can be guided by another model, or by a negative prompt; None is neither.

    Raises:
        InputError: the models differ in what they generate, guidance is built into one of them, or a second device
            waits for the null condition.
    """
    if guide is not None and pipe.second is not None:
        raise InputError(
            "guide replaces the null condition, which the model evaluates on guidance_device; load it without "
            "guidance_device, or leave the guide out"
        )
    if guide is not None and task(guide) != task(pipe):
        raise InputError("the guide has another size, class count or process; give a weaker model of the same task")
    if guide is not None and guide.objective.built_in is not None:
        raise InputError("the guide has its guidance built in; give a weaker model of the same task without it")
    if pipe.objective.built_in is not None and (guide is not None or negative):
        what = "guide" if guide is not None else "negative_prompt"
        raise InputError(f"this model has its guidance built in, so that {what} has no effect; leave it out")


def task(pipe: "BasePipeline") -> tuple[object, ...]:
    """Return the properties that two models must share for autoguidance."""
    return pipe.shape, pipe.conditioner.config, pipe.objective.process
