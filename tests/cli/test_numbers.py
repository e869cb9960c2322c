"""Numbers on the command line: each option has a range, and other numbers are one line that names the option."""

from dataclasses import fields
from typing import get_args

import pytest

from ditlab.cli import GROUPS, import_commands
from ditlab.cli.terminal import app
from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.sampling import SamplingOptions
from ditlab.config.sections import AutoencoderTraining, Preparation

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
    text = ["--text-length", "--text-width", "--vocabulary", "--pooled-width"]
    network = [
        *text,
        "--depth",
        "--width",
        "--heads",
        "--patch",
        "--frequency-shift",
        "--exits",
        "--depths",
        "--multiples",
    ]
    assert set(without) <= (
        {*network, "--budget", "--attention-at", "--head-width", "--outer", "--outer-depth"}
        if command == "info"
        else set()
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("data x --count=0", "--count is 0; give 1 or more"),
        ("encode x --autoencoder a --out o --tile 0", "--tile is 0; give 1 or more"),
        ("encode x --autoencoder a --out o --scale nan", "--scale is nan; give a finite number"),
        ("encode x --autoencoder a --out o --shard=-1", "--shard is -1; give 1 or more"),
        ("reference x --out o.npz --keep=-1", "--keep is -1; give 0 or more"),
        ("sweep x --try-guidance 1 nan", "--try-guidance is nan; give a number that is not negative"),
        ("sweep x --try-steps 5 0", "--try-steps is 0; give 1 or more"),
        ("sweep x --repeats 0", "--repeats is 0; give 1 or more"),
        ("average x o --width 1.5", "--width is 1.5; give a number from 0 to 1"),
        ("bench x --rounds 0", "--rounds is 0; give 1 or more"),
        ("sample x --strength nan", "--strength is nan; give a number from 0 to 1"),
        ("sample x --count 99999999999999999999", "--count is 99999999999999999999; give a number of at most"),
        ("tune x --steps 4 0", "--steps is 0; give 1 or more"),
        ("tune x --guidance inf", "--guidance is inf; give a number that is not negative"),
        ("serve x --port 65536", "--port is 65536; give 0 to 65535"),
        ("serve x --drawings 0", "--drawings is 0; give 1 or more"),
        ("serve x --max-seconds nan", "--max-seconds is nan; give a number from 0.01 to 1e+06"),
        ("serve x --client-seconds=-1", "--client-seconds is -1.0; give a number from 0.01 to 1e+06"),
        ("plan digits --devices 0", "--devices is 0; give 1 or more"),
        ("watch x --seconds nan", "--seconds is nan; give a number that is not negative"),
        ("sample x --labels", "parameter --labels requires at least 1 element. Got 0."),
        ("sample x --seeds", "parameter --seeds requires at least 1 element. Got 0."),
        ("sweep x --try-guidance", "parameter --try-guidance requires at least 1 element. Got 0."),
        ("evaluate x --metrics", "parameter --metrics requires at least 1 element. Got 0."),
        ("train digits --train.power-ema", "parameter --train.power-ema requires at least 1 element. Got 0."),
    ],
)
def test_other_numbers_are_one_line(ditlab, words, line):
    error = ditlab(*words.split(), code=2).err
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["nan", "2", "-1"])
def test_an_inspection_checks_the_settings_of_images(ditlab, tmp_path, value):
    error = ditlab("data", tmp_path, f"--max-skipped={value}", code=2).err
    assert error == f"ditlab: max_skipped is {float(value)}; give a number from 0 to 1\n"
