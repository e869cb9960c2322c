"""The prompts of `ditlab sample`."""

from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from ditlab.cli.options import Request
from ditlab.cli.terminal import command
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline


def with_prompts(request: Request) -> Request:
    """Return a request whose labels are its prompts, if it has any.

    Raises:
        InputError: labels and prompts are given, or the file of prompts cannot be read.
    """
    if request.prompts is None and request.prompts_file is None:
        return request
    if request.labels is not None:
        raise InputError("--labels names classes, and a model that reads prompts has none; leave --labels out")
    prompts = list(request.prompts or ())
    if request.prompts_file is not None:
        from ditlab.inference.prompts import read_prompts

        prompts += read_prompts(request.prompts_file)
    return replace(request, prompts=prompts, labels=prompts)


def check_values(request: Request, pipe: "BasePipeline") -> None:
    """Check that labels are for a model with classes, and prompts for one that reads text.

    Raises:
        InputError: they are not.
    """
    from ditlab.conditioning import Text

    reads_text = isinstance(pipe.conditioner, Text)
    if request.prompts and not reads_text:
        raise InputError("--prompts for a model that reads no text; give --labels")
    if reads_text and request.labels and not request.prompts and request.like is None:
        raise InputError("--labels for a model that reads prompts; give --prompts")


def sampling(run: Path, verb: str = "sample") -> str:
    """The command that generates with the model of a run, with a prompt if the model reads text."""
    from ditlab.core.weights import newest_checkpoint, read_config
    from ditlab.inference.base import PROMPTS

    checkpoint = newest_checkpoint(run)
    prompts = [] if checkpoint is None else read_config(checkpoint).get(PROMPTS, [])
    return f"{command()} {verb} {run}" + (f" --prompts {quote(prompts[0])}" if prompts else "")
