"""The command that rolls out models of fields."""

import json as formats
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ditlab.cli.options import Checkpoint
from ditlab.cli.terminal import Json, app, free_folder, print_json, say, show
from ditlab.config.fields import Positive
from ditlab.config.sections import Preparation
from ditlab.config.values import Folder, Location
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant, make_folder, replace_text, replacing

if TYPE_CHECKING:
    from torch import Tensor

    from ditlab.data.trajectories.base import Trajectories
    from ditlab.inference.pipeline import Pipeline

RESULT, STRIP, STATES = "rollout.json", "rollout.png", "states.npy"


@dataclass(frozen=True)
class Rollout:
    """What is predicted."""

    data: Location = ""
    """Trajectories (default: the held-out ones of the training data, otherwise the training data)."""
    steps: Positive | None = None
    """Number of states to predict (default: all)."""
    count: Positive = 40
    """Largest number of trajectories."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


@app.command(group="Evaluate")
def rollout(
    model: Location,
    /,
    *,
    out: Folder | None = None,
    settings: Annotated[Rollout | None, Parameter(name="*")] = None,
    checkpoint: Annotated[Checkpoint | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Predict trajectories of fields from their first states, and compare them with the truth.

    Writes rollout.json (relative L2 error of each step), rollout.png (truth and prediction of the first trajectory),
    and states.npy (N, T, C, H, W): the given first states and the predicted ones.

    Parameters
    ----------
    model
        A model or run folder that was trained with the objective next-state.
    out
        Folder to write; must be empty or new (default: rollout, or the first free one of rollout-2, ...).
    json
        Print one JSON object.
    """
    from ditlab.evaluation.rollouts import RolloutError, rolled_out

    settings, out = settings or Rollout(), out or free_folder(Path("rollout"))
    if not is_vacant(out):
        raise InputError(f"{out} is not empty; give another folder")
    pipe = (checkpoint or Checkpoint()).load(model, device=pick_device(settings.device))
    trajectories, name = opened(pipe, settings.data)
    truth, predicted = rolled_out(pipe, trajectories, settings.count, settings.steps)
    result = RolloutError.of(truth, predicted)
    content = {"model": str(model), "data": name, **result.as_json()}
    write(out, pipe, truth, predicted, content)
    if json:
        print_json(content | {"folder": out})
        return
    show("\n".join(result.lines()))
    say(f"wrote {RESULT}, {STRIP} and {STATES} of {name} to {out}")


def write(out: Path, pipe: "Pipeline", truth: "Tensor", predicted: "Tensor", content: dict[str, Any]) -> None:
    """Write errors, a film strip, and the states (N, T, C, H, W), which are given in the scale of the network."""
    import numpy as np

    from ditlab.report.fields import comparison
    from ditlab.report.sheets import save_sheet

    make_folder(out)
    replace_text(out / RESULT, formats.dumps(content, indent=1) + "\n")
    save_sheet(comparison(truth[0], predicted[0], pipe.values), out / STRIP)
    numbers = pipe.values.restored(predicted.flatten(0, 1)).view(predicted.shape)
    with replacing(out / STATES) as draft, draft.open("wb") as file:
        np.save(file, numbers.numpy())


def opened(pipe: "Pipeline", data: str) -> tuple["Trajectories", str]:
    """Open trajectories, by default those on which a model was not trained; returns their name too.

    Raises:
        InputError: there are no trajectories of this name, or the training data is not known.
    """
    from ditlab.config.reader import parse_recipe
    from ditlab.data import open_dataset, parse_source
    from ditlab.data.trajectories.base import Trajectories

    settings = Preparation(trajectories=True)
    if (recipe := pipe.config.get("recipe")) is not None:
        settings = trained = parse_recipe(recipe, source="the model").data
        if not data:
            held_out = parse_source(trained.source, trained).held_out()
            data = trained.source if held_out is None else held_out.text
            settings = trained if held_out is None else replace(trained, split="")
    if not data:
        raise InputError("the training data of this model is not known; give --data")
    spec = parse_source(data, settings)
    if not spec.resizable:
        settings = replace(settings, trajectories=False)
    trajectories = open_dataset(data, settings)
    if not isinstance(trajectories, Trajectories):
        raise InputError(f"{data} holds no trajectories; give a folder of them, or waves-SIZE")
    return trajectories, data
