"""Hooks of the documentation site: the examples are a part of it, and the command-line reference is generated."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?:\.\./)+examples/")
CONTENTS = re.compile(r"^## Table of Contents\n.*?(?=^#)", re.MULTILINE | re.DOTALL)
COMMANDS = "<!-- commands -->"


def on_files(files, config):
    """Add the files of examples/, to which pages link."""
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links to ../examples/ reach the examples in the site, and write the command-line reference."""
    up = posixpath.relpath(".", posixpath.dirname(page.file.src_uri))
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, commands())
    return LINK.sub(f"]({up}/examples/", markdown)


def commands():
    """Return the options of all commands as Markdown, from the help texts of the command line."""
    from ditlab.cli import import_commands
    from ditlab.cli.terminal import app

    import_commands("")
    return CONTENTS.sub("", app.generate_docs(heading_level=2))  # the page has a list of its headings already
