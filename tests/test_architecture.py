"""The house rules: imports go one way, and importing is quick and quiet."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "ditlab"
LAYERS = [
    {"errors", "__init__"},
    {"types", "config", "files", "hardware", "unfilled"},
    {"backbones", "diffusion", "autoencoders"},
    {"samplers", "speed"},
    {"model_folder", "model_card", "pictures", "watching"},
    {"data"},
    {"editing"},
    {"pipeline"},
    {"interop", "sampling"},
    {"evaluation", "encoding"},
    {"training", "bench", "tuning"},
    {"planning", "studio"},
    {"demo", "study"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def part(path):
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    """The parts of ditlab that a file imports, `from ditlab import x` counting as the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ditlab":
            pieces = node.module.split(".")
            yield pieces[1] if len(pieces) > 1 else "__init__"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    if path == SOURCE / "__init__.py":  # hands out names of all layers, lazily
        return
    own = part(path)
    for other in imports(path):
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} must not import {other}"


def loaded_after(code):
    script = f"import sys; {code}; print(*sorted(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_package_and_command_line_do_not_import_torch():
    assert "torch" not in loaded_after("import ditlab, ditlab.cli, ditlab.config")


def test_library_does_not_import_extras():
    loaded = loaded_after("import ditlab; ditlab.load, ditlab.train, ditlab.create, ditlab.evaluation")
    assert "torch" in loaded
    assert not {"diffusers", "sklearn", "matplotlib", "torchvision", "transformers"} & loaded
    assert "torch._dynamo" not in loaded  # two seconds
