"""Options of networks: their names, types and help texts come from the signature and docstring of the class.

A parameter `width: int` of `__init__` is the key `width` of a recipe, and its help text is the entry under "Args:" in
the docstring of the class. The families of the package are read from their source text, so that the command line can
print its help without importing PyTorch; other classes are imported.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

PLAIN = (int, float, bool, str)
NAMESPACE = {"Sequence": Sequence, "Mapping": Mapping, "Literal": Literal, "Any": Any, "Callable": Callable}


@dataclass(frozen=True)
class Option:
    """A keyword argument that a recipe can set."""

    name: str
    hint: Any  # int, float, bool, str, a Literal, a tuple of one of these, or a union of them
    help: str
    families: tuple[str, ...]


@dataclass(frozen=True)
class Families:
    """A registry of classes, and the options of each class.

    Args:
        folder: folder of the source files; its `__init__.py` defines the registry.
        registry: name of the registry, a dictionary of names and classes.
        resolve: "module:function" that imports the class of a name.
        excluded: parameters that are not options because ditlab sets them itself.
    """

    folder: Path
    registry: str
    resolve: str
    excluded: tuple[str, ...] = ()

    def known(self) -> tuple[Option, ...]:
        """Return the options of all families in the folder, without importing them."""
        return _known(self)

    def of(self, name: str) -> tuple[Option, ...]:
        """Return the options of a name such as "DiT-S/2", or of "package.module:Class", which is imported.

        Raises:
            InputError: no class has this name.
        """
        options = tuple(option for option in self.known() if any(is_of(name, family) for family in option.families))
        if options:
            return options
        module, _, function = self.resolve.partition(":")
        kind = getattr(import_module(module), function)(name)
        return tuple(self.options(name, signature_of(kind), help_of(kind)))

    def options(self, family: str, signature: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[Option]:
        """Yield the options among the parameters of one class.

        Args:
            family: name of the class in the registry.
            signature: parameter -> annotation.
            texts: parameter -> help text.
        """
        for name, annotation in signature.items():
            hint = None if name in self.excluded else as_hint(annotation)
            if hint is not None:
                yield Option(name, hint, texts.get(name, ""), (family,))


def is_of(name: str, family: str) -> bool:
    """Whether a name ("DiT" or "DiT-S/2") belongs to a family ("DiT")."""
    return name == family or name.startswith(f"{family}-")


@cache
def _known(source: Families) -> tuple[Option, ...]:
    classes, registry = read_classes(source.folder, source.registry)
    options: dict[str, list[Option]] = {}
    for family, name in registry.items():
        for option in source.options(family, *read_class(name, classes)):
            options.setdefault(option.name, []).append(option)
    return tuple(joined(of_name) for of_name in options.values())


def joined(options: Sequence[Option]) -> Option:
    """Combine the options of one name that several families have."""
    texts: dict[str, list[str]] = {}
    for option in options:
        texts.setdefault(option.help.rstrip("."), []).extend(option.families)
    families = tuple(family for option in options for family in option.families)
    text = "; ".join(f"{text} ({', '.join(names)})".strip() for text, names in texts.items())
    return replace(options[0], hint=union([option.hint for option in options]), help=f"{text}.", families=families)


# Reading source text.


def read_classes(folder: Path, registry: str) -> tuple[dict[str, ast.ClassDef], dict[str, str]]:
    """Parse all files of a folder; returns the classes by name, and the registry as name -> name of the class."""
    classes: dict[str, ast.ClassDef] = {}
    names: dict[str, str] = {}
    for file in sorted(folder.glob("*.py")):
        for node in ast.parse(outline(file.read_text(encoding="utf-8"))).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
            elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == registry:
                entries = next(part for part in ast.walk(node) if isinstance(part, ast.Dict))
                pairs = zip(entries.keys, entries.values, strict=True)
                names |= {ast.literal_eval(key): ast.unparse(value) for key, value in pairs if key is not None}
    return classes, names


def outline(source: str) -> str:
    """Return formatted source without the bodies of functions, which halves the parsing time."""
    kept: list[str] = []
    indent, in_signature = -1, False
    for line in source.splitlines():
        depth = len(line) - len(line.lstrip())
        if not in_signature and indent >= 0 and (depth > indent or not line.strip()):
            continue  # in the body of a function
        kept.append(line)
        if not in_signature:
            in_signature = re.match(r"\s*def ", line) is not None
            indent = depth if in_signature else -1
        code = line.split("  #")[0]  # the formatter puts two spaces before a comment
        if in_signature and code.endswith((":", "...")):
            in_signature = False
            kept += [" " * (indent + 4) + "pass"] if code.endswith(":") else []
    return "\n".join(kept)


def read_class(name: str, classes: Mapping[str, ast.ClassDef]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return annotations and help texts of the parameters of a class, from its source and the source of its bases."""
    signature: dict[str, Any] = {}
    texts: dict[str, str] = {}
    while name in classes:
        node = classes[name]
        texts = arguments_in(ast.get_docstring(node) or "") | texts
        begin = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
        if not signature and isinstance(begin, ast.FunctionDef):
            parameters = [*begin.args.args[1:], *begin.args.kwonlyargs]
            signature = {parameter.arg: evaluated(parameter.annotation) for parameter in parameters}
        name = ast.unparse(node.bases[0]) if node.bases else ""
    return signature, texts


