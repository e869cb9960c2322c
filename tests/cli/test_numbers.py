"""Numbers on the command line: each option has a range, and other numbers are one line that names the option."""

import inspect
from dataclasses import fields
from typing import get_args

import pytest

from ditlab.backbones import BACKBONES
from ditlab.cli import GROUPS, import_commands
from ditlab.cli.terminal import app
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.sampling import SamplingOptions
from ditlab.config.sections import Preparation

CHECKED = (Preparation, SamplingOptions, Evaluation, Copying, AutoencoderTraining)  # by `check_settings`


def numbers_in(hint):
    return hint in (int, float) or any(numbers_in(part) for part in get_args(hint))


def options(command):
    """The numeric options of a command."""
    return [argument for argument in app[command].assemble_argument_collection() if numbers_in(argument.hint)]


def has_range(argument):
    """Whether numbers are checked as they are read; those in a list belong to the type of its items."""
    return bool(argument.parameter.validator) or validated(argument.hint)


def validated(hint):
    notes = getattr(hint, "__metadata__", ())
    return any(getattr(note, "validator", None) for note in notes) or any(validated(part) for part in get_args(hint))


@pytest.mark.parametrize("command", [name for names in GROUPS.values() for name in names])
def test_every_number_of_a_command_has_a_range(command):
    import_commands("")
    # The ranges of settings in recipes are in tests/config/test_fields.py, those of networks depend on the network.
    checked = {f"--{field.name.replace('_', '-')}" for kind in CHECKED for field in fields(kind)}
    without = [argument.name for argument in options(command) if not has_range(argument)]
    without = [name for name in without if "." not in name and name not in checked]
    parameters = {name for kind in BACKBONES.values() for name in inspect.signature(kind).parameters}
    network = {f"--{name.replace('_', '-')}" for name in parameters}
    assert set(without) <= {"info": network, "encode": {"--encoder-options"}}.get(command, set())
