"""The documentation site builds offline without a warning, and loads nothing from other hosts."""

import json
import os
import re
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs make")
def test_versions_of_the_site_are_added_to_a_branch(tmp_path, monkeypatch):
    pytest.importorskip("mike")

    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    subprocess.run(["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), tmp_path], check=True)
    git("config", "user.name", "a")
    git("config", "user.email", "a@b")
    programs = Path(sys.executable).parent
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(programs)
    (tmp_path / ".venv/.docs").touch()  # installed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "src"), prepend=os.pathsep)
    for version in ("VERSION=dev", "VERSION=0.1 ALIAS=latest"):
        subprocess.run(["make", "docs-version", *version.split()], cwd=tmp_path, check=True)
    assert git("ls-tree", "--name-only", "gh-pages").split() == [
        ".nojekyll", "0.1", "dev", "index.html", "latest", "versions.json"
    ]  # fmt: skip
    versions = json.loads(git("show", "gh-pages:versions.json"))
    assert [(entry["version"], entry["aliases"]) for entry in versions] == [("dev", []), ("0.1", ["latest"])]
    assert "url=latest/" in git("show", "gh-pages:index.html")
    assert not git("status", "--short", "--untracked-files=no")


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]), ids=lambda p: p.name
)
def test_links_of_pages_outside_the_site_lead_to_files(page):
    """`mkdocs build --strict` checks those within the site."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
