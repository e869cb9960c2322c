"""The registry of parametrizations, and how recipes and saved models describe an objective."""

from dataclasses import asdict, replace
from typing import Any

from ditlab.config.sections import Diffusion
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry
from ditlab.diffusion.flow_map import FlowMap, GuidanceInput, Guided
from ditlab.diffusion.next_state import NextState
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import make_process, process_name, process_options

PARAMETRIZATIONS: Registry[type[Objective]] = Registry(
    "parametrization",
    {
        "regression": Objective,
        "guided": Guided,
        "guidance-input": GuidanceInput,
        "flow-map": FlowMap,
        "next-state": NextState,
    },
    base=Objective,
)
"""How the output of a network is read; the name is saved with the model."""


def completed(settings: Diffusion, source: Objective | None = None) -> Diffusion:
    """Fill in the settings that a recipe leaves out.

    Args:
        settings: the settings of a recipe.
        source: objective of the model that training starts from. If the settings name neither process nor target, both
            are copied from it, with the options of the process and the learned variance.

    Raises:
        InputError: an unknown name, or an unknown option of the process.
    """
    if source is not None and follows_source(settings):
        process, target, learned = source.process, source.target, source.learn_variance
    else:
        process = make_process(settings.process or "linear", settings.process_options)
        target, learned = settings.target or "velocity", False
    return replace(
        settings,
        process=process_name(process),
        process_options=process_options(process),
        target=target,
        learn_variance=learned if settings.learn_variance is None else settings.learn_variance,
    )


def follows_source(settings: Diffusion) -> bool:
    """Whether process and target are those of the model that training starts from."""
    return settings.process is None and settings.target is None and not settings.process_options


def make_objective(settings: Diffusion, kind: type[Objective] = Objective) -> Objective:
    """Build the objective of a recipe.

    Args:
        settings: of the recipe.
        kind: the parametrization of the training objective.

    Raises:
        InputError: an unknown name, an unknown option of the process, or a parametrization that is not registered.
    """
    if kind not in PARAMETRIZATIONS.values():  # a saved model could not name it
        raise InputError(f"{kind.__name__} is not registered; give it to ditlab.register_parametrization first")
    options = dict(vars(completed(settings)))
    return kind(make_process(options.pop("process"), options.pop("process_options")), **options)


def read_objective(description: dict[str, Any]) -> Objective:
    """Build the objective that a `config.json` describes.

    Raises:
        InputError: a parametrization or process that is not registered.
    """
    options = dict(description)
    kind = PARAMETRIZATIONS.find(options.pop("parametrization", "regression"))
    process = dict(options.pop("process"))
    return kind(make_process(process.pop("name"), process), **options)


def describe_objective(objective: Objective) -> dict[str, Any]:
    """What `config.json` says of an objective; the inverse of `read_objective`."""
    process = {"name": process_name(objective.process), **asdict(objective.process)}  # type: ignore[call-overload]
    name = next(name for name, kind in PARAMETRIZATIONS.items() if kind is type(objective))
    return asdict(objective) | {"process": process} | ({} if name == "regression" else {"parametrization": name})
