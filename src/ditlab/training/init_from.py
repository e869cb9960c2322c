"""Starting from a trained model: keep what fits, and report what does not.

Classes are matched by name where both sides have names, or by a class map; the null-class embedding is always kept.
Sin-cos positions are computed for another size, learned ones interpolated. The variance half of the head is added (as
zeros) or dropped. Process, target and timestep input are the source's unless the recipe sets others.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from ditlab.backbones import SHAPE, Backbone, find, name_of
from ditlab.config.sections import Diffusion, Model
from ditlab.core.errors import InputError, nearest
from ditlab.diffusion.objective import Objective, follows_source, make_objective
from ditlab.diffusion.process import Process, process_name, process_options
from ditlab.inference.pipeline import Pipeline


class Change(NamedTuple):
    """What happened to one tensor."""

    name: str
    fate: str  # kept, adapted, new, dropped
    detail: str


@torch.no_grad()
def transfer(net: Backbone, classes: list[str], source: Pipeline, class_map: str = "") -> list[Change]:
    """Fill a fresh network with the weights of a trained one.

    Args:
        net: the network to be trained; changed in place.
        classes: its class names.
        source: the trained model.
        class_map: a file for `match_classes`; classes of one name are matched without it.

    Returns:
        The fate of every tensor of both.
    """
    ours, theirs = net.state_dict(), source.net.state_dict()
    same = classes == source.classes and net.classes == source.net.classes and not class_map
    rows = None if same else match_classes(classes, source, class_map)
    changes = [_fill(name, ours[name], theirs, net, rows, source) for name in ours]
    changes += [Change(name, "dropped", shape(value)) for name, value in theirs.items() if name not in ours]
    return changes


def _fill(
    name: str, mine: Tensor, theirs: dict[str, Tensor], net: Backbone, rows: dict[int, int] | None, source: Pipeline
) -> Change:
    if name not in theirs:
        return Change(name, "new", shape(mine))
    value = theirs[name].to(mine)
    if name in net.label_tables and rows is not None:
        return _fill_labels(name, mine, value, rows)
    if value.shape == mine.shape:
        mine.copy_(value)
        return Change(name, "kept", shape(mine))
    if name in net.heads_out and net.channels == source.net.channels and value.shape[1:] == mine.shape[1:]:
        both = min(net.out_channels, source.net.out_channels)
        grouped = mine.view(-1, net.out_channels, *mine.shape[1:])
        grouped[:, :both] = value.reshape(-1, source.net.out_channels, *value.shape[1:])[:, :both]
        what = "variance half added" if net.learn_variance else "variance half dropped"
        return Change(name, "adapted", f"{shape(value)} -> {shape(mine)}, {what}")
    if name in dict(net.named_buffers()):  # positions that are computed, not learned
        return Change(name, "adapted", f"{shape(value)} -> {shape(mine)}, computed for this size")
    if name == "pos_embed" and value.shape[-1] == mine.shape[-1]:
        moved = interpolated(value, source.net.grid, net.grid)
        # The tokens before those of the image are label, if there are classes, and time: the last of them agree.
        most = min(mine.shape[1], moved.shape[1])
        mine[:, -most:] = moved[:, -most:]
        return Change(name, "adapted", f"{shape(value)} -> {shape(mine)}, interpolated")
    return Change(name, "new", f"{shape(mine)}, the source has {shape(value)}")


def _fill_labels(name: str, mine: Tensor, value: Tensor, rows: dict[int, int]) -> Change:
    mine[-1] = value[-1]
    for i, j in rows.items():
        mine[i] = value[j]
    detail = f"{len(value) - 1} -> {len(mine) - 1} classes, {len(rows)} of them matched, null class kept"
    return Change(name, "adapted", detail)


def interpolated(positions: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Learned positions (1, extra + rows columns, D) for another grid, bicubic; those of extra tokens stay."""
    extra = positions.shape[1] - prod(old)
    field = positions[:, extra:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(field, new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :extra], resized.flatten(2).transpose(1, 2)], dim=1)


