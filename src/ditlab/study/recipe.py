"""Study recipes: what is trained, how it is scored, which plots are made, and which comparison decides a claim.

A study has parts, which are the base recipe with other settings, and evaluations, which are settings for sampling from
a trained part and scoring the samples. An entry of its table is a part under an evaluation. Its name is "PART,
EVALUATION", or "PART" if there is one evaluation only.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ditlab.config.evaluation import Evaluation
from ditlab.config.fields import check_settings, setting
from ditlab.config.reader import Tables, find_recipe, parse_recipe, parse_table, read_toml
from ditlab.config.sections import Recipe
from ditlab.config.values import Whole
from ditlab.core.errors import InputError, nearest
from ditlab.study.measures import StudyResults
from ditlab.study.tables import changed, expand_parts, read_evaluations, read_part_patterns, read_shares

METRICS = StudyResults()
"""Result -> the metric of `ditlab evaluate`, or the measure, that computes it. Distances have the same name in all
features."""
AXES = {
    "gmacs": "GMACs per forward pass",
    "parameters": "parameters",
    "images": "training images",
    "training_gmacs": "training GMACs",
    "sampling_gmacs": "GMACs to sample one image",
    "seconds": "training time in seconds",
    "steps": "sampling steps",
    "guidance": "guidance scale",
    "reuse": "steps from one full computation to the next",
}
"""Axis -> its label. Other axes are results, and numbers of the recipe such as model.depth."""
COSTS = ("gmacs", "parameters", "images", "training_gmacs", "sampling_gmacs", "seconds", "steps")
"""Axes of which less is better, for Pareto fronts."""
PLOTS = ({"fit": True, "front": True}, {"x": "log seconds", "front": True})
"""The plots of a recipe that names none: quality over GMACs and over time."""
LOG = "log "  # prefix of a logarithmic axis


@dataclass(frozen=True)
class Budget:
    """What each training run may cost; exactly one of these."""

    images: Whole | None = None
    """Training images, repeats counted."""
    gmacs: float | None = None
    """GMACs of training: three times those of a forward pass, for each image."""
    seconds: float | None = None
    """Seconds of training on this machine, predicted from a few timed steps; on a CPU, of processor time."""

    def __str__(self) -> str:
        unit, value = self.chosen
        return f"{value:,.10g} {'GMACs' if unit == 'gmacs' else unit}"

    @property
    def chosen(self) -> tuple[str, float]:
        """Unit and value of the budget."""
        return next((name, value) for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class Plot:
    """A plot of one axis over another; the prefix "log " makes an axis logarithmic."""

    x: str = "log gmacs"
    """Horizontal axis: one of `AXES`, a result, or a number of the recipe such as model.depth."""
    y: str = "fd"
    """Vertical axis."""
    lines: tuple[str, ...] = ()
    """Patterns of entries that a line connects, such as "small, *" (default: single points with their names)."""
    fit: bool = False
    """Plot the fitted line and report Pearson's r."""
    front: bool = False
    """Plot the Pareto front of a result over a cost: the entries for which no other one is cheaper and better."""


@dataclass(frozen=True)
class Claim:
    """A published result, and the comparison that decides whether it holds here: one of the keys below `by`."""

    says: str = ""
    """The claim, in a sentence."""
    paper: str = ""
    """The published result, with numbers and source."""
    by: str = "fd"
    """The result that is compared."""
    order: tuple[str, ...] = ()
    """Entries from the lowest to the highest value. A pattern with * stands for the lowest matching entry."""
    minus: str = ""
    """With order: an evaluation, whose value for the same part is subtracted first, so that losses are compared."""
    falls_with: str = ""
    """An axis with which the result falls: the correlation is below 0."""
    rises_with: str = ""
    """An axis with which the result rises: the correlation is above 0."""
    predicts: str = ""
    """An entry that a law predicts: a line through the logarithm of the result over `along`, fitted to `among`."""
    along: str = "log gmacs"
    """With predicts: the axis of the law."""
    within: float = 0.05
    """With predicts: largest difference of the measured result from the predicted one, as a share of it."""
    more_than: str = ""
    """With falls_with or rises_with: another axis, whose correlation is weaker."""
    among: str = "*"
    """With falls_with, rises_with or predicts: pattern of the entries that are used."""


