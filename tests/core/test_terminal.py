"""Lines are never broken, in files, pipes and terminals."""

import io
import logging

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ditlab import cli as command_line
from ditlab.cli import show_warning
from ditlab.cli.terminal import fail, show
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError, RunError
from ditlab.core.printable import one_line, printable
from ditlab.core.progress import progress_bar
from ditlab.core.terminal import LineConsole, make_console, say
from ditlab.server.log import LogLines
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


@pytest.mark.slow
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
    assert capsys.readouterr().err == f'ditlab: unknown class "{one_line(name)}"\n'


NAME = "\x1b]0;title\x07[/b] :smile: \x9b2J\r\n"
SHOWN = "\\x1b]0;title\\x07[/b] :smile: \\x9b2J\\r"


@pytest.mark.parametrize("error", [InputError, RunError])
def test_errors_are_one_line(error):
    assert str(error(f"unknown class {NAME}")) == f"unknown class {SHOWN}\\n"
    assert str(error(error(NAME))) == f"{SHOWN}\\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("cell", [str, Text])
def test_tables(terminal, cell):
    file = io.StringIO()
    console = LineConsole(file=file, width=100, force_terminal=terminal, color_system=None)
    table = Table("name", title=NAME, box=None)
    table.add_row(cell(NAME))
    console.print(table)
    console.print(cell(NAME))
    text = file.getvalue()
    assert not set("\x1b\x07\x9b\r") & set(text)
    assert text.count("\\x1b]0;title") == 3


def test_progress_lines():
    file = io.StringIO()
    with progress_bar(LineConsole(file=file, width=100, force_terminal=True, color_system=None)) as bar:
        bar.add_task("reading \x9b2J", total=1)
    assert "reading \\x" in file.getvalue()
    assert "\x9b" not in file.getvalue()


@pytest.mark.parametrize("category", [UserWarning, FutureWarning])
def test_warnings(capsys, category):
    show_warning(NAME, category, command_line.__file__, 1)
    assert SHOWN in capsys.readouterr().err


def test_standard_output(capsys):
    show(NAME.strip())
    assert capsys.readouterr().out == SHOWN.removesuffix("\\r") + "\n"


def test_the_log_of_the_service():
    try:
        raise KeyError(NAME.strip())
    except KeyError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "a %s", (NAME,), (KeyError, error, error.__traceback__))
    lines = LogLines("%(levelname)s: %(message)s").format(record).splitlines()
    assert lines[0] == f"ERROR: a {SHOWN}"
    assert not any(sign in line for line in lines for sign in "\x1b\x07\x9b\r")
