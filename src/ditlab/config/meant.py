"""Messages about mistakes in recipes, which also name what ditlab has in place of other programs' settings."""

import re
from typing import Any

from cyclopts import CycloptsError, UnknownOptionError, ValidationError

REMEDIES = {  # the last part of a name -> a remedy, in which @ stands before a key of a recipe
    "batch": "give @train.batch",
    "batch_size": "give @train.batch",
    "data": "give @data.source",
    "device": "give @train.device",
    "epochs": "give @train.images, the number of images to train on (epochs times the size of the data set)",
    "gpu": "give @train.device",
    "learning_rate": "give @optim.lr",
    "lr": "give @optim.lr",
    "resume": "leave it out: a run in the same folder resumes by itself",
    "seed": "give @train.seed",
    "steps": "give @train.images, the number of images to train on (steps times @train.batch)",
    "weight_decay": "give @optim.weight_decay",
}


def remedy(name: Any, prefix: str = "") -> str | None:
    """Return what to give instead of a setting that no recipe has; None if it is not one of `REMEDIES`.

    Args:
        name: such as "lr", "train.lr" or "--train.batch-size".
        prefix: "--" for options of the command line.
    """
    text = REMEDIES.get(str(name).rpartition(".")[2].lstrip("-").replace("-", "_"))
    if text is None:
        return None
    return text.replace("_", "-").replace("@", prefix) if prefix else text.replace("@", "")


def usage_message(error: CycloptsError) -> str:
    """Return the message of cyclopts in one line, with keys written as "section.key"."""
    if isinstance(error, ValidationError) and error.argument is not None:
        return f"{error.argument.name} {error.exception_message}"
    text = re.sub(r'"?\[(\w+)\]\[(\w+)\]"?', r"\1.\2", " ".join(str(error).split()))
    text = re.sub(r'"?\[(\w+)\]"?', r"\1", text)  # a key of a flat table
    if isinstance(error, UnknownOptionError) and error.token.source != "cli":
        unknown = text.removeprefix("Unknown option: ").partition(" from ")[0]
        if (instead := remedy(unknown)) is not None:
            return f'{error.token.source} has a key "{unknown}" that no recipe has; {instead}'
    name = error.argument.name if error.argument else ""
    return text if not name or name.lstrip("-") in text else f"{name}: {text}"
