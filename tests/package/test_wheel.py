"""What is published: the wheel works outside the checkout, and its metadata are complete."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
HOST = "https://example.com/owner/ditlab"


def build(folder, monkeypatch, repository=""):
    """Build both archives; returns the wheel and the source archive."""
    pytest.importorskip("hatchling")
    monkeypatch.setenv("DITLAB_REPOSITORY", repository)
    monkeypatch.setenv("DITLAB_REVISION", "v1")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def size_of_data(wheel):
    """Bytes of the compressed files of the package that are not Python sources."""
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.startswith("ditlab/")]
    return sum(member.compress_size for member in members if not member.filename.endswith(".py"))


@pytest.mark.slow
def test_links_of_the_index_page_are_absolute(tmp_path, monkeypatch):
    about = metadata(build(tmp_path, monkeypatch, HOST)[0])
    assert about["Author"] == "The ditlab authors"
    assert f"Changelog, {HOST}/blob/v1/CHANGELOG.md" in about.get_all("Project-URL")
    text = about.get_payload()
    assert f"]({HOST}/raw/v1/docs/images/digits.png)" in text
    assert f"]({HOST}/blob/v1/docs/training.md)" in text
    assert not [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith("https://")]


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(tmp_path, monkeypatch):
    wheel, source = build(tmp_path, monkeypatch)
    about = metadata(wheel)
    assert about.get_all("Project-URL") is None
    assert not re.findall(r"\]\((?!https:)", about.get_payload())
    assert wheel.stat().st_size < 1_200_000  # 1.14 MB, 85 % of it Python sources, each file compressed on its own
    assert size_of_data(wheel) < 100_000  # 74 kB of page and recipes
    with tarfile.open(source) as archive:
        names = archive.getnames()
        assert not [name for name in names if "/docs/" in name or "/tests/" in name]
        assert any(name.endswith("recipes/studies/scaling.toml") for name in names)
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--no-cache-dir", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    libraries = Path(torch.__file__).parents[1]  # read as a path only: its .pth files, such as ditlab's, are not
    installed = next((tmp_path / "env").rglob("site-packages"))
    (installed / "libraries.pth").write_text(str(libraries))
    (outside := tmp_path / "outside").mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(*command):
        done = subprocess.run(command, cwd=outside, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    ditlab = python.with_name("ditlab")
    assert "Train" in run(ditlab, "--help")
    assert " 6.06 " in run(ditlab, "info", "DiT-S/2")  # GMACs, as in the paper
    code = """
import ditlab
from pathlib import Path
from ditlab.config.reader import shipped_recipes
print(Path(ditlab.__file__).parent)
print(*[len(shipped_recipes(kind)) for kind in ("", "evaluation", "studies")])
print(ditlab.Recipe.load("digits").data.source)
print(*sorted(path.name for path in (Path(ditlab.__file__).parent / "server/page").iterdir()))
"""
    place, counts, source, page = run(python, "-c", code).splitlines()
    assert Path(place) == installed / "ditlab"
    expected = [len([*(ROOT / "recipes" / kind).glob("*.toml")]) for kind in ("", "evaluation", "studies")]
    assert counts.split() == [str(count) for count in expected]
    assert source == "digits"
    assert page.split() == sorted(path.name for path in (ROOT / "src/ditlab/server/page").iterdir())
    start = re.search(r"```python\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.DOTALL)[1]
    assert len(start.strip().splitlines()) <= 10
    little = '{"data": {"source": "digits"}, "train": {"images": 64}, "model": {"name": "DiT-S/8"}}'
    run(python, "-c", start.replace('"digits"', little, 1))  # from an empty folder to the first image
    assert Image.open(outside / "three.png").size == (256, 256)
    run(ditlab, "sample", "runs/digits", "--labels", "3", "--seeds", "0", "--steps", "2", "--out", "samples")
    assert (outside / "samples" / "grid.png").exists()


def test_one_version_everywhere():
    version = re.search(r'"(.*)"', (ROOT / "src/ditlab/core/version.py").read_text().splitlines()[-1])[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_extra_is_in_the_readme_and_in_all():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    everything = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert everything == extras.keys() - {"all", "dev", "docs", "lowbit", "mamba", "minilm", "studio"}
    table = (ROOT / "README.md").read_text().split("| extra | adds |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z]+)`", table)) == everything | {"all", "lowbit", "mamba", "minilm"}
