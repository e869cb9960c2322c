"""Starting from a trained model: keep what fits, say what does not.

Classes are matched by name where both sides have names; the null row is always kept. Sin-cos positions are computed
anew for another size. The variance half of the head is added (as zeros) or dropped.
"""

from collections import Counter
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from ditlab.backbones import Backbone
from ditlab.pipeline import Pipeline


class Change(NamedTuple):
    """What became of one tensor."""

    name: str
    fate: str  # kept, adapted, new, dropped
    detail: str


@torch.no_grad()
def transfer(net: Backbone, classes: list[str], source: Pipeline) -> list[Change]:
    """Fill a fresh network with the weights of a trained one.

    Args:
        net: the network to be trained; changed in place.
        classes: its class names.
        source: the trained model.

    Returns:
        The fate of every tensor of both.
    """
    ours, theirs = net.state_dict(), source.net.state_dict()
    changes = [_fill(name, ours[name], theirs, net, classes, source) for name in ours]
    changes += [Change(name, "dropped", shape(value)) for name, value in theirs.items() if name not in ours]
    return changes


def _fill(
    name: str, mine: Tensor, theirs: dict[str, Tensor], net: Backbone, classes: list[str], source: Pipeline
) -> Change:
    if name not in theirs:
        return Change(name, "new", shape(mine))
    value = theirs[name].to(mine)
    if name in net.label_tables and (len(value) != len(mine) or classes != source.classes):
        return _fill_labels(name, mine, value, classes, source.classes)
    if value.shape == mine.shape:
        mine.copy_(value)
        return Change(name, "kept", shape(mine))
    if name in net.heads_out and net.channels == source.net.channels and value.shape[1:] == mine.shape[1:]:
        both = min(net.out_channels, source.net.out_channels)
        grouped = mine.view(-1, net.out_channels, *mine.shape[1:])
        grouped[:, :both] = value.reshape(-1, source.net.out_channels, *value.shape[1:])[:, :both]
        what = "variance half added" if net.learn_variance else "variance half dropped"
        return Change(name, "adapted", f"{shape(value)} -> {shape(mine)}, {what}")
    if name == "pos_embed" and value.shape[-1] == mine.shape[-1]:
        return Change(name, "adapted", f"{shape(value)} -> {shape(mine)}, computed anew")
    return Change(name, "new", f"{shape(mine)}, the source has {shape(value)}")


def _fill_labels(name: str, mine: Tensor, value: Tensor, classes: list[str], known: list[str]) -> Change:
    mine[-1] = value[-1]
    if not classes or not known:
        # Without names on both sides nothing says that two rows mean the same.
        return Change(name, "adapted", f"{len(value) - 1} -> {len(mine) - 1} classes, only the null row kept")
    matched = [(i, known.index(label)) for i, label in enumerate(classes) if label in known]
    for i, j in matched:
        mine[i] = value[j]
    detail = f"{len(value) - 1} -> {len(mine) - 1} classes, {len(matched)} matched by name, null row kept"
    return Change(name, "adapted", detail)


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
