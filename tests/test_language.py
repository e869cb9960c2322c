"""The words that users read: plain technical English, the field's own terms.

The test reads docstrings, comments, messages, help, the page, README and guides. The words below are never right in
them; a quotation that needs one stands in `QUOTATIONS`.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEVER = {  # pattern: what to write
    r"pictures?": "image",
    r"draws?|drawn|drawings?": "sample, generate",
    r"grey|colou?red? in|colours?": "gray, color",
    r"licen[c]e": "license",
    r"memoris\w+": "memorization",
    r"(optimis|normalis|initialis|tabulat?is|recognis|summaris|organis|parametris)\w*": "-ize",
    r"judg(e|es|ed|ing)": "evaluate",
    r"(read|reads) rightly": "classified correctly",
    r"shall": "will, must",
    r"told|tells": "reports, shows",
    r"foreign": "external, third-party",
    r"somebody else'?s?": "third-party",
    r"whoever": "the process (user) that",
    r"turned away": "rejected",
    r"begun anew|drawn anew|anew": "again, restarted",
    r"one's own|of one's": "your",
    r"label tables?": "class-embedding table",
    r"null row": "null-class embedding",
    r"the way of (a|the) (sample|picture|image)": "trajectory",
    r"earned back": "pays off",
    r"foretold": "predicted",
    r"dear": "expensive",
    r"worked out ahead": "precomputed",
    r"made out": "spelled out",
    r"neighbour\w*|behaviour\w*|artefact\w*|modelled|labelled|centred?": "US spelling",
    r"came without its autoencoder": "has no autoencoder",
    r"done with its share": "has finished its part",
    r"going on without": "continuing without",
    r"worse than nothing|makes? nothing of": "name what happens",
    r"each of its own|of their own accord": "a separate one, automatically",
    r"a fiftieth|a hundredth": "2 %, 1 %",
    r"asks? to load": "would run",
    r"sums? the same": "computes the same",
}
NEVER_RIGHT = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): instead for pattern, instead in NEVER.items()}
QUOTATIONS = (  # names of others, and old spellings that are still accepted
    "ImageDraw",
    "`memorisation`",
    "`--grey`",
    "`--data.grey`",
    "`grey`",
    "`licence=`",
    "`--draw-labels`",
    "`--pictures`",
    "`--with-pictures`",
    "`--drawings`",
)


def python_texts(file):
    """Docstrings, other strings and comments of a source file, with their line numbers."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            if token.type == tokenize.STRING and re.fullmatch(r"[rbuf]*['\"][\w.:/-]*['\"]", token.string):
                continue  # a key or a name, not a sentence
            yield token.start[0], token.string


def plain_texts(file):
    """Lines of a file that is text throughout."""
    yield from enumerate(file.read_text().splitlines(), start=1)


def page_texts(file):
    """What a page shows: text between tags, and strings of two words or more in scripts."""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if file.suffix == ".html":
            yield (
                number,
                re.sub(
                    r"<[^>]*>",
                    lambda tag: " ".join(re.findall(r'(?:title|alt|aria-label|placeholder)="([^"]*)"', tag[0])),
                    line,
                ),
            )
        else:
            yield (
                number,
                " ".join(part for part in re.findall(r'"([^"]*)"|`([^`]*)`', line) for part in part if " " in part),
            )


def sources():
    yield from ((file, python_texts) for file in sorted((ROOT / "src").rglob("*.py")))
    yield from ((file, python_texts) for file in sorted((ROOT / "benchmarks").glob("*.py")))
    yield from ((file, plain_texts) for file in sorted((ROOT / "docs").glob("*.md")))
    yield ROOT / "docs" / "studies" / "README.md", plain_texts
    others = ("*.md", ".github/*.md", "docs/reference/*.md", "docs/tutorials/*.md", "examples/*.ipynb")
    yield from ((file, plain_texts) for pattern in others for file in sorted(ROOT.glob(pattern)))
    yield from ((file, python_texts) for file in sorted((ROOT / "examples").glob("*.py")))
    yield from ((file, plain_texts) for file in sorted((ROOT / "recipes").rglob("*.toml")))
    yield from (
        (file, page_texts)
        for file in sorted((ROOT / "src/ditlab/server/page").iterdir())
        if file.suffix in (".js", ".html")
    )


def wrong_words(file, texts):
    """`line: word (what to write)` for each word that is never right."""
    for number, text in texts(file):
        for quotation in QUOTATIONS:
            text = text.replace(quotation, "")
        for pattern, instead in NEVER_RIGHT.items():
            for match in pattern.finditer(text):
                line = number + text.count("\n", 0, match.start())
                yield f"{file.relative_to(ROOT)}:{line}: {match[0]!r} (write: {instead})"


@pytest.mark.parametrize(
    ("file", "texts"), sources(), ids=lambda value: str(value.relative_to(ROOT)) if isinstance(value, Path) else ""
)
def test_no_word_that_is_never_right(file, texts):
    assert not [*wrong_words(file, texts)]


def test_wrong_words_are_found_where_users_read_them(tmp_path, monkeypatch):
    monkeypatch.setattr("test_language.ROOT", tmp_path, raising=False)
    file = tmp_path / "x.py"
    file.write_text('"""A picture."""\n\nname = "grey"\nline = f"{name} shall be drawn"  # whoever reads this\n')
    found = [text for _, text in python_texts(file)]
    assert any("picture" in text for text in found)
    assert any("whoever" in text for text in found)
    assert '"grey"' not in found  # a key


FLAG = re.compile(r"(?:^|[\s(\"'`])--[a-z][\w-]*")
COMMAND = re.compile(r"(?:ditlab|\{command\}) [a-z-]+ .*", re.DOTALL)  # a command to run may have flags


def messages(file):
    """Strings of a source file that are no docstrings, with their line numbers; `{name}` for what is inserted."""
    tree = ast.parse(file.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (value.value if isinstance(value, ast.Constant) else ast.unparse(value) for value in node.values)
            yield node.lineno, "".join(part.removeprefix("f'").removesuffix("'") for part in parts)
        elif isinstance(node, ast.Constant) and not isinstance(parents[node], ast.Expr | ast.JoinedStr):
            yield node.lineno, node.value if isinstance(node.value, str) else ""


def flags(file):
    return [f"{file.name}:{line}: {text}" for line, text in messages(file) if FLAG.search(COMMAND.sub("", text))]


FLAG_NAMES = ("--model.name", "--model.", "--")  # with which the reader of recipes compares words of a command line


def test_only_the_command_line_names_its_flags():
    package = ROOT / "src" / "ditlab"
    files = [file for file in sorted(package.rglob("*.py")) if file.relative_to(package).parts[0] != "cli"]
    found = [line for file in files for line in flags(file)]
    assert not [line for line in found if not line.endswith(tuple(f": {name}" for name in FLAG_NAMES))]


def test_a_flag_in_a_message_is_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        '"""Has --docs."""\n\nerror = f"{out} exists; add --overwrite"\nnote = "run: ditlab train x --out y"\n'
    )
    assert [line.partition(":")[2].partition(":")[0] for line in flags(file)] == ["3"]
