"""Start training from the weights of another model: copy the tensors that fit, adapt others, and report both.

Class embeddings are matched by name or by a class map; the null-class embedding is always copied. For another size,
sin-cos positions are recomputed and learned positions are interpolated. The variance half of the head is added (as
zeros) or dropped. Process, target and timestep input are those of the source model unless the recipe sets others.
"""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from ditlab.backbones import BACKBONES, SHAPE, Backbone, find, name_of
from ditlab.backbones.text import TEXT_OPTIONS
from ditlab.conditioning import ClassLabels
from ditlab.config.sections import Diffusion, Model, Recipe, Train
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.formats import parse_json, parse_toml
from ditlab.core.sizes import read_text
from ditlab.core.spelling import nfc
from ditlab.core.terminal import cell
from ditlab.diffusion.flow_map import GuidanceInput
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.parametrizations import completed, follows_source, make_objective
from ditlab.diffusion.process import Process, process_name, process_options
from ditlab.inference.pipeline import Pipeline


class Change(NamedTuple):
    """How one tensor was transferred."""

    name: str
    fate: str  # kept, adapted, new, dropped
    detail: str


@torch.no_grad()
def transfer(net: Backbone, classes: list[str], source: Pipeline, class_map: str = "") -> list[Change]:
    """Copy the weights of a trained model into a new network.

    Args:
        net: the network to be trained; changed in place.
        classes: its class names.
        source: the trained model.
        class_map: a file for `match_classes`; if empty, classes with the same name are matched.

    Returns:
        How each tensor of both networks was transferred.
    """
    targets, sources = net.state_dict(), net.weights_of(source.net)
    same = classes == source.classes and net.classes == source.net.classes and not class_map
    rows = None if same else match_classes(classes, source, class_map)
    changes = [_fill(name, targets[name], sources, net, rows, source) for name in targets]
    changes += [Change(name, "dropped", shape(value)) for name, value in sources.items() if name not in targets]
    adopted = net.adopt(source.net)
    return [Change(one.name, "adapted", adopted[one.name]) if one.name in adopted else one for one in changes]


@torch.no_grad()
def copy_frozen(net: Backbone, source: Pipeline, trained: Sequence[str]) -> None:
    """Copy the weights of the source of low-rank updates into a network without them, except the trained ones."""
    targets = net.state_dict()
    for name, value in source.net.state_dict().items():
        if name in targets and name not in trained:
            targets[name].copy_(value)


