"""`ditlab train FOLDER`: choose a recipe, train for a given time, tune the sampling, and score the model."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ditlab.auto.choose import (
    Choice,
    base_tables,
    choose_data,
    choose_network,
    network_options,
    recipe_from,
    rounded,
    size_of_recipe,
    table,
    with_choices,
)
from ditlab.auto.facts import Facts, look
from ditlab.auto.finish import Outcome, finish
from ditlab.auto.symmetry import mirrored_accuracy
from ditlab.backbones import create
from ditlab.config.reader import Tables, parse_recipe, with_values
from ditlab.config.sections import Recipe, Train
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, read_object
from ditlab.core.io import make_folder, replace_text
from ditlab.core.spelling import expand, same_place
from ditlab.core.terminal import make_console, say
from ditlab.core.units import counted
from ditlab.data import open_dataset
from ditlab.evaluation import measure
from ditlab.profiling.plan import plan
from ditlab.training import train
from ditlab.training.run_folder import CHOICES

MINUTES = 30.0  # of a call without a length
Agree = Callable[[str], bool]
"""Asks the user whether to go on in spite of what the text says."""


@dataclass(frozen=True)
class Budget:
    """The length of a run; exactly one of both is given."""

    minutes: float = 0.0
    images: int = 0

    @property
    def training(self) -> float:
        """Minutes of training: the rest is for tuning and the score."""
        rules = table()["time"]
        return self.minutes - min(rules["score"] * self.minutes, rules["longest_score"])

    def finishing(self, trained: float) -> float:
        """Minutes for tuning and score, after `trained` minutes of training."""
        if self.minutes:
            return self.minutes - self.training
        rules = table()["time"]
        return min(rules["longest_score"], max(1.0, trained * rules["score"] / (1 - rules["score"])))


def train_folder(
    source: str | Path,
    out: str | Path | None = None,
    *,
    minutes: float = MINUTES,
    images: int | None = None,
    settings: Tables | None = None,
    agree: Agree = lambda text: True,
    console: Console | None = None,
) -> Outcome:
    """Train a model on a data source without a recipe; the same call resumes, and a longer time trains on.

    Args:
        source: a folder of images, or any other data source.
        out: the run folder (default: runs/NAME-OF-THE-DATA).
        minutes: longest time of the whole call, with the choice, the training and the score.
        images: number of training images, in place of the time.
        settings: settings that are not chosen, by section, such as {"data": {"size": "32"}}.
        agree: asked with a text before a run that cannot succeed.
        console: where choices and progress are shown (default: standard error).

    Returns:
        The model, its tuned sampling settings and its score; the same is in the run folder, in report.html and
        score.json.

    Raises:
        InputError: the data cannot be read, the settings contradict each other, or `agree` returned false.
    """
    source, given = expand(str(source)), settings or {}
    out = default_run(source) if out is None else Path(expand(str(out)))
    budget = Budget(images=images) if images else Budget(minutes=minutes)
    console, started = console or make_console(stderr=True), time.monotonic()
    if (out / "recipe.toml").exists():
        recipe, looking = resumed(source, out, given), read_looking(out)
    else:
        recipe, choices = choose(source, budget, given, console, agree)
        looking = (time.monotonic() - started) / 60
        content = {"looking": looking, "choices": [vars(choice) for choice in choices]}
        make_folder(out)
        replace_text(out / CHOICES, json.dumps(content, indent=1) + "\n")
    recipe = replace(recipe, train=with_length(recipe, budget, looking))
    pipe = train(recipe, out, console=console)
    return finish(pipe, recipe, out, budget.finishing(pipe.config["train_seconds"] / 60), console)


def default_run(source: str) -> Path:
    """The folder of a run on a data source, if none is given."""
    return Path("runs") / (Path(source).resolve().name if Path(source).exists() else source.replace(":", "-"))


def with_length(recipe: Recipe, budget: Budget, looking: float) -> Train:
    """The settings of [train] with the length of the run; `looking` are the minutes in which it was chosen."""
    if budget.images:
        return replace(recipe.train, images=budget.images, minutes=0.0)
    return replace(recipe.train, minutes=max(0.1, round(budget.training - looking, 3)))


def read_looking(out: Path) -> float:
    """Minutes in which the recipe of a run was chosen, so that a call with the same time gives the same length."""
    file = out / CHOICES
    if not file.exists():
        return 0.0
    with interpreting(file, "remove it"):
        return float(read_object(file)["looking"])


def resumed(source: str, out: Path, given: Tables) -> Recipe:
    """The recipe that was chosen when the run began, with the settings of the user.

    Raises:
        InputError: the folder holds a run on other data.
    """
    recipe = Recipe.load(out / "recipe.toml")
    if not same_place(recipe.data.source, source):
        raise InputError(f"{out} holds a run on {recipe.data.source}, not on {source}; give another folder")
    return recipe.override(given)


def choose(source: str, budget: Budget, given: Tables, console: Console, agree: Agree) -> tuple[Recipe, list[Choice]]:
    """Look at the data and at this machine, and choose; every choice is printed with its reason."""
    facts = look(source, parse_recipe({"data": given.get("data", {})}).data)
    say(console, f"{source}: {describe(facts)}")
    choices = choose_data(facts, given)
    tables = with_values(with_choices(base_tables(facts), choices), given)
    choices += choose_mirroring(facts, tables, budget, console)
    tables = with_choices(tables, choices)
    rates = rates_of(facts, tables)
    seconds = 60 * budget.training
    images = [rate * seconds if budget.minutes else float(budget.images) for rate in rates]
    minutes = budget.training if budget.minutes else budget.images / rates[0] / 60
    choices += choose_network(facts, tables, images, minutes)
    for choice in choices:
        say(console, str(choice))
    if facts.captions and "conditioner" not in given.get("data", {}):
        say(console, 'the captions of the images are not used; set data.conditioner to "text" to train on them')
    for line in remarks(facts):
        say(console, line)
    check_promising(images[0], budget, agree, console)
    return recipe_from(with_values(with_choices(tables, choices), given), facts), choices


def choose_mirroring(facts: Facts, tables: Tables, budget: Budget, console: Console) -> list[Choice]:
    """Mirror the images too if a classifier cannot tell mirrored images from the others."""
    rules = table()["mirroring"]
    if not facts.resizable or "flip" in tables.get("data", {}) or facts.images < rules["enough"]:
        return []
    longest = rules["longest"] * 60
    seconds = min(longest, rules["share"] * 60 * budget.minutes) if budget.minutes else longest
    accuracy = mirrored_accuracy(open_dataset(facts.source, recipe_from(tables, facts).data), seconds, console)
    reason = f"a classifier recognizes mirrored images in {accuracy:.0%} of cases (50% is a guess)"
    return [Choice("data", "flip", accuracy <= rules["most"], reason)]


def describe(facts: Facts) -> str:
    """The data in a line."""
    size = "{}x{}".format(*facts.size) if facts.one_size else "about {}x{}".format(*facts.size)
    classes = f"{counted(len(facts.classes), 'class')}" if facts.classes else "no classes"
    return f"{counted(facts.images, 'image')} of {size} pixels, {classes}{', captions' * facts.captions}"


def rates_of(facts: Facts, tables: Tables) -> list[float]:
    """Training images per second of each network of the table: the first is timed, the others follow from their cost.

    Returns:
        The rates; one rate if the user has named the network.

    Raises:
        InputError: training does not fit in the memory of this machine.
    """
    size = size_of_recipe(facts, tables)
    options = [{}] if "name" in tables.get("model", {}) else network_options(size)
    recipes = [recipe_from(with_values(tables, {"model": own}), facts) for own in options]
    first = plan(recipes[0])
    if first.advice or not first.steps_per_second:
        raise InputError("; ".join(first.advice) or "a training step could not be timed; give a recipe")
    rate = first.steps_per_second * first.batch
    return [rate * first.gmacs / cost(recipe, facts, size) for recipe in recipes]


def cost(recipe: Recipe, facts: Facts, size: tuple[int, int]) -> float:
    """GMACs of the network of a recipe for one image."""
    classes = len(facts.classes)
    return measure(lambda: create(**vars(recipe.model), size=size, channels=facts.channels, classes=classes)).gmacs


def remarks(facts: Facts) -> list[str]:
    """What the user should know of the data before training."""
    rules, lines = table()["data"], []
    if facts.images < rules["enough"]:
        lines.append(
            f"{counted(facts.images, 'image')}: the model will learn them by heart, and there is no score, because "
            f"fewer than {rules['enough']} images leave too few to hold out"
        )
    small = [name for name, count in facts.classes.items() if count < rules["few_of_class"]]
    if small:
        some = ", ".join(small[:4]) + (", ..." if len(small) > 4 else "")
        lines.append(
            f"{counted(len(small), 'class')} with fewer than {rules['few_of_class']} images ({some}): their samples "
            "will resemble the few images; add images, or merge classes"
        )
    return lines


def check_promising(images: float, budget: Budget, agree: Agree, console: Console) -> None:
    """Say what can be expected of the number of training images, and ask if it is nothing.

    Raises:
        InputError: the user does not agree.
    """
    rules = table()["images"]
    within = f" in {budget.minutes:g} minutes" if budget.minutes else ""
    if images < rules["hopeless"]:
        text = f"only about {rounded(images)} training images{within}, of which nothing but colors is learned"
        needed = budget.minutes * rules["rough"] / images
        remedy = f"give {needed:,.0f} minutes or more" if budget.minutes else f"give {rules['rough']:,} images or more"
        if not agree(text):
            raise InputError(f"{text}; {remedy}")
        say(console, f"{text}; {remedy} for shapes")
    elif images < rules["rough"]:
        say(console, f"about {rounded(images)} training images{within}: the best that fits, with rough shapes")
