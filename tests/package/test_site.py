"""The documentation site builds offline without a warning, and loads nothing from other hosts."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe)[^>]*\ssrc=\"(https?:[^\"]*)|<link[^>]*rel=\"stylesheet\"[^>]*href=\"(https?:[^\"]*)"
)


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_loads_nothing_from_other_hosts(tmp_path):
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("index.html"))
    assert len(pages) > 25
    assert not [(page, LOADED.findall(page.read_text())) for page in pages if LOADED.search(page.read_text())]
    reference = (tmp_path / "reference/python/index.html").read_text()
    assert 'id="ditlab.Pipeline.push_to_hub"' in reference
    assert 'id="ditlab.checkpoints.load.load"' in reference
    commands = (tmp_path / "reference/command-line/index.html").read_text()
    assert "--train.images" in commands
    assert "Table of Contents" not in commands
    assert (tmp_path / "examples/nginx.conf").exists()


SMALL_SITE = """
site_name: a
theme: material
plugins: []
extra: {version: {provider: mike}}
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs make")
def test_versions_of_the_site_are_added_to_a_branch(tmp_path):
    """With the project's Makefile and a site of one page, because the whole one takes long on a busy machine."""
    pytest.importorskip("mike")

    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def publish(*words):
        """Add a version; returns the page to which `/` leads."""
        subprocess.run(["make", "docs-version", *words], cwd=tmp_path, check=True)
        return re.search(r"url=(.*?)/", git("show", "gh-pages:index.html"))[1]

    for name in ("Makefile", ".gitignore", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mkdocs.yml").write_text(SMALL_SITE)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# a\n")
    git("init", "--quiet")
    git("config", "user.name", "a")
    git("config", "user.email", "a@b")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv/.docs").touch()  # installed
    assert publish("VERSION=dev") == "dev"
    assert publish("VERSION=0.1", "ALIAS=latest") == "latest"
    assert publish("VERSION=dev") == "latest"
    assert git("ls-tree", "--name-only", "gh-pages").split() == [
        ".nojekyll", "0.1", "dev", "index.html", "latest", "versions.json"
    ]  # fmt: skip
    versions = json.loads(git("show", "gh-pages:versions.json"))
    assert [(entry["version"], entry["aliases"]) for entry in versions] == [("dev", []), ("0.1", ["latest"])]
    assert not git("status", "--short")


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]), ids=lambda p: p.name
)
def test_links_of_pages_outside_the_site_lead_to_files(page):
    """`mkdocs build --strict` checks those within the site."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
