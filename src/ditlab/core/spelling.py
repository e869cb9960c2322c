"""Spellings of one path or name: `~`, relative and absolute paths, composed and decomposed Unicode."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ditlab.core.errors import InputError

LONGEST = 200  # bytes of a name to which a number or the parts of a temporary name are added; file systems allow 255
UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|]')
RESERVED = re.compile(r"(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³]|conin\$|conout\$) *(\..*)?", re.IGNORECASE)  # on Windows


def path_name(text: str, longest: int = LONGEST) -> str:
    """The name of a file or folder for a text from data: on every system a name in its folder, and no hidden one.

    Signs that are special in paths become "_". Names that would be hidden, or are reserved, begin with "_".

    Args:
        text: any text.
        longest: bytes of the name; longer ones are cut.
    """
    name = UNSAFE.sub("_", text.encode("utf-8", "replace").decode()).rstrip(" .").lstrip(" ")
    name = name.encode()[:longest].decode(errors="ignore").rstrip(" .")
    return f"_{name.lstrip('.')}" if not name or name[0] == "." or RESERVED.fullmatch(name) else name


def nfc(text: str) -> str:
    """The composed form of a name (NFC). macOS stores file names decomposed, and keyboards type composed letters."""
    return unicodedata.normalize("NFC", text)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: damaged bytes of file names and arguments become surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def all_nfc(names: Iterable[str]) -> list[str]:
    """The composed form of all names."""
    return [nfc(name) for name in names]


def expand(path: str) -> str:
    """Replace a leading `~` or `~user` of a path by the home folder; other texts are returned unchanged.

    The shell does this only for words that begin with `~`, and not after `=` or in recipes.

    Raises:
        InputError: the home folder is not known.
    """
    prefix = "hf:" if path.startswith("hf:~") else ""
    rest = path.removeprefix(prefix)
    if not rest.startswith("~"):
        return path
    try:
        return f"{prefix}{Path(rest).expanduser()}"
    except RuntimeError:
        user = re.split(r"[/\\]", rest)[0]
        raise InputError(
            f"{path}: the home folder {user} is not known; give the whole path, or ./{rest} for a file of this name"
        ) from None


def with_slashes(path: str) -> str:
    """A path with "/" between its names, as it is written to files; on Windows it may have backslashes."""
    return path.replace(os.sep, "/")


def same_place(a: str, b: str) -> bool:
    """Whether two texts are the same name, or spellings of the same path."""
    return a == b or bool(a and b and os.path.realpath(expand(a)) == os.path.realpath(expand(b)))


def absolute(text: str) -> str:
    """The absolute spelling of an existing path, or of a pattern in an existing folder; other names are unchanged.

    It has "/" between the names on every system.
    """
    path = Path(expand(text))
    pattern = any(sign in path.name for sign in "*?[{") and path.parent.is_dir()
    return with_slashes(os.path.abspath(path)) if pattern or path.exists() else text


def is_utf8(path: str | Path) -> bool:
    """Whether a path is UTF-8; on Linux it may have any bytes, which Python holds as surrogates."""
    return str(path) == str(path).encode(errors="ignore").decode()
