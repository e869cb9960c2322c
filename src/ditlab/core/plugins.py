"""Plug-ins: modules or files that register parts when they are imported."""

import importlib.util
import sys
from pathlib import Path

from ditlab.core.errors import InputError, nearest_path
from ditlab.core.registry import described, import_module
from ditlab.core.spelling import expand


def import_plugin(text: str) -> None:
    """Import a plug-in: a file such as `mynet.py`, or a module such as `mypackage.nets`.

    A file is imported as the module of its name, so that `mynet:MyNet` refers to a class in it.

    Raises:
        InputError: the plug-in does not exist, or raises an error on import; the message has file and line number.
    """
    if not text.endswith(".py"):
        if getattr(import_module(text), "__file__", None) is None and Path(text).is_dir():
            raise InputError(f"{text} is a folder without __init__.py; give the .py file in it")
        return
    file = Path(expand(text))
    if not file.is_file():
        raise InputError(
            f"there is no plug-in file {file}; {nearest_path(file, 'give a .py file or the name of a module')}"
        )
    loaded = sys.modules.get(file.stem)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() != file.resolve():
            raise InputError(f'a module "{file.stem}" exists already; give the plug-in file another name')
        return
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[file.stem]
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot import {file}: {described(error)}") from error
