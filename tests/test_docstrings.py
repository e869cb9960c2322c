"""Every public name has a docstring, and a list of arguments names all of them; read without importing anything."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PAGES = sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.md"))
REFERENCED = sorted({name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)})


def homes():
    """Public name -> module, from the table in ditlab/__init__.py."""
    tree = ast.parse((SOURCE / "ditlab/__init__.py").read_text())
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES")
    return ast.literal_eval(table)


def parsed(module):
    path = SOURCE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def definition(module, name):
    """The class or function of a name, and its module; imports are followed."""
    for node in parsed(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return definition(node.module, name)
    raise LookupError(f"{module} has no {name}")


def members(node, module):
    """Public methods and properties of a class and its bases in ditlab, by name."""
    found = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            try:
                found |= members(*definition(module, base.id))
            except (LookupError, FileNotFoundError):  # of the standard library or of torch
                continue
    own = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    own = [item for item in own if not any(text.endswith(".setter") for text in map(ast.unparse, item.decorator_list))]
    return found | {item.name: item for item in own if not item.name.startswith("_") or item.name == "__init__"}


def undescribed(node, docstring):
    """Arguments of a function that its docstring does not name."""
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls") and not re.search(rf"\b{name}\b", docstring)]


def faults(name, node, module):
    docstring = ast.get_docstring(node) or ""
    if not docstring:
        yield f"{name} has no docstring"
    if isinstance(node, ast.FunctionDef):
        yield from (f"{name} does not describe {argument}" for argument in undescribed(node, docstring))
        return
    for method, item in members(node, module).items():
        text = ast.get_docstring(item) or (docstring if method == "__init__" else "")
        if not text:
            yield f"{name}.{method} has no docstring"
        if "Args:" in text:
            yield from (f"{name}.{method} does not describe {argument}" for argument in undescribed(item, text))


PUBLIC = [(name, module) for name, module in homes().items()] + [
    (path.rpartition(".")[2], path.rpartition(".")[0]) for path in REFERENCED if path.count(".") > 1
]


@pytest.mark.parametrize(("name", "module"), PUBLIC)
def test_public_names_are_documented(name, module):
    assert not [*faults(name, *definition(module, name))]


def test_the_reference_has_every_public_name():
    assert homes().keys() <= {path.rpartition(".")[2] for path in REFERENCED}
    assert {path for path in REFERENCED if path.count(".") == 1} <= {f"ditlab.{name}" for name in homes()}


def test_the_reference_lists_every_kind_of_plug_in():
    tree = ast.parse((SOURCE / "ditlab/__init__.py").read_text())
    kinds = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "_KINDS")
    page = (Path(__file__).parents[1] / "docs/reference/plug-ins.md").read_text()
    assert re.findall(r"`ditlab\.register_(\w+)\(", page) == sorted(ast.literal_eval(kinds))


def test_missing_docstrings_are_found():
    node = ast.parse(
        'class A:\n    """An a."""\n\n    def f(self, x): ...\n\n    @property\n    def g(self): ...\n'
    ).body[0]
    assert [*faults("A", node, "ditlab")] == ["A.f has no docstring", "A.g has no docstring"]
    node = ast.parse('def f(x, y):\n    """An f.\n\n    Args:\n        x: one.\n    """\n').body[0]
    assert [*faults("f", node, "ditlab")] == ["f does not describe y"]
