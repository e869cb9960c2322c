"""README, tutorials and notebooks work as they are written: their code runs in order, in an empty folder.

Training takes minutes, so `REDUCED` replaces some words of a page before it runs; each of them must be in the page.
`NOT_RUN` lists the beginnings of commands that do not run here, with the reason.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from helpers import free_port
from PIL import Image

from ditlab.cli import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = {
    "make ": "setup", "python3 -m venv": "setup", "pip install": "setup",
    "ditlab serve": "runs until it is stopped",
    "ditlab bench": "measures for a minute",
    "ditlab evaluate runs/mine --reference images/": "downloads the Inception network",
    "ditlab convert DiT-XL-2-256x256.pt": "needs a published file",
    "ditlab train sd3-lora": "needs a published file",
}  # fmt: skip
LITTLE = "--images 320 --yes --model.name Hourglass-XS --model.width 16 --model.heads 1 --model.depth 1 --model.outer 8"
SETTINGS = (
    'images=320, settings={"model": {"name": "Hourglass-XS", "width": 16, "heads": 1, "depth": 1, "outer": (8,)}}'
)
TEXT = "ditlab train emoji-text --images 128 --sample.steps 2 --out runs/demo-text"
CLIPS = (  # enough that clips differ, which the score needs
    "ditlab train moving-digits --model.depth 1 --train.batch 4 --images 64 --optim.warmup 0 --train.ema 0.5"
    " --sample.steps 2"
)
STAND_IN = {"images = 110_000": "images = 256", "images = 30_000": "images = 256", "--count 2600": "--count 260"}
SERVICE = "127.0.0.1:7860"
DEMO = "ditlab train digits --train.images=256 --model.depth=1 --out runs/demo"
REDUCED = {
    "README.md": {
        "ditlab demo --text": TEXT,
        "ditlab study scaling": "ditlab study scaling --dry-run",
        'ditlab.create("DiT-XL/2"': 'ditlab.create("DiT-S/2"',
        'ditlab.train("digits",': 'ditlab.train({"data": {"source": "digits"}, "train": {"images": 64}},',
        "minutes=30": SETTINGS,
        "count=1000": "count=100",
        "--count 1000": "--count 100",
        "ditlab train images/ --minutes 30": f"ditlab train images/ {LITTLE}",
        "--export images --count 2600": "--export images --count 260",
        "ditlab train hourglass-glyphs-32": f"ditlab train hourglass-glyphs-32 {LITTLE} --optim.warmup 0",
        "ditlab train moving-digits": CLIPS,
        "runs/quick --steps 4": "runs/quick --steps 4 --images 256",
    },
    "docs/tutorials/first-model.md": {
        "ditlab demo\n": f"{DEMO}\n",
        "images = 60_000": "images = 256",
        '"images": 12_800': '"images": 256',
        "--count 1000": "--count 100",
    },
    "docs/tutorials/your-images.md": {
        "--export photos --count 2600": "--export photos --count 260",
        "ditlab train photos --minutes 30": f"ditlab train photos {LITTLE}",
        "minutes=30": SETTINGS,
    },
    "docs/tutorials/text-to-image.md": {
        "ditlab demo --text\n": f"{TEXT}\n",
        "--count 200": "--count 8",
        "--minutes 3": "--images 128 --sample.steps 2",
    },
    "docs/tutorials/video.md": {
        "ditlab train moving-digits": CLIPS,
        "--minutes 10 ": "",
        "--count 200": "--count 10",
        "--count 100": "--count 20",
    },
    "docs/tutorials/fine-tune.md": STAND_IN,
    "docs/tutorials/serve.md": {SERVICE: SERVICE},
    "examples/text-to-image.ipynb": {
        "ditlab demo --text": TEXT,
        "--count 200": "--count 8",
        "--minutes 3": "--images 128 --sample.steps 2",
    },
    "examples/fine-tune.ipynb": STAND_IN,
    "examples/first-model.ipynb": {"ditlab demo": DEMO, '"images": 12_800': '"images": 256', "count=1000": "count=100"},
    "examples/your-images.ipynb": {"--count 2600": "--count 260", "minutes=30": SETTINGS},
}


def blocks(page):
    """(language, code, title) of each block of code of a Markdown page or of a notebook, with less training."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        found = [("python", "".join(cell["source"]), "") for cell in cells]
    else:
        found = [(language.partition(" ")[0], code, language) for language, code in BLOCK.findall(text)]
    for old, new in REDUCED[page].items():
        assert any(old in code for _, code, _ in found), f"{page} has no {old!r}"
        found = [(language, code.replace(old, new), title) for language, code, title in found]
    return found


def run_command(line, monkeypatch):
    if any(line.startswith(beginning) for beginning in NOT_RUN):
        return
    words = shlex.split(line, comments=True)
    if words[0] == "curl":
        subprocess.run([words[0], "--fail", *words[1:]], check=True)
        return
    assert words[0] == "ditlab", f"no rule for {line!r}"
    monkeypatch.setattr("sys.argv", words)
    main()


