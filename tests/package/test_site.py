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
@pytest.mark.timeout(900)
def test_versions_stand_beside_each_other(tmp_path):
    """`make docs-version` adds a version to a branch of a clone, without a network."""
    pytest.importorskip("mike")
    pytest.importorskip("mkdocstrings")
    clone = tmp_path / "clone"
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # mike calls mkdocs
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PATH": programs}
    for kind in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{kind}_NAME": "a", f"GIT_{kind}_EMAIL": "a@example.com"}
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    config = clone / "mkdocs.yml"
    config.write_text(config.read_text().partition("nav:")[0].replace("hooks: [docs/hooks.py]", ""))
    for page in (clone / "docs").rglob("*.md"):
        page.write_text("# Page\n")
    for version, *alias in (["0.1"], ["0.2", "latest"]):
        command = [sys.executable, "-c", "from mike.driver import main; main()", "deploy", "-u", version, *alias]
        subprocess.run(command, cwd=clone, check=True, env=environment)

    def show(name):
        return subprocess.run(["git", "show", f"gh-pages:{name}"], cwd=clone, check=True, capture_output=True).stdout

    versions = json.loads(show("versions.json"))
    assert [(version["version"], version["aliases"]) for version in versions] == [("0.2", ["latest"]), ("0.1", [])]
    assert b"Page" in show("0.1/training/index.html")
    assert b"Page" in show("latest/training/index.html")


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]), ids=lambda p: p.name
)
def test_links_of_pages_outside_the_site_lead_to_files(page):
    """`mkdocs build --strict` checks those within the site."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
