"""The documentation site builds offline without a warning, and loads nothing from other hosts."""

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


LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.ipynb")]), ids=lambda p: p.name
)
def test_links_of_pages_outside_the_site_lead_to_files(page):
    """`mkdocs build --strict` checks those within the site."""
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]
