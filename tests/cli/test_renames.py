"""Options of version 0.1 on the command line."""

from pathlib import Path

import pytest

from ditlab import cli
from ditlab.cli.recipes import sampling_notes
from ditlab.cli.renames import COMMANDS, OPTIONS, renamed
from ditlab.config.evaluation import RENAMED


@pytest.mark.parametrize(
    ("command", "old", "new"), [(c, *names) for c, table in OPTIONS.items() for names in table.items()]
)
def test_option_with_a_note(capsys, command, old, new):
    assert renamed([command, "x", old, "1"]) == [command, "x", new, "1"]
    assert renamed([command, f"{old}=1"]) == [command, f"{new}=1"]
    assert f"{old} is now {new}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "plan"])
def test_defaults_of_sampling_in_a_recipe(command):
    """Both commands take a recipe."""
    words = renamed([command, "digits", "--sample.grid", "cosine", "--sample.interval=0.1 0.5"])
    assert words == [command, "digits", "--sample.schedule", "cosine", "--sample.guidance-interval=0.1 0.5"]


def test_command_with_a_note(capsys):
    assert [renamed([old])[0] for old in COMMANDS] == list(COMMANDS.values())
    assert "memorisation is now memorization" in capsys.readouterr().err


def test_keys_of_a_recipe_with_a_note():
    notes = sampling_notes("my.toml", {"labels": "random", "grid": "cosine", "steps": 2}, RENAMED)
    assert [note.partition("; ")[0] for note in notes] == [
        "my.toml: grid is now called schedule",
        "my.toml: labels is now called label_sampling",
    ]


@pytest.mark.parametrize(("file", "line"), [("x.py", "ditlab: train.widths is old\n"), (None, ":3: FutureWarning")])
def test_a_warning_of_ditlab_is_one_line(capsys, file, line):
    place = Path(cli.__file__).parent / file if file else Path("/elsewhere/y.py")
    cli.show_warning(FutureWarning("train.widths is old"), FutureWarning, str(place), 3)
    written = capsys.readouterr().err
    assert written == line if file else line in written
