"""Registries: the parts of each kind (backbones, samplers, ...) by name, including parts from outside the package.

A registry is a dict. Its method `find` also accepts "package.module:Name", from recipes and Python callers.
`core.errors.lookup` accepts names only, because requests over the network must not import modules.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ditlab.core.errors import InputError, PlugInError, lookup

V = TypeVar("V")
GROUP = "ditlab.plugins"
REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
REGISTRIES = {  # kind of part -> "module:registry"
    "backbone": "ditlab.backbones:BACKBONES",
    "sampler": "ditlab.diffusion.samplers:SAMPLERS",
    "schedule": "ditlab.diffusion.samplers:SCHEDULES",
    "process": "ditlab.diffusion.process:PROCESSES",
    "target": "ditlab.diffusion.objective:TARGETS",
    "time": "ditlab.diffusion.times:TIMES",
    "weight": "ditlab.diffusion.objective:WEIGHTS",
    "parametrization": "ditlab.diffusion.parametrizations:PARAMETRIZATIONS",
    "objective": "ditlab.training.objectives:OBJECTIVES",
    "aid": "ditlab.training.aids:AIDS",
    "conditioner": "ditlab.conditioning:CONDITIONERS",
    "encoder": "ditlab.conditioning:ENCODERS",
    "dataset": "ditlab.data:DATASETS",
    "metric": "ditlab.evaluation.metrics:METRICS",
    "features": "ditlab.evaluation.features:FEATURES",
    "autoencoder": "ditlab.autoencoders:AUTOENCODERS",
    "tracker": "ditlab.training.trackers:TRACKERS",
}


class Registry(dict[str, V]):
    """The parts of one kind by name."""

    def __init__(
        self,
        what: str,
        entries: Mapping[str, V],
        check: Callable[[str, V], None] | None = None,
        base: type | None = None,
    ) -> None:
        """Start with the parts that come with the package.

        Args:
            what: what messages call one of them, such as "sampler".
            entries: name -> part.
            check: raises an `InputError` for a part from outside that cannot be used.
            base: the class from which all parts derive, where they are classes.
        """
        super().__init__(entries)
        self.what, self.check, self.base = what, check, base

    def register(self, name: str, part: V) -> V:
        """Add a part from outside the package.

        Raises:
            InputError: a name that is taken, or a part that cannot be used.
        """
        if self.get(name, part) is not part:
            raise InputError(f'a {self.what} "{name}" exists already; register yours under another name')
        if not name or not isinstance(name, str):
            raise InputError(f"the name of a {self.what} is {name!r}; give a text that is not empty")
        self.check_part(name, part)
        self[name] = part
        return part

    def check_part(self, name: str, part: V) -> None:
        """Check that a part can be used: a subclass of `base` with all its abstract methods, and what `check` asks for.

        Raises:
            InputError: it cannot.
        """
        if self.base is not None and not (isinstance(part, type) and issubclass(part, self.base)):
            public = f"{self.base.__module__.removesuffix('.base')}.{self.base.__name__}"
            raise InputError(f'the {self.what} "{name}" is no subclass of {public}; derive it from this class')
        if isinstance(part, type) and (missing := sorted(getattr(part, "__abstractmethods__", ()))):
            raise InputError(f'the {self.what} "{name}" has no {", ".join(missing)}; {part.__name__} must define it')
        if self.check is not None:
            self.check(name, part)

    def find(self, name: str) -> V:
        """Return a part by its name, or import it as "package.module:Name".

        Raises:
            InputError: an unknown name (the message proposes the most similar one), or a module that cannot be
                imported.
        """
        if name not in self and is_reference(name):
            check_imported(name, f'{self.what} "{name}"')
            self.register(name, load_reference(name))
        if name not in self:
            load_entry_points()
        return lookup(self, name, self.what)


_FILES_IMPORT = ContextVar("files_import", default=True)


@contextmanager
def imported_parts_only() -> Iterator[None]:
    """Within this block `Registry.find` imports nothing: what a saved file names must be imported already.

    A model folder may come from anyone, and importing a module runs its code.
    """
    before = _FILES_IMPORT.set(False)
    try:
        yield
    finally:
        _FILES_IMPORT.reset(before)


def check_imported(reference: str, part: str) -> None:
    """Refuse to import what a saved file names.

    Args:
        reference: "package.module:Name".
        part: what the message calls it.

    Raises:
        PlugInError: the line says what to import.
    """
    module = reference.partition(":")[0]
    if not _FILES_IMPORT.get() and module not in sys.modules:
        raise PlugInError(f"the {part} is not part of ditlab; import {module} first", module)


def is_reference(text: str) -> bool:
    """Whether a text has the form "package.module:Name"."""
    return REFERENCE.fullmatch(text) is not None


def load_reference(text: str) -> Any:
    """Import the object "package.module:Name".

    Raises:
        InputError: the module cannot be imported, or has no such name.
    """
    path, _, name = text.partition(":")
    module = import_module(path)
    if not hasattr(module, name):
        raise InputError(f'the module {path} has no "{name}"; it has {", ".join(public(module)) or "no public names"}')
    return getattr(module, name)


def public(module: Any) -> list[str]:
    """Names of the first eight public classes and functions of a module."""
    return [name for name, value in vars(module).items() if name[0] != "_" and callable(value)][:8]


def import_module(name: str) -> Any:
    """Import a module by name.

    Raises:
        InputError: the module does not exist or raises an error on import; the message gives the reason in one line.
    """
    try:
        return importlib.import_module(name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot import {name}: {described(error)}") from error


def described(error: Exception) -> str:
    """Describe an error of a plug-in in one line, with the file and line where it was raised."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "importlib" not in file and Path(file).parent != Path(__file__).parent:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        place = f" ({error.filename}, line {error.lineno})"
    return f"{type(error).__name__}: {' '.join(str(getattr(error, 'msg', error)).split())}{place}"


@cache
def load_entry_points() -> None:
    """Import the plug-ins that installed packages declare in the group `ditlab.plugins`, once per process.

    Raises:
        InputError: a plug-in that cannot be imported.
    """
    from importlib import metadata  # it is slow to import, and most processes need no plug-in

    for point in metadata.entry_points(group=GROUP):
        try:
            loaded = point.load()
            if callable(loaded):
                loaded()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot import the plug-in {point.name} ({point.value}): {described(error)}") from error


def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind of part, such as "backbone"."""
    return load_reference(lookup(REGISTRIES, kind, "kind of part"))


def register(kind: str, name: str, part: Any) -> Any:
    """Add a part from outside the package to the registry of its kind, and return the part.

    Args:
        kind: "backbone", "sampler" and so on; `ditlab.register_backbone` has it filled in.
        name: name of the part in recipes and commands.
        part: the class, function or object, as the page about plug-ins describes it for this kind.

    Raises:
        InputError: a name that is taken, or a part that cannot be used.
    """
    return registry(kind).register(name, part)
