"""The command that scores how well a model follows prompts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ditlab.cli.terminal import Json, app, print_json, screen, show
from ditlab.config.evaluation import CheckpointOptions
from ditlab.config.fields import Natural, Positive
from ditlab.config.sampling import SamplingOptions
from ditlab.config.values import Location
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.evaluation.prompts import PromptScore


@dataclass(frozen=True)
class Prompting(SamplingOptions, CheckpointOptions):
    """The model and its sampling settings."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""


@app.command(group="Evaluate", name="score-prompts")
def score_prompts(
    model: Location,
    /,
    *,
    data: Location = "",
    count: Positive = 200,
    seed: Natural = 0,
    batch_size: Positive = 50,
    clip: Location = "",
    settings: Annotated[Prompting | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score how well a model follows prompts, for pairs seen in training and for pairs never seen together.

    The truth of the images must be known: it is for emoji-captions-SIZE, emoji-captions-all-SIZE and
    colored-shapes-SIZE. Shares have Wilson's intervals of 95 %.

    Parameters
    ----------
    model
        A model or run folder, or a hub id.
    data
        The data set that the model was trained on (default: that of its recipe).
    count
        Number of prompts of each set.
    seed
        Chooses the prompts.
    batch_size
        Images generated at a time; does not change the images.
    clip
        Folder or hub id of a CLIP, for a CLIP score beside the shares (needs the extra text).
    json
        Print one JSON object.
    """
    score = scored(model, data, clip, settings or Prompting(), count=count, seed=seed, batch_size=batch_size)
    if json:
        print_json(score.as_json())
        return
    for line in score.lines():
        show(line)


def scored(model: str, data: str, clip: str, settings: Prompting, **options: int) -> "PromptScore":
    """Load a model and score it."""
    from ditlab.evaluation.clip_score import ClipScore
    from ditlab.evaluation.generated import load_for
    from ditlab.evaluation.prompts import score_prompts

    pipe = load_for(model, settings, pick_device(settings.device))
    source = data or pipe.config.get("recipe", {}).get("data", {}).get("source", "")
    if not source:
        raise InputError("the recipe of this model is not known; give --data")
    network = ClipScore(clip, pick_device(settings.device)) if clip else None
    return score_prompts(pipe, source, screen, options=settings.given(), clip=network, **options).score