def run_python(code, names, page, monkeypatch):
    """Run Python code, in which a line that begins with "!" is a command."""
    names["_run"] = lambda line: run_command(line, monkeypatch)
    lines = [f"_run({line[1:]!r})" if line.startswith("!") else line for line in code.splitlines()]
    exec(compile("\n".join(lines), page, "exec"), names)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A folder with what a reader has, and quick scores of a training without a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ditlab.evaluation.features.own.STEPS", 30)
    for name in ("tuning", "finish"):
        for constant in ("FEWEST", "MOST", "BATCH"):
            monkeypatch.setattr(f"ditlab.auto.{name}.{constant}", 66)
    return tmp_path


@pytest.fixture
def for_readme(prepared, monkeypatch):
    """What the commands of the README presuppose: the demo's model."""
    run_command(DEMO, monkeypatch)


def follow(page, monkeypatch):
    names = {}
    for language, code, title in blocks(page):
        if language == "python":
            run_python(code, names, page, monkeypatch)
        elif language == "toml":
            Path(re.search(r'title="(.*)"', title)[1]).write_text(code)
        elif language in ("", "bash"):
            for line in code.splitlines():
                if line.strip():
                    run_command(line.strip(), monkeypatch)
        else:
            raise AssertionError(f"{page}: no rule for blocks of {language}")
    return names


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readme(for_readme, monkeypatch):
    names = follow("README.md", monkeypatch)
    assert len(names["images"]) == 2
    assert names["done"].score is not None
    assert Path("samples/edited/grid.png").exists()
    assert Path("runs/mine/recipe.toml").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["docs/tutorials/first-model.md", "examples/first-model.ipynb"])
def test_first_model(prepared, monkeypatch, page):
    names = follow(page, monkeypatch)
    assert names["result"].metrics["fd_digits"] > 0
    assert Image.open("three.png").size == (128, 128)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["docs/tutorials/your-images.md", "examples/your-images.ipynb"])
def test_your_images(prepared, monkeypatch, page):
    names = follow(page, monkeypatch)
    assert names["done"].pipe.classes[:3] == ["A", "B", "C"]
    assert Path("models/photos/model.safetensors").exists()
    assert len([*Path("samples/first-class").glob("*.png")]) >= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["docs/tutorials/text-to-image.md", "examples/text-to-image.ipynb"])
def test_text_to_image(prepared, monkeypatch, page):
    names = follow(page, monkeypatch)
    assert [len(names[name]) for name in ("images", "red", "between")] == [4, 4, 5]
    assert len([*Path("captioned").glob("*.txt")]) == 360
    assert len([*Path("samples/captioned").glob("*-seed*.png")]) == 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_video(prepared, monkeypatch):
    names = follow("docs/tutorials/video.md", monkeypatch)
    assert (names["continued"][0][0] == names["out"].videos[0][0]).all()
    assert names["longer"][0].shape == (24, 32, 32, 1)
    assert len([*Path("samples/clips").glob("*.gif")]) == 8
    assert Path("runs/clips/recipe.toml").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", ["docs/tutorials/fine-tune.md", "examples/fine-tune.ipynb"])
def test_fine_tune(prepared, monkeypatch, page):
    names = follow(page, monkeypatch)
    assert names["pipe"].classes[:3] == ["A", "B", "C"]
    assert Path("letters.pt").exists()
    assert Path("models/letters/pipeline.py").exists()


@pytest.fixture
def service(prepared, monkeypatch):
    """The service of the demo's model, at a free port, which replaces that of the page."""
    run_command(DEMO, monkeypatch)
    port = free_port()
    monkeypatch.setitem(REDUCED["docs/tutorials/serve.md"], SERVICE, f"127.0.0.1:{port}")
    command = [sys.executable, "-m", "ditlab", "serve", "runs/demo", "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/ready")
            yield
        finally:
            process.terminate()


def wait_for(address):
    for _ in range(240):
        try:
            with urlopen(address):
                return
        except URLError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not respond")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_serve(service, monkeypatch, capsys):
    follow("docs/tutorials/serve.md", monkeypatch)
    assert len(json.loads(Path("response.json").read_text())["data"]) == 2
    assert "400 label 33 is out of range; this model has the classes 0 to 9" in capsys.readouterr().out
    again = next(Path("samples/again").glob("*-seed0.png"))
    assert Image.open(again).size == Image.open("served-0.png").size == (8, 8)


def test_every_page_has_code_and_a_rule_for_it():
    pages = {"README.md", *(f"docs/tutorials/{path.name}" for path in (ROOT / "docs/tutorials").glob("*.md"))}
    pages -= {"docs/tutorials/index.md"}
    pages |= {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.ipynb")}
    assert pages == REDUCED.keys()
    assert all(len(blocks(page)) >= 5 for page in pages)
