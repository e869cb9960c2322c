"""Study recipes: what is trained, how it is scored, what is drawn, and which comparison decides a claim.

A study has parts, each the base recipe with other settings, and evaluations, each a way to draw from a trained part and
to score it. An entry of its table is one of both, and is called "PART, EVALUATION", or "PART" if there is but one way.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from ditlab.config.reader import find_recipe, parse_recipe, parse_table, read_toml, without_network
from ditlab.config.sections import Evaluation, Recipe, Whole
from ditlab.core.errors import InputError, nearest
from ditlab.evaluation.metrics import RESULTS

METRICS: Mapping[str, str] = RESULTS
"""Results, and the metric that computes each of them."""
AXES = {
    "gmacs": "GMACs of the network",
    "parameters": "parameters",
    "images": "pictures seen in training",
    "training_gmacs": "GMACs of training",
    "sampling_gmacs": "GMACs of drawing a picture",
    "seconds": "seconds of training",
    "steps": "steps of the sampler",
    "guidance": "scale of guidance",
}
"""What results may be held against, beside each other and any number of the recipe, such as model.depth."""
LOG = "log "  # in front of an axis
Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """What every run may spend; one of them."""

    images: Whole | None = None
    """Pictures seen, repeats counted."""
    gmacs: float | None = None
    """GMACs of training: three times those of the network, for each picture."""
    seconds: float | None = None
    """Seconds of training on this machine, as a few steps foretell them."""

    def __str__(self) -> str:
        kind, value = self.chosen
        return f"{value:,.10g} {'GMACs' if kind == 'gmacs' else kind}"

    @property
    def chosen(self) -> tuple[str, float]:
        """Its name and value."""
        return next((name, value) for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class Plot:
    """A result against something else; "log " in front of an axis makes it logarithmic."""

    x: str = "log gmacs"
    """Across: in `AXES`, a result, or a number of the recipe such as model.depth."""
    y: str = "fd"
    """Up."""
    lines: tuple[str, ...] = ()
    """Patterns of entries that are joined, such as "small, *"; left out, each is a point with its name."""
    fit: bool = False
    """Draw the fitted line, and tell Pearson's r."""


@dataclass(frozen=True)
class Claim:
    """What was found elsewhere, and the comparison that decides whether it holds here: one of the keys below `by`."""

    says: str = ""
    """In a sentence."""
    paper: str = ""
    """The finding, with its numbers and where it stands."""
    by: str = "fd"
    """The result that is compared."""
    order: tuple[str, ...] = ()
    """Entries from the lowest to the highest value. One with * stands for the lowest of those that match."""
    falls_with: str = ""
    """An axis with which the result falls: its correlation is below 0."""
    rises_with: str = ""
    """An axis with which the result rises."""
    more_than: str = ""
    """With one of these two: another axis, with which it is correlated less."""
    among: str = "*"
    """With one of these two: a pattern of the entries that count."""


@dataclass(frozen=True)
class Basics:
    """What a study has beside its tables."""

    title: str = ""
    """Heading of the report."""
    question: str = ""
    """What it is to find out."""
    recipe: str = "digits"
    """The recipe that all parts begin with: a file, or the name of one that comes with ditlab."""
    seeds: tuple[Whole, ...] = (0, 1, 2)
    """Of training. Differences are taken seed by seed; the error comes from them."""
    draws: Whole = 1
    """Seeds of pictures for each trained model, whose results are averaged."""