@dataclass(frozen=True)
class Basics:
    """The top-level keys of a study recipe."""

    title: str = ""
    """Heading of the report."""
    question: str = ""
    """The question that the study answers."""
    recipe: str = "digits"
    """Base recipe of all parts: a file, or the name of a recipe that comes with ditlab."""
    seeds: tuple[Whole, ...] = setting((0, 1, 2), at_least=0, below=2**32)
    """Training seeds. Differences are paired by seed, and standard errors are taken over the seeds."""
    sample_sets: Whole = 1
    """Sets of samples, each with its own seeds, that are scored per trained model; their scores are averaged."""


RENAMED = {"draws": "sample_sets"}
"""Top-level keys of study recipes of version 0.1, which are still read."""


@dataclass(frozen=True)
class Study(Basics):
    """A study recipe after reading."""

    name: str = "study"
    text: str = ""
    """The content of the recipe file."""
    budget: Budget = field(default_factory=Budget)
    parts: dict[str, Recipe] = field(default_factory=dict)
    """Name -> recipe, without budget and seed."""
    changes: dict[str, Tables] = field(default_factory=dict)
    """Name of a part -> settings in which it differs from the base recipe."""
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    """Name of an evaluation -> share of the training after which it scores a run; 1 is the end."""
    patterns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of an evaluation -> patterns of the parts that it scores (default: all)."""
    plots: tuple[Plot, ...] = ()
    claims: tuple[Claim, ...] = ()

    @property
    def smallest_share(self) -> float:
        """The first share of the training after which a run is scored."""
        return min(self.shares.values(), default=1.0)

    @property
    def entries(self) -> dict[str, tuple[str, str]]:
        """Name -> part and evaluation."""
        one_evaluation = len(self.evaluations) == 1
        return {
            part if one_evaluation else f"{part}, {evaluation}": (part, evaluation)
            for part in self.parts
            for evaluation in self.evaluations_of(part)
        }

    def evaluations_of(self, part: str) -> dict[str, Evaluation]:
        """The evaluations that score a part."""
        return {
            name: settings
            for name, settings in self.evaluations.items()
            if any(matching(pattern, [part]) for pattern in self.patterns.get(name, ("*",)))
        }


TABLES = ("budget", "settings", "parts", "cross", "evaluation", "evaluations", "plots", "claims")


def read_study(name: str, seeds: tuple[int, ...] | None = None) -> Study:
    """Read a study recipe from a file, or one that comes with ditlab.

    Args:
        name: path of the file, or name of the study.
        seeds: training seeds in place of those of the recipe.

    Raises:
        InputError: an unknown key, a wrong value, or parts and claims that contradict each other.
    """
    path = find_recipe(name, "studies")
    source, table = str(path), read_toml(path)
    table = {RENAMED.get(key, key): value for key, value in table.items()}
    keys = [key.name for key in dataclasses.fields(Basics)]
    check_types(table, keys, source)
    basics = parse_table(Basics, {key: value for key, value in table.items() if key in keys}, source)
    basics = basics if seeds is None else dataclasses.replace(basics, seeds=seeds)
    own_changes = expand_parts(table.get("parts", {}), table.get("cross", {}), source)
    changes = {name: changed(table.get("settings", {}), own) for name, own in own_changes.items()}
    base = base_tables(basics.recipe)
    study = Study(
        **vars(basics),
        name=path.stem,
        text=path.read_text(encoding="utf-8"),
        budget=parse_table(Budget, table.get("budget", {}), f"{source}, budget"),
        parts={name: part_recipe(base, tables, f'{source}, part "{name}"') for name, tables in changes.items()},
        changes=changes,
        evaluations=read_evaluations(table, source),
        shares=read_shares(table, source),
        patterns=read_part_patterns(table, source),
        plots=tuple(parse_table(Plot, plot, f"{source}, a plot") for plot in table.get("plots", PLOTS)),
        claims=tuple(parse_table(Claim, claim, f"{source}, a claim") for claim in table.get("claims", [])),
    )
    check(study, source)
    return study


def check_types(table: dict[str, Any], keys: Sequence[str], source: str) -> None:
    """Check the names of the top-level keys, and that tables are tables.

    Raises:
        InputError: an unknown key, or a value in the place of a table.
    """
    for key in table:
        if key not in keys and key not in TABLES:
            raise InputError(f'{source} has a key "{key}" that no study has; {nearest(key, [*keys, *TABLES])}')
    for key in TABLES:
        type_, syntax = (list, "tables, [[{}]]") if key in ("plots", "claims") else (dict, "a table, [{}]")
        if not isinstance(table.get(key, type_()), type_):
            raise InputError(f"{source}: {key} is {table[key]!r}, but must be {syntax.format(key)}")


def base_tables(name: str) -> Tables:
    """The tables of a training recipe as they are written, after a check that it is valid."""
    path = find_recipe(name)
    tables = read_toml(path)
    parse_recipe(tables, source=str(path))
    return tables


def part_recipe(base: Tables, changes: Tables, source: str) -> Recipe:
    """The recipe of a part.

    Raises:
        InputError: an unknown key, a wrong value, or a key that the study sets itself.
    """
    for key, remedy in (("images", "set it under [budget]"), ("seed", "list them as seeds")):
        if key in changes.get("train", {}):
            raise InputError(f"{source}: a study sets train.{key} itself; {remedy}")
    return parse_recipe(changed(base, changes), source=source)


def check(study: Study, source: str) -> None:
    """Check budget, seeds, plots and claims.

    Raises:
        InputError: one of them is not possible with the parts and evaluations of this study.
    """
    budgets = [name for name, value in vars(study.budget).items() if value is not None]
    if len(budgets) != 1 or study.budget.chosen[1] <= 0:
        what = " and ".join(budgets) if len(budgets) > 1 else "nothing above 0"
        raise InputError(f"{source}: the budget is {what}; give one of images, gmacs or seconds")
    try:
        check_settings(study)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if not study.seeds or len(set(study.seeds)) < len(study.seeds) or study.sample_sets < 1:
        raise InputError(
            f"{source}: seeds is {list(study.seeds)} and sample_sets is {study.sample_sets}; "
            "give different seeds, and 1 sample set or more"
        )
    for name, changes in study.changes.items():
        for key in {"save_every", "keep_every"} & set(changes.get("train", {}) if study.smallest_share < 1 else {}):
            raise InputError(f'{source}, part "{name}": at determines the checkpoints; remove train.{key}')
    for name, patterns in study.patterns.items():
        for pattern in patterns:
            if not matching(pattern, study.parts):
                raise InputError(
                    f'{source}, evaluation "{name}": there is no part "{pattern}"; {nearest(pattern, study.parts)}'
                )
    for part in study.parts:
        if not study.evaluations_of(part):
            raise InputError(f'{source}: no evaluation scores part "{part}"; add it to the parts of one')
    for plot in study.plots:
        check_axis(plot.x, study, source)
        check_axis(plot.y, study, source)
        if plot.front and (plot.x.removeprefix(LOG) not in COSTS or plot.y.removeprefix(LOG) not in METRICS):
            raise InputError(
                f'{source}: the plot of "{plot.y}" over "{plot.x}" has no front; give a result over a cost '
                f"({', '.join(COSTS)})"
            )
        for pattern in plot.lines:
            check_entry(pattern, study, source)
    for claim in study.claims:
        check_claim(claim, study, f'{source}, claim "{claim.says}"')


def check_claim(claim: Claim, study: Study, source: str) -> None:
    """Reject a claim that this study cannot decide."""
    if claim.by not in METRICS:
        raise InputError(f'{source}: by is "{claim.by}", which is not a result; {nearest(claim.by, METRICS)}')
    patterns = claim.order or (claim.among, *filter(None, [claim.predicts]))
    concerned = {study.entries[name][1] for pattern in patterns for name in matching(pattern, study.entries)}
    for name, settings in study.evaluations.items():
        if name in concerned and settings.metrics and METRICS[claim.by] not in settings.metrics:
            raise InputError(
                f'{source}: by is "{claim.by}", but evaluation "{name}" has the metrics {", ".join(settings.metrics)}; '
                f"add {METRICS[claim.by]}"
            )
    comparisons = [key for key in ("order", "falls_with", "rises_with", "predicts") if getattr(claim, key)]
    if len(comparisons) != 1 or len(claim.order) == 1:
        raise InputError(f"{source}: give one of order (two entries or more), falls_with, rises_with and predicts")
    check_prediction(claim, study, source)
    if claim.more_than and claim.order:
        raise InputError(f"{source}: more_than needs falls_with or rises_with, not order")
    if claim.among != Claim.among and claim.order:
        raise InputError(f'{source}: among is "{claim.among}", but order names its entries; remove among')
    if claim.minus and not claim.order:
        raise InputError(f"{source}: minus needs order")
    if claim.minus and claim.minus not in study.evaluations:
        raise InputError(
            f'{source}: minus is "{claim.minus}", but must be an evaluation; {nearest(claim.minus, study.evaluations)}'
        )
    for axis in (claim.falls_with, claim.rises_with, claim.more_than):
        if axis:
            check_axis(axis, study, source)
    for pattern in (*claim.order, claim.among):
        check_entry(pattern, study, source)


def check_prediction(claim: Claim, study: Study, source: str) -> None:
    """Check the keys of a claim that a fitted law predicts a result."""
    if not claim.predicts:
        for key in ("along", "within"):
            if getattr(claim, key) != getattr(Claim, key):
                raise InputError(f"{source}: {key} needs predicts")
        return
    if len(matching(claim.predicts, study.entries)) != 1:
        raise InputError(f'{source}: predicts is "{claim.predicts}"; give the name of one entry')
    if not 0 < claim.within < 1:
        raise InputError(f"{source}: within is {claim.within}; give a share between 0 and 1")
    check_axis(claim.along, study, source)


def check_axis(name: str, study: Study, source: str) -> None:
    """Reject an unknown axis, and a recipe key that is not a number in every part."""
    bare = name.removeprefix(LOG)
    if bare in AXES or bare in METRICS:
        return
    if "." not in bare:
        raise InputError(f'{source}: "{bare}" is not an axis; {nearest(bare, [*AXES, *METRICS])}')
    for part, recipe in study.parts.items():
        value = recipe_value(recipe, bare)
        if not isinstance(value, int | float):
            raise InputError(f'{source}: {bare} is {value!r} in part "{part}"; an axis needs a number')


def recipe_value(recipe: Recipe, name: str) -> Any:
    """A value of the recipe by its dotted name; None if it is not set or does not exist."""
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section, None), key, None)


def check_entry(pattern: str, study: Study, source: str) -> None:
    """Reject a name or pattern that matches no entry."""
    if not matching(pattern, study.entries):
        raise InputError(f'{source}: there is no entry "{pattern}"; {nearest(pattern, study.entries)}')


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that match a pattern, in which * stands for any text and no other character is special."""
    plain = pattern.replace("[", "[[]").replace("?", "[?]")
    return [name for name in names if fnmatchcase(name, plain)]


def used_axes(plots: Sequence[Plot], claims: Sequence[Claim]) -> set[str]:
    """All axes of plots and claims, without the prefix "log "."""
    named = [axis for plot in plots for axis in (plot.x, plot.y)]
    named += [axis for claim in claims for axis in (claim.falls_with, claim.rises_with, claim.more_than) if axis]
    return {axis.removeprefix(LOG) for axis in named}
