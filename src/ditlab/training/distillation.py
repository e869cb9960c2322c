"""`ditlab.distill`: train a student of one or a few steps from a trained model, in two or three runs.

The first run trains a flow map by halves (`ditlab.training.objectives.halves`). The second one starts from its weights
and trains only the steps of the student, on pairs of noise and the teacher's images
(`ditlab.training.objectives.pairs`). An optional third one corrects the distribution of the images
(`ditlab.training.objectives.correction`). All are ordinary runs, those before the last one in its folders `halves` and
`pairs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.data import Dataset as TorchDataset

from ditlab.checkpoints import load
from ditlab.config.distill import Distill
from ditlab.config.reader import parse_recipe
from ditlab.config.sampling import Sample
from ditlab.config.sections import Diffusion, Recipe
from ditlab.core.device import process_place
from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant
from ditlab.core.spelling import absolute, expand
from ditlab.core.terminal import make_console, say
from ditlab.core.units import counted
from ditlab.data import Dataset
from ditlab.diffusion.flow_map import SAMPLER, FlowMap
from ditlab.inference.pipeline import Pipeline
from ditlab.training.api import train
from ditlab.training.objectives.halves import Halves
from ditlab.training.run_folder import BEFORE, HALVES, PAIRS

MOST_STEPS = 8
SHARE = 0.2  # of the cost, for the first run
BACKWARD = 3  # cost of a training step in forward passes of its batch
LR = 0.5  # learning rates of both runs, as a share of the teacher's
CORRECTION_LR = 0.2  # learning rate of the third run, as a share of that of the second
WARMUP = 0.05  # share of a run over which the learning rate rises
DROPOUT = 0.05  # share of the null condition, which the student needs only to generate images without a condition
EMA = 0.99  # decay of the average in the first run, whose weights give the targets; the second has the teacher's
PURPOSES = {
    "halves": "by halves, {images}: one step learns to equal two of half its length",
    "pairs": "on pairs of noise and the teacher's image, {images}",
    "correction": "correction of the distribution, {images}",
}


def distill(
    teacher: str | Path,
    out: str | Path,
    *,
    steps: int = 1,
    guidance: float | Sequence[float] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    images: int | None = None,
    correction: int = 0,
    data: str | Dataset | TorchDataset[Any] | tuple[Any, Any] | Mapping[str, Any] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    console: Console | None = None,
) -> Pipeline:
    """Train a student that generates images in one or a few steps; the same call resumes an interrupted one.

    Args:
        teacher: a run of ditlab, or a model that was saved from one: its recipe has the data.
        out: the run folder of the student, with the runs before the last one in its folders `halves` and `pairs`.
        steps: number of sampler steps of the student, each with one function evaluation.
        guidance: guidance scale that is built into the student, or a range in which it stays free at sampling (default:
            the scale that the teacher was saved with).
        guidance_interval: times between which guidance acts (default: those that the teacher was saved with).
        images: length of the second run (default: both runs together cost as much as the training of the teacher).
        correction: length of a third run, in which the distribution of the images is corrected; 0 leaves it out.
        data: the data, as in `ditlab.train` (default: the data source of the teacher's recipe).
        settings: settings of the recipes by section, in place of those that are derived from the teacher's.
        console: where progress is shown (default: standard error).

    Returns:
        The student, whose default settings are its steps and its guidance.

    Raises:
        InputError: the teacher has no recipe, is a flow map already, or does not suit the other arguments.
    """
    console = (console or make_console(stderr=True)) if process_place()[0] == 0 else Console(quiet=True)
    place, folder = expand(str(teacher)), Path(expand(str(out)))
    check_folder(place, folder)
    model = load(place, device="cpu")
    check(model, place, steps, images, correction)
    scales = scales_of(model, guidance)
    check_interval(model, scales, guidance_interval)
    pairs = recipe_of(model, place, Distill(absolute(place), steps, scales, guidance_interval), settings or {})
    first, second = lengths(model, pairs)
    pairs = of_length(pairs, second if images is None else images)
    halves = of_length(first_recipe(pairs), first)
    runs = [(halves, folder / HALVES), (pairs, folder / PAIRS if correction else folder)]
    runs += [(correction_recipe(pairs, correction), folder)] if correction else []
    for line in plan_lines(place, runs):
        say(console, line)
    origin = place
    for recipe, out_folder in runs:
        started = replace(recipe, train=replace(recipe.train, init_from=origin))
        student, origin = train(started, out_folder, data=data, console=console), str(out_folder)
    return student


def check_folder(place: str, folder: Path) -> None:
    """Check that a folder can hold a student: it is new, or holds one already.

    Raises:
        InputError: it is that of the teacher, or holds something else.
    """
    if folder.exists() and folder.resolve() == Path(place).resolve():
        raise InputError(f"{folder} is the folder of the teacher; give another one for the student")
    if not (folder / HALVES).exists() and not is_vacant(folder, *BEFORE):
        raise InputError(f"{folder} exists and holds no student; give another folder")


def check_interval(model: Pipeline, scales: tuple[float, ...], interval: tuple[float, float] | None) -> None:
    """Check that the teacher can be guided in an interval of times; None is that which it was saved with.

    Raises:
        InputError: the interval is empty, or the teacher is unconditional or has guidance built in.
    """
    if interval is not None:
        guidance: dict[str, Any] = {"guidance": scales[-1]} if model.conditional else {}
        model.resolve(guidance_interval=interval, **guidance)


def check(model: Pipeline, place: str, steps: int, images: int | None, correction: int) -> None:
    """Check that a model can be the teacher of a student.

    Raises:
        InputError: it is a flow map, does not generate images or has no recipe, or a number of steps or images is not
            possible.
    """
    if images is not None and images < 1:
        raise InputError(f"images is {images}; give 1 or more")
    if correction < 0:
        raise InputError(f"correction is {correction}; give 1 or more images, or 0 for no correction")
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps is {steps}; give 1 to {MOST_STEPS}, above which the teacher itself is good enough")
    if isinstance(model.objective, FlowMap):
        raise InputError(f"{place} is a flow map already; give the model that it was distilled from")
    model.objective.denoiser(model.net)  # raises an error if the model does not generate from noise
    if not {"recipe", "images_seen"} <= model.config.keys():
        raise InputError(
            f"{place} has no recipe of its training, which has the data; give a run of ditlab, or train a recipe with "
            'train.objective = "halves" and train.init_from'
        )


def scales_of(model: Pipeline, guidance: float | Sequence[float] | None) -> tuple[float, ...]:
    """The guidance scale of the student, or the lowest and the highest one.

    Raises:
        InputError: guidance of an unconditional model, or a range without the teacher's own scale.
    """
    own = model.resolve().guidance
    chosen = own if guidance is None else guidance
    scales = (float(chosen),) if isinstance(chosen, int | float) else tuple(float(scale) for scale in chosen)
    if not model.conditional and set(scales) != {1.0}:
        raise InputError(f"guidance {scales[-1]:g} for an unconditional teacher; leave it out")
    if len(scales) not in (1, 2) or not 0 < scales[0] <= scales[-1]:
        given = " ".join(f"{scale:g}" for scale in scales)
        raise InputError(f"guidance {given}; give one scale above 0, or the lowest and the highest one")
    return scales


def recipe_of(model: Pipeline, place: str, settings: Distill, changes: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe of the second run, without its length: data, batch and optimizer are those of the teacher's recipe."""
    taught = parse_recipe(dict(model.config["recipe"]), source=place)
    plain, own = Recipe().train, taught.train
    kept = ("batch", "ema", "seed", "precision", "compile", "device", "log_every", "preview_every", "save_every")
    scale = min(max(model.resolve().guidance, settings.guidance[0]), settings.guidance[-1])
    recipe = replace(
        taught,
        diffusion=Diffusion(learn_variance=False),
        optim=replace(taught.optim, lr=LR * taught.optim.lr, schedule="cosine", decay=0.2),
        train=replace(
            plain,
            **{key: getattr(own, key) for key in kept},
            objective="pairs",
            init_from=place,
            label_dropout=DROPOUT if model.conditional else 0.0,
        ),
        distill=settings,
        sample=Sample(steps=settings.steps, sampler=SAMPLER, guidance=scale),
    )
    return recipe.override(changes) if changes else recipe


def first_recipe(pairs: Recipe) -> Recipe:
    """The recipe of the first run, which trains by halves."""
    used = {key: getattr(pairs.distill, key) for key in Halves.distill}
    return replace(pairs, train=replace(pairs.train, objective="halves", ema=EMA), distill=Distill(**used))


def correction_recipe(pairs: Recipe, images: int) -> Recipe:
    """The recipe of the third run, which corrects the distribution of the images."""
    optim = replace(pairs.optim, lr=CORRECTION_LR * pairs.optim.lr)
    other = replace(
        pairs.train, objective="correction", seed=pairs.train.seed + 1
    )  # other noise than that of the pairs
    return of_length(replace(pairs, optim=optim, train=other), images)


def of_length(recipe: Recipe, images: int) -> Recipe:
    """A recipe with another number of images, and a warm-up that fits it."""
    optim = replace(recipe.optim, warmup=round(WARMUP * images))
    return replace(recipe, train=replace(recipe.train, images=images), optim=optim)


def lengths(model: Pipeline, recipe: Recipe) -> tuple[int, int]:
    """Numbers of images of the two runs that together cost as much as the training of the teacher.

    The cost is counted in forward passes of the network for one image. Every step trains, which costs three. A step by
    halves needs two more of the student or of the guided teacher, and a pair the teacher's trajectory.
    """
    settings = recipe.distill
    twice = 1 if settings.guidance == (1.0,) or model.objective.built_in else 2
    cost = BACKWARD * model.config["images_seen"]
    counts = max(1, (MOST_STEPS // settings.steps).bit_length())  # levels, the last of which the teacher gives
    halves = BACKWARD + 2 * (counts - 1 + twice) / counts
    pairs = BACKWARD + twice * 0.75 * settings.teacher_steps / settings.uses
    return multiple(SHARE * cost / halves, recipe), multiple((1 - SHARE) * cost / pairs, recipe)


def multiple(images: float, recipe: Recipe) -> int:
    """The number of images as a multiple of the batch, at least one batch."""
    return max(1, round(images / recipe.train.batch)) * recipe.train.batch


def plan_lines(place: str, runs: Sequence[tuple[Recipe, Path]]) -> list[str]:
    """What will be done, in sentences."""
    settings = runs[0][0].distill
    scales = " to ".join(f"{scale:g}" for scale in settings.guidance)
    built = "without guidance" if scales == "1" else f"with guidance {scales} built in"
    lines = [
        f"{place} becomes a flow map of {counted(settings.steps, 'step')} {built}: "
        f"{counted(settings.steps, 'function evaluation')} for each image"
    ]
    for number, (recipe, folder) in enumerate(runs, 1):
        images = counted(recipe.train.images, "image")
        lines.append(f"{number}. {PURPOSES[recipe.train.objective].format(images=images)} ({folder})")
    return lines
