"""The house rules: imports go one way, and importing is quick and quiet."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ditlab.backbones import BACKBONES

SOURCE = Path(__file__).parents[1] / "src" / "ditlab"
ORDER = (  # a package imports only packages that stand before it
    "core",
    "config",
    "backbones",
    "conditioning",
    "diffusion",
    "autoencoders",
    "report",
    "data",
    "inference",
    "checkpoints",
    "evaluation",
    "training",
    "profiling",
    "study",
    "auto",
    "server",
    "cli",
    "__main__",
)
LEVEL = {name: level for level, name in enumerate(ORDER)}


def part(path):
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


@cache
def syntax(path):
    """All nodes of a file of the package, which several rules read."""
    return [*ast.walk(ast.parse(path.read_text()))]


def imports(nodes):
    """The packages of ditlab that the nodes of a file import, in every form in which Python lets it."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "ditlab":
            yield from (alias.name if alias.name in LEVEL else "__init__" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ditlab."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == "ditlab":
                    yield rest.split(".")[0] or "__init__"


FILES = sorted(SOURCE.rglob("*.py"))


def test_imports_go_one_way():
    for path in FILES:
        if path == SOURCE / "__init__.py":  # hands out names of all layers, lazily
            continue
        own = part(path)
        for other in imports(syntax(path)):
            assert other in LEVEL, f"{path} must not import {other}: it hands out names of all layers"
            assert other == own or LEVEL[other] < LEVEL[own], f"{path} must not import {other}"


def test_every_form_of_import_is_seen(tmp_path):
    file = tmp_path / "euler.py"
    file.write_text(
        "def up():\n    from ditlab import training\n    import ditlab.cli\n    import ditlab.study.run as run\n"
    )
    assert [*imports(syntax(file))] == ["training", "cli", "study"]
    file = tmp_path / "heun.py"
    file.write_text("from ditlab import load\nimport ditlab\nfrom ditlab.server.app import create_app\n")
    assert [*imports(syntax(file))] == ["__init__", "__init__", "server"]


def test_the_ground_floor_has_no_more_rooms_than_the_layout():
    rooms = {path.name.removesuffix(".py") for path in SOURCE.glob("*") if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__"} <= {*ORDER, "__init__"}


def test_the_longest_chain_of_imports_is_short():
    needs = {name: set() for name in ORDER}
    for path in FILES:
        if path != SOURCE / "__init__.py":
            needs[part(path)] |= {other for other in imports(syntax(path)) if other != part(path)}
    lengths = {}
    for name in ORDER:  # what a package needs stands before it
        lengths[name] = 1 + max((lengths[other] for other in needs[name]), default=0)
    assert lengths["__main__"] == max(lengths.values()) <= 11


def test_functions_and_files_are_short():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 400, path
        for node in syntax(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                command = part(path) == "cli" and any("command" in ast.dump(each) for each in node.decorator_list)
                lines = node.end_lineno - node.lineno + 1
                assert lines <= (40 if command else 60), f"{path}: {node.name} has {lines} lines"


def test_only_backbones_and_checkpoints_name_a_family():
    """General code asks the backbone what it needs to know; only the layouts of files are those of a family."""
    families = {kind.__name__ for kind in BACKBONES.values()}
    for path in FILES:
        if part(path) in ("backbones", "checkpoints"):
            continue
        nodes = [node for node in syntax(path) if isinstance(node, ast.ImportFrom)]
        assert not {alias.name for node in nodes for alias in node.names} & families, path


def broken_lines(nodes):
    """Consoles that wrap lines at the width of a screen, and lines that are printed on a console without `say`."""
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "Console" and "quiet" not in ast.dump(node):
            yield f"{node.lineno}: use make_console"
        if isinstance(node.func, ast.Attribute) and node.func.attr == "print" and node.args:
            first = node.args[0]
            if isinstance(first, ast.JoinedStr) or (isinstance(first, ast.Constant) and isinstance(first.value, str)):
                yield f"{node.lineno}: use say"


def test_no_console_breaks_lines():
    for path in FILES:
        if path != SOURCE / "core" / "terminal.py":
            assert not [*broken_lines(syntax(path))], path


def test_a_console_that_breaks_lines_is_found():
    text = 'console = Console(stderr=True)\nConsole(quiet=True)\nconsole.print(f"{a} b")\nconsole.print(table)\n'
    assert [*broken_lines(ast.walk(ast.parse(text)))] == ["1: use make_console", "3: use say"]


def loaded_after(code):
    script = f"import sys; {code}; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_package_and_command_line_do_not_import_torch():
    assert "torch" not in loaded_after(
        "import ditlab, ditlab.cli, ditlab.config.reader; ditlab.cli.import_commands('')"
    )


@pytest.mark.slow
def test_help_of_training_lists_options_of_networks_without_torch():
    code = "import sys; sys.argv = ['ditlab', 'train', '--help']; import ditlab.cli; ditlab.cli.main()"
    found = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    assert "--model.depths" in found.stdout
    assert "ditlab.config.sections" in found.stderr
    assert "torch" not in found.stderr


def test_library_does_not_import_extras():
    loaded = loaded_after("import ditlab; ditlab.load, ditlab.train, ditlab.create, ditlab.evaluation")
    assert "torch" in loaded
    assert not {"diffusers", "sklearn", "matplotlib", "torchvision", "transformers"} & loaded
    assert "torch._dynamo" not in loaded  # two seconds