def freeze(net: Backbone, parts: Sequence[str]) -> None:
    """Exclude parts of a network from training.

    Args:
        net: the network, changed in place.
        parts: names of modules or parameters, such as "t_embedder".

    Raises:
        InputError: the network has no such part, or nothing would be trained.
    """
    for part in parts:
        frozen = [value for name, value in net.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not frozen:
            known = dict.fromkeys(name.partition(".")[0] for name, _ in net.named_parameters())
            raise InputError(
                f'train.freeze names "{part}", which {net.config["name"]} does not have; its parts are: '
                f"{', '.join(known)}"
            )
        for value in frozen:
            value.requires_grad_(False)
    if not any(value.requires_grad for value in net.parameters()):
        raise InputError("train.freeze names all parts of the network; leave out those that are to be trained")


def _fill(
    name: str, target: Tensor, sources: dict[str, Tensor], net: Backbone, rows: dict[int, int] | None, source: Pipeline
) -> Change:
    if name not in sources:
        return Change(name, "new", shape(target))
    value = sources[name].to(target)
    if name in net.label_tables and rows is not None:
        return _fill_labels(name, target, value, rows)
    if value.shape == target.shape:
        target.copy_(value)
        return Change(name, "kept", shape(target))
    if name in net.heads_out and net.channels == source.net.channels and value.shape[1:] == target.shape[1:]:
        shared = min(net.out_channels, source.net.out_channels)
        grouped = target.view(-1, net.out_channels, *target.shape[1:])
        grouped[:, :shared] = value.reshape(-1, source.net.out_channels, *value.shape[1:])[:, :shared]
        what = "variance half added" if net.learn_variance else "variance half dropped"
        return Change(name, "adapted", f"{shape(value)} -> {shape(target)}, {what}")
    if name in dict(net.named_buffers()):  # positions that are computed, not learned
        return Change(name, "adapted", f"{shape(value)} -> {shape(target)}, computed for this size")
    if name == "pos_embed" and value.shape[-1] == target.shape[-1]:
        resized = interpolated(value, source.net.grid, net.grid)
        # Before the image tokens come the label token, if there are classes, and the time token: align them at the end.
        count = min(target.shape[1], resized.shape[1])
        target[:, -count:] = resized[:, -count:]
        return Change(name, "adapted", f"{shape(value)} -> {shape(target)}, interpolated")
    return Change(name, "new", f"{shape(target)}, the source has {shape(value)}")


def _fill_labels(name: str, target: Tensor, value: Tensor, rows: dict[int, int]) -> Change:
    target[-1] = value[-1]
    for i, j in rows.items():
        target[i] = value[j]
    detail = f"{len(value) - 1} -> {len(target) - 1} classes, {len(rows)} of them matched, null class kept"
    return Change(name, "adapted", detail)


def interpolated(positions: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Resize learned positions (1, extra + rows x columns, D) to another grid bicubically; extra tokens are kept."""
    extra = positions.shape[1] - prod(old)
    field = positions[:, extra:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(field, new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :extra], resized.flatten(2).transpose(1, 2)], dim=1)


def match_classes(classes: list[str], source: Pipeline, file: str = "") -> dict[int, int]:
    """Match classes of the data to classes of a trained model: index here -> index there.

    Args:
        classes: names of the classes to be trained.
        source: the trained model.
        file: a TOML or JSON file with a table {class: class of the source}, both by name or index; if empty, classes
            with the same name are matched, and none if the source has no names.

    Raises:
        InputError: the file cannot be read, or names a class that the data or the source does not have, or one twice.
    """
    if not file:
        return {i: source.classes.index(name) for i, name in enumerate(classes) if name in source.classes}
    pairs = read_pairs(Path(file))
    try:
        columns = ClassLabels(len(classes), classes).encode(list(pairs)).label
    except InputError as error:
        raise InputError(f"{file}, classes of the data: {error}") from None
    try:
        rows = source.conditioner.encode(list(pairs.values())).label
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    if columns is None or rows is None:
        return {}
    matches = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    if len(matches) < len(pairs):
        double = next(i for i, count in Counter(columns.tolist()).items() if count > 1)
        raise InputError(f'{file} maps the class "{classes[double]}" twice; leave one of the lines out')
    return matches


def read_pairs(file: Path) -> dict[str, str | int]:
    """Read a flat table of names or numbers from a TOML or JSON file.

    Raises:
        InputError: the file cannot be read, or holds other values.
    """
    try:
        text = read_text(file)
        pairs = parse_json(text) if text.lstrip().startswith("{") else parse_toml(text)
    except FileNotFoundError:
        raise InputError(f"no class map {file}; {nearest_path(file, 'give an existing file')}") from None
    except OSError as error:
        raise InputError(f"cannot read class map {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"class map {file} is neither TOML nor JSON: {error}") from error
    for name, value in pairs.items():
        if not isinstance(value, str | int):
            raise InputError(f"class map {file} gives {name} the value {value!r}; give a class name or index")
    return {nfc(name): value for name, value in pairs.items()}


def report(changes: list[Change]) -> Table | str:
    """A table of the tensors that were not copied unchanged, with all counts as title; a line if there are none."""
    if all(change.fate == "kept" for change in changes):
        return f"all {len(changes)} tensors kept"
    table = Table("tensor", "fate", "detail", title=", ".join(f"{n} {fate}" for fate, n in summary(changes).items()))
    for change in changes:
        if change.fate != "kept":
            table.add_row(*(cell(value) for value in change))
    return table


def summary(changes: list[Change]) -> Counter[str]:
    """Number of tensors for each way of transfer: kept, adapted, new, dropped."""
    return Counter(change.fate for change in changes)


def shape(value: Tensor) -> str:
    """The shape of a tensor in the form "3x4"."""
    return "x".join(map(str, value.shape))


def continued(model: Model, source: Pipeline) -> Model:
    """The architecture of the source model, with those options of the recipe that may change.

    If the recipe names a class that extends the source's (Skip-DiT extends DiT), or starts from its weights (PixArt
    from DiT), the result has that class; in the second case, with the options of the source that the class has too.
    """
    derived = {*SHAPE, *TEXT_OPTIONS, "inputs"}  # from the data, the autoencoder, the conditioner and the objective
    options: dict[str, Any] = {key: value for key, value in source.net.config.items() if key not in derived}
    (new_class, sizes), source_class = find(model.name), type(source.net)
    changeable = source.net.changeable
    if new_class is not source_class and issubclass(new_class, source_class):
        options["name"] = name_of(new_class, options)
        changeable = new_class.changeable
    elif any(BACKBONES.get(name) is source_class for name in new_class.starts_from):
        known = inspect.signature(new_class).parameters
        options = {key: value for key, value in options.items() if key in known}
        options |= {key: value for key, value in model.options.items() if key not in options and value is not None}
        options |= new_class.options_from(source.net, sizes | model.options)
        options["name"] = name_of(new_class, options)
    options |= {key: value for key, value in model.options.items() if key in changeable}
    return Model(**options)


def completed_recipe(recipe: Recipe, source: Objective | None) -> Recipe:
    """Fill in what a recipe leaves out and the model to start from decides; a network that reads the guidance scale
    keeps doing so.

    Args:
        recipe: the settings.
        source: the objective of the model to start from; None for initial weights.
    """
    train = recipe.train
    if isinstance(source, GuidanceInput) and train.objective == Train().objective:
        train = replace(train, objective="guidance-input")
    return replace(recipe, train=train, diffusion=completed(recipe.diffusion, source))


def inherited(settings: Diffusion, source: Objective, origin: str) -> str:
    """Describe in a line whether process, target and timestep input are those of the source model, or which differ.

    Args:
        settings: the [diffusion] section of the recipe before defaults are filled in.
        source: the objective of the model to start from.
        origin: name of that model.
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
    """Join words to a list in a sentence: "a, b and c"."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])