@dataclass(frozen=True)
class Study(Basics):
    """A whole study."""

    name: str = "study"
    text: str = ""
    """The recipe as it was written."""
    budget: Budget = field(default_factory=Budget)
    parts: dict[str, Recipe] = field(default_factory=dict)
    """Before budget and seed."""
    given: dict[str, Tables] = field(default_factory=dict)
    """Part -> what this study says of it, for all parts or this one, instead of the recipe that they begin with."""
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    plots: tuple[Plot, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def entries(self) -> dict[str, tuple[str, str]]:
        """Name -> part and evaluation."""
        alone = len(self.evaluations) == 1
        return {
            part if alone else f"{part}, {evaluation}": (part, evaluation)
            for part in self.parts
            for evaluation in self.evaluations
        }


TABLES = ("budget", "settings", "parts", "cross", "evaluation", "evaluations", "plots", "claims")


def read_study(name: str) -> Study:
    """A study from a file, or one that comes with ditlab.

    Raises:
        InputError: what it does not know, or cannot put together.
    """
    path = find_recipe(name, "studies")
    source, table = str(path), read_toml(path)
    keys = [key.name for key in dataclasses.fields(Basics)]
    for key in table:
        if key not in keys and key not in TABLES:
            raise InputError(f'{source} has a key "{key}" that no study has; {nearest(key, [*keys, *TABLES])}')
    for key in TABLES:
        kind, what = (list, "tables, [[{}]]") if key in ("plots", "claims") else (dict, "a table, [{}]")
        if not isinstance(table.get(key, kind()), kind):
            raise InputError(f"{source}: {key} is {table[key]!r}, but must be {what.format(key)}")
    basics = parse_table(Basics, {key: value for key, value in table.items() if key in keys}, source)
    own = grid(table.get("parts", {}), table.get("cross", {}), source)
    given = {name: changed(table.get("settings", {}), changes) for name, changes in own.items()}
    base = base_tables(basics.recipe)
    study = Study(
        **vars(basics),
        name=path.stem,
        text=path.read_text(encoding="utf-8"),
        budget=parse_table(Budget, table.get("budget", {}), f"{source}, budget"),
        parts={name: part_recipe(base, changes, f'{source}, part "{name}"') for name, changes in given.items()},
        given=given,
        evaluations=read_evaluations(table, source),
        plots=tuple(parse_table(Plot, each, f"{source}, a plot") for each in table.get("plots", [{"fit": True}])),
        claims=tuple(parse_table(Claim, each, f"{source}, a claim") for each in table.get("claims", [])),
    )
    check(study, source)
    return study


def base_tables(name: str) -> Tables:
    """The tables of a training recipe as they are written, once it is one."""
    path = find_recipe(name)
    tables = read_toml(path)
    parse_recipe(tables, source=str(path))
    return tables


def part_recipe(base: Tables, changes: Tables, source: str) -> Recipe:
    """The recipe of a part.

    Raises:
        InputError: a key or value that no recipe has, or that the study itself decides.
    """
    for key, remedy in (("images", "set it under [budget]"), ("seed", "list them as seeds")):
        if key in changes.get("train", {}):
            raise InputError(f"{source}: train.{key} is the study's to decide; {remedy}")
    return parse_recipe(changed(base, changes), source=source)


def changed(base: Tables, changes: Tables) -> Tables:
    """The base with these changes. Who names a network says all of it: sizes of another family would mean nothing."""
    return merged(without_network(base) if "name" in changes.get("model", {}) else base, changes)


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Tables one over the other; a later value wins."""
    found: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if both else value
    return found


def grid(parts: Tables, cross: Tables, source: str) -> dict[str, Tables]:
    """The parts as they are named, each with every combination of the values to be crossed.

    Raises:
        InputError: nothing to train, or what is no list of values.
    """
    for name, table in parts.items():
        if not isinstance(table, dict):
            raise InputError(f'{source}: part "{name}" is {table!r}, but must be a table such as {{model.depth = 4}}')
    for section, table in cross.items():
        if not isinstance(table, dict):
            raise InputError(f"{source}: cross.{section} is {table!r}, but must be a table such as {{patch = [2, 4]}}")
    axes = [(section, key, values) for section, table in cross.items() for key, values in table.items()]
    for section, key, values in axes:
        if not isinstance(values, list) or not values:
            raise InputError(f"{source}: cross.{section}.{key} is {values!r}; give a list of values")
    if not parts and not axes:
        raise InputError(f"{source} has no parts, so there is nothing to train; name some under [parts], or [cross]")
    found = {}
    for name, table in parts.items() if parts else [("", {})]:
        for values in itertools.product(*(values for *_, values in axes)):
            words = [name] if name else []
            words += [f"{key} {value}" for (_, key, _), value in zip(axes, values, strict=True)]
            changes = [{section: {key: value}} for (section, key, _), value in zip(axes, values, strict=True)]
            found[", ".join(words)] = merged(table, *changes)
    return found


def read_evaluations(table: dict[str, Any], source: str) -> dict[str, Evaluation]:
    """What all have in common, and how each differs."""
    common = table.get("evaluation", {})
    own = table.get("evaluations", {"": {}})
    if not own:
        raise InputError(f"{source}: evaluations is empty; name some, or leave it out")
    for name, changes in own.items():
        if not isinstance(changes, dict):
            raise InputError(
                f'{source}: evaluation "{name}" is {changes!r}, but must be a table such as {{steps = 20}}'
            )
    return {
        name: replace(parse_table(Evaluation, common | changes, f'{source}, evaluation "{name}"'), expect=None)
        for name, changes in own.items()
    }


def check(study: Study, source: str) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: see there.
    """
    given = [name for name, value in vars(study.budget).items() if value is not None]
    if len(given) != 1 or study.budget.chosen[1] <= 0:
        what = " and ".join(given) if len(given) > 1 else "nothing above 0"
        raise InputError(f"{source}: the budget is {what}; give one of images, gmacs or seconds")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or study.draws < 1:
        raise InputError(
            f"{source}: seeds {list(study.seeds)} and {study.draws} draws; give different seeds, and 1 draw or more"
        )
    for plot in study.plots:
        check_axis(plot.x, study, source)
        check_axis(plot.y, study, source)
        for pattern in plot.lines:
            check_entry(pattern, study, source)
    for claim in study.claims:
        check_claim(claim, study, f'{source}, claim "{claim.says}"')


def check_claim(claim: Claim, study: Study, source: str) -> None:
    """Refuse a claim that nothing decides."""
    if claim.by not in METRICS:
        raise InputError(f'{source}: by "{claim.by}" is no result; {nearest(claim.by, METRICS)}')
    for name, settings in study.evaluations.items():
        if settings.metrics and METRICS[claim.by] not in settings.metrics:
            raise InputError(
                f'{source}: by {claim.by}, but evaluation "{name}" has the metrics {", ".join(settings.metrics)}; '
                f"add {METRICS[claim.by]}"
            )
    ways = [key for key in ("order", "falls_with", "rises_with") if getattr(claim, key)]
    if len(ways) != 1 or len(claim.order) == 1:
        raise InputError(f"{source}: give one of order (two entries or more), falls_with and rises_with")
    if claim.more_than and claim.order:
        raise InputError(f"{source}: more_than goes with falls_with or rises_with")
    for axis in (claim.falls_with, claim.rises_with, claim.more_than):
        if axis:
            check_axis(axis, study, source)
    for pattern in (*claim.order, claim.among):
        check_entry(pattern, study, source)


def check_axis(name: str, study: Study, source: str) -> None:
    """Refuse an axis that is none, and one that is no number in every part."""
    bare = name.removeprefix(LOG)
    if bare in AXES or bare in METRICS:
        return
    if "." not in bare:
        raise InputError(f'{source}: "{bare}" is no axis; {nearest(bare, [*AXES, *METRICS])}')
    for part, recipe in study.parts.items():
        value = recipe_value(recipe, bare)
        if not isinstance(value, int | float):
            raise InputError(f'{source}: {bare} is {value!r} in part "{part}"; an axis needs a number')


def recipe_value(recipe: Recipe, name: str) -> Any:
    """A value of the recipe by its dotted name; None if it is not set or not there."""
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section, None), key, None)


def check_entry(pattern: str, study: Study, source: str) -> None:
    """Refuse a name, or pattern, of no entry."""
    if not matching(pattern, study.entries):
        raise InputError(f'{source}: there is no entry "{pattern}"; {nearest(pattern, study.entries)}')


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means; * is anything, and nothing else is special."""
    plain = pattern.replace("[", "[[]").replace("?", "[?]")
    return [name for name in names if fnmatchcase(name, plain)]


def used_axes(plots: Sequence[Plot], claims: Sequence[Claim]) -> set[str]:
    """All axes that something asks for, without "log "."""
    named = [axis for plot in plots for axis in (plot.x, plot.y)]
    named += [axis for claim in claims for axis in (claim.falls_with, claim.rises_with, claim.more_than) if axis]
    return {axis.removeprefix(LOG) for axis in named}
