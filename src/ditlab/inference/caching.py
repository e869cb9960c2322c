"""The feature cache of a sampling plan, and what it cannot be combined with."""

from collections.abc import Mapping
from typing import Any

from ditlab.config.values import number, whole
from ditlab.core.errors import InputError
from ditlab.diffusion.guidance import SkipLayers
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.samplers.grids import ScheduleFile
from ditlab.inference.inpaint import Original
from ditlab.inference.optimize.reuse import FeatureCache, Reuse
from ditlab.inference.optimize.reuse_error import ErrorReuse


def with_tuned_reuse(values: Mapping[str, Any], file: ScheduleFile | None) -> dict[str, Any]:
    """Return the settings with the feature caching for which the file of the schedule was tuned, if it was.

    Raises:
        InputError: the settings have other feature caching.
    """
    tuned = None if file is None else file.reuse
    if tuned is None:
        return dict(values)
    for name in ("reuse", "reuse_error"):
        value = values.get(name)
        interval = value.interval if isinstance(value, Reuse) else value
        if value is not None and (name, interval) != ("reuse", tuned):
            raise InputError(
                f"{name} is {interval}, but {values['schedule']} was tuned for reuse {tuned}; leave {name} out, or "
                "give a schedule that was tuned without feature caching, as ditlab tune does without a budget"
            )
    return {**values, "reuse": tuned} if values.get("reuse") is None else dict(values)


def pick_cache(values: Mapping[str, Any], original: Original | None, skip: SkipLayers | None) -> FeatureCache | None:
    """Return the feature cache, if feature caching is used.

    Raises:
        InputError: two forms of feature caching, or other settings with which it does not work.
    """
    reuse, error = values.get("reuse"), values.get("reuse_error")
    if reuse is None and error is None:
        return None
    if reuse is not None and error is not None:
        raise InputError("reuse and reuse_error are two forms of feature caching; leave one of them out")
    if error is not None:
        cache: FeatureCache = ErrorReuse(number(error, "reuse_error"))
    else:
        cache = reuse if isinstance(reuse, FeatureCache) else Reuse(whole(reuse, "reuse"))
    name = next(iter(cache.settings))
    if original is not None and original.resample > 1:
        raise InputError(f"{name} does not work with resample, which repeats steps; leave one of them out")
    if skip is not None:
        raise InputError(f"{name} does not work with skip_layers; leave one of them out")
    return cache


def check_fixed(objective: Objective, original: Original | None, cache: FeatureCache | None) -> None:
    """Check that a model with fixed times starts from noise and computes all its steps.

    Raises:
        InputError: it has images to start from, or feature caching.
    """
    if objective.fixed_times and original is not None:
        raise InputError(
            f"this model cannot start from an image or from given frames, because {objective.fixed_times}, whose few "
            "steps lead from noise to data; generate from noise, or use the model that it was distilled from"
        )
    if objective.fixed_times and cache is not None:
        raise InputError(
            f"{next(iter(cache.settings))} skips work in steps that differ little, and this model has few, because "
            f"{objective.fixed_times}; leave it out"
        )
