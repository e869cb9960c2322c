"""The command line. Commands import what they need when they run, so that `--help` is quick.

Exit codes: 0 for success; 2 for input that cannot be used, with one line on standard error; 1 for a failure while
running; 130 after Ctrl-C. With `--json`, standard output has one JSON object and nothing else. With `--debug`, the
traceback of an error is printed too.
"""

import sys
import traceback
import warnings
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from cyclopts import CycloptsError

from ditlab.cli.negative import with_negative_frames
from ditlab.cli.recipes import usage_error
from ditlab.cli.renames import renamed
from ditlab.cli.terminal import app, fail
from ditlab.core.device import keep_freed_memory
from ditlab.core.errors import InputError, PlugInError, RunError
from ditlab.core.formats import reason
from ditlab.core.plugins import import_plugin
from ditlab.core.printable import printable

DEBUG = "--debug"  # an option of every command
PACKAGE = Path(__file__).parents[1]
GROUPS = {  # module of this package -> its commands; only the module of the command is imported
    "data": ("data", "encode", "train-autoencoder"),
    "evaluation": ("compare", "evaluate", "features", "memorization", "reference", "sweep"),
    "distilling": ("distill",),
    "fields": ("rollout",),
    "following": ("score-prompts",),
    "models": ("average", "convert", "export", "info"),
    "sampling": ("sample",),
    "serving": ("serve",),
    "setup": ("completion", "env"),
    "speed": ("bench",),
    "training": ("config", "demo", "plan", "study", "train", "watch"),
    "tuning": ("tune",),
}


def import_commands(name: str) -> None:
    """Import the module of a command, which registers the command; all modules for `--help` and unknown names."""
    modules = [module for module, commands in GROUPS.items() if name in commands]
    for module in modules or GROUPS:
        import_module(f"ditlab.cli.{module}")


def import_plugins(arguments: list[str]) -> list[str]:
    """Import the plug-ins of all `--import FILE_OR_MODULE`, an option of every command; returns the other arguments."""
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option != "--import":
            others.append(argument)
            continue
        plugin = value if equals else next(remaining, "")
        if not plugin or plugin.startswith("-"):
            raise InputError("--import has no value; give a .py file or the name of a module")
        import_plugin(plugin)
    return others


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line; those of other libraries keep their place."""
    if category in (FutureWarning, UserWarning) and Path(filename).is_relative_to(PACKAGE):
        print(f"ditlab: {printable(str(message))}", file=sys.stderr)
    else:
        print(printable(warnings.formatwarning(message, category, filename, lineno, line)), end="", file=sys.stderr)


def escape_missing_letters() -> None:
    """Print what the encoding of a stream lacks, such as letters in a Windows console, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    escape_missing_letters()
    warnings.showwarning = show_warning
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        tokens = with_negative_frames(renamed(import_plugins(arguments)))
        import_commands(tokens[0] if tokens else "")
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        fail(*outcome(error))


def outcome(error: Exception) -> tuple[str, int]:
    """The line that a command prints for an error, and its exit code."""
    match error:
        case CycloptsError():
            return usage_error(error), 2
        case PlugInError():
            return f"{error} (add --import {error.module})", 2
        case InputError():
            return str(error), 2
        case RunError():
            return str(error), 1
        case MemoryError():
            return f"not enough memory ({reason(error)}); give a smaller batch or smaller images", 1
        case OSError():
            where = f"{error.filename}: " if error.filename else "cannot write: "
            return f"{where}{error.strerror or error}; free some space or give another path", 2
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"internal error: {type(error).__name__}: {reason(error)} ({Path(last.filename).name}, line {last.lineno}); "
        f"please open an issue with the command and with what it prints with {DEBUG}"
    ), 1