def evaluated(annotation: ast.expr | None) -> Any:
    """Evaluate an annotation in the source of the package; Any if it is not a plain type."""
    try:
        return eval(ast.unparse(annotation), dict(NAMESPACE)) if annotation is not None else Any
    except NameError:
        return Any


# Reading classes.


def signature_of(kind: type) -> dict[str, Any]:
    """Annotations of the parameters of a class by name."""
    return {
        name: parameter.annotation
        for name, parameter in inspect.signature(kind, eval_str=True).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }


def help_of(kind: type) -> dict[str, str]:
    """Help texts of parameters by name, from the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= arguments_in(inspect.cleandoc(base.__doc__ or ""))
    return texts


def arguments_in(docstring: str) -> dict[str, str]:
    """The entries under "Args:" of a docstring by parameter, each on one line with a capital first letter."""
    _, _, section = docstring.partition("Args:\n")
    texts: dict[str, str] = {}
    names: Iterable[str] = ()
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if match := re.match(r"    (\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            texts |= dict.fromkeys(names, match[2])
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return {name: text[:1].upper() + text[1:] for name, text in texts.items()}


def as_hint(annotation: Any) -> Any:
    """Convert the annotation of a parameter to the type of its recipe key; None if a recipe has no such type."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in PLAIN or origin is Literal:
        return annotation
    if origin in (Union, UnionType):
        hints = [as_hint(part) for part in parts if part is not NoneType]
        return None if not hints or None in hints else union(hints)
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        hints = [as_hint(part) for part in parts]
        return None if None in hints else tuple[tuple(hints)]  # type: ignore[misc]
    if origin in (Sequence, list, tuple) and parts:
        hint = as_hint(parts[0])
        return None if hint is None else tuple[hint, ...]  # type: ignore[valid-type]
    return None


def union(hints: Sequence[Any]) -> Any:
    """Return the union of a list of types."""
    return Union[tuple(hints)]  # noqa: UP007


MODEL = Families(
    folder=Path(__file__).parents[1] / "backbones",
    registry="BACKBONES",
    resolve="ditlab.backbones:class_of",  # a text, because config does not import networks
    excluded=("size", "channels", "classes", "learn_variance"),
)


def model_options(name: str = "") -> tuple[Option, ...]:
    """Options of the network of a name; without a name, of all families of the package."""
    return MODEL.of(name) if name else MODEL.known()