def match_classes(classes: list[str], source: Pipeline, file: str = "") -> dict[int, int]:
    """Index of the source's class for each class of the data that continues one.

    Args:
        classes: names of the classes to be trained.
        source: the trained model.
        file: a TOML or JSON file with a table {class: class of the source, by name or index}; without it classes of
            one name are matched. (Without names it is unknown whether two embeddings mean the same.)

    Raises:
        InputError: a file that cannot be read, or names a class that one side does not have.
    """
    if not file:
        return {i: source.classes.index(name) for i, name in enumerate(classes) if name in source.classes}
    pairs = read_pairs(Path(file))
    for name in pairs:
        if name not in classes:
            raise InputError(f'{file} names a class "{name}" that the data does not have; {nearest(name, classes)}')
    try:
        rows = source.conditioner.encode(list(pairs.values())).label
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return {classes.index(name): row for name, row in zip(pairs, [] if rows is None else rows.tolist(), strict=True)}


def read_pairs(file: Path) -> dict[str, str | int]:
    """A flat table of names or numbers from a TOML or JSON file."""
    try:
        text = file.read_text(encoding="utf-8")
        pairs = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read class map {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"class map {file} is neither TOML nor JSON: {error}") from error
    for name, value in pairs.items():
        if not isinstance(value, str | int):
            raise InputError(f"class map {file} gives {name} the value {value!r}; give a class name or index")
    return pairs


def report(changes: list[Change]) -> Table:
    """A table with a line for every tensor that was not simply kept, and the counts."""
    table = Table("tensor", "fate", "detail", title=", ".join(f"{n} {fate}" for fate, n in summary(changes).items()))
    for change in changes:
        if change.fate != "kept":
            table.add_row(*change)
    return table


def summary(changes: list[Change]) -> Counter[str]:
    """How many tensors met which fate."""
    return Counter(change.fate for change in changes)


def shape(value: Tensor) -> str:
    """ "3x4" of a tensor's shape."""
    return "x".join(map(str, value.shape))


def continued(model: Model, source: Pipeline) -> Model:
    """The source's architecture, with the options of the recipe that its family allows to change.

    It has the recipe's family where that extends the source's (Skip-DiT extends DiT).
    """
    own: dict[str, Any] = {key: value for key, value in source.net.config.items() if key not in SHAPE}
    own |= {key: value for key, value in model.options.items() if key in source.net.changeable}
    kind, theirs = find(model.name)[0], type(source.net)
    if kind is not theirs and issubclass(kind, theirs):
        own["name"] = name_of(kind, own)
    return Model(**own)


def inherited(settings: Diffusion, source: Objective, origin: str) -> str:
    """A line on process, target and timestep input: that they are the source's, or which of them differ.

    Args:
        settings: of the recipe, as they were given.
        source: how the model to start from was trained.
        origin: its name.
    """
    if follows_source(settings):
        options = "".join(f", {key} = {value}" for key, value in process_options(source.process).items())
        return (
            f"process, target and timestep input are those of {origin}: "
            f"{source.target} on {process_name(source.process)}{options}"
        )
    now = make_objective(settings)
    parts = {
        "timestep input": (not same(now.process, source.process, "clock"), "time embedding"),
        "process": (not same(now.process, source.process, "alpha", "sigma"), "blocks"),
        "target": (now.target != source.target, "head"),
    }
    differing = {name: part for name, (differs, part) in parts.items() if differs}
    if not differing:
        return f"process, target and timestep input are those of {origin}, as the recipe sets them"
    return (
        f"{origin} was trained with another {listed(list(differing))}; its {listed(list(differing.values()))} must "
        "adapt (without process and target in [diffusion] the run takes those of the model)"
    )


def same(a: Process, b: Process, *values: str) -> bool:
    """Whether two processes have the same functions of time, such as "alpha" and "sigma"."""
    times = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    return all(bool(torch.allclose(getattr(a, name)(times), getattr(b, name)(times))) for name in values)


def listed(words: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])
