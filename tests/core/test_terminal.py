"""Lines are never broken, in files, pipes and terminals."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditlab.cli.terminal import fail
from ditlab.config.reader import parse_recipe
from ditlab.core.terminal import LineConsole, make_console, printable, say
from ditlab.training import train

COMMAND = "ditlab sample runs/demo --out samples --labels " + " ".join(map(str, range(60)))  # 215 characters


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_stays_whole(terminal):
    for console in (LineConsole, Console):
        file = io.StringIO()
        say(console(file=file, width=80, force_terminal=terminal, color_system=None), f"[try] {COMMAND}")
        assert file.getvalue() == f"[try] {COMMAND}\n"
    file = io.StringIO()
    console = LineConsole(file=file, width=80, force_terminal=terminal, color_system=None)
    console.print(COMMAND, markup=False)
    console.print(Text(COMMAND))
    assert file.getvalue() == 2 * f"{COMMAND}\n"


def test_a_table_has_the_width_of_its_content_in_a_file_and_fits_a_terminal(capsys):
    table = Table("name")
    table.add_row("long " * 40)
    make_console().print(table)
    assert ("long " * 40).strip() in capsys.readouterr().out
    file = io.StringIO()
    LineConsole(file=file, width=60, force_terminal=True, color_system=None).print(table)
    assert max(map(len, file.getvalue().splitlines())) == 60


def test_the_log_of_a_run_has_whole_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / ("a-long-name-" * 10)
    recipe = {
        "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
        "train": {"images": 32, "batch": 16, "precision": "float32", "compile": "never", "device": "cpu"}
        | {"preview_every": 1000, "log_every": 16},
        "sample": {"sampler": "euler", "steps": 1},
    }
    train(parse_recipe(recipe), folder)
    train(parse_recipe(recipe), folder)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "data: digits: 1,437 images of 8x8 pixels, gray, uint8, 0..255"
    assert lines[2] == "training DiT-S/4 on cpu in float32"
    assert lines[3].startswith("          16/32 images  ")
    assert lines[3].endswith(" s left")
    assert lines[5] == f"{folder} is already trained on 32 images; raise train.images to continue"
    assert len(lines) == 6


def test_control_characters_are_shown_as_escapes(capsys):
    name = "a\x1b]0;title\x07\x1b[31m\r\x9b2J\u202e\u2028é\t中\nb"
    expected = "a\\x1b]0;title\\x07\\x1b[31m\\x0d\\x9b2J\\u202e\\u2028é\t中\nb"
    assert printable(name) == expected.replace("\\x0d", "\\r")
    with pytest.raises(SystemExit):
        fail(f'unknown class "{name}"', 2)
    assert capsys.readouterr().err == f'ditlab: unknown class "{printable(name)}"\n'
