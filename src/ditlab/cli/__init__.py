"""The command line: parse, build, call. Handlers import what they need, so that `--help` is quick.

Exit code 0 on success; 2 on input that cannot be used, with one line on standard error; 1 on a failure while
running; 130 after Ctrl-C. `--json` prints one JSON object on standard output and nothing else.
"""

import sys

from cyclopts import CycloptsError

from ditlab.cli import data, evaluation, models, sampling, serving, training  # noqa: F401 - each adds its commands
from ditlab.cli.renames import renamed
from ditlab.cli.terminal import app, fail
from ditlab.config.reader import one_line
from ditlab.core.device import keep_freed_memory
from ditlab.core.errors import InputError, RunError
from ditlab.core.plugins import import_plugin


def import_plugins(arguments: list[str]) -> list[str]:
    """Import what `--import FILE_OR_MODULE` names, which every command takes; returns the other arguments."""
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option != "--import":
            others.append(argument)
            continue
        plugin = value if equals else next(rest, "")
        if not plugin or plugin.startswith("-"):
            raise InputError("--import needs the plug-in: a .py file or the name of a module")
        import_plugin(plugin)
    return others


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    try:
        tokens = renamed(import_plugins(sys.argv[1:]))
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        fail(one_line(error), 2)
    except InputError as error:
        fail(str(error), 2)
    except RunError as error:
        fail(str(error), 1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "cannot write: "
        fail(f"{where}{error.strerror or error}; free some space or give another path", 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)
