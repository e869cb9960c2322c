import json
import re

import pytest
from PIL import Image

from ditlab.cli import main
from ditlab.study import demo

SMALL = """
model = {name = "DiT-S/4", width = 32, depth = 1, heads = 2}
train = {images = 128, batch = 32}
sample = {sampler = "euler", steps = 2}
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(SMALL)
    monkeypatch.setattr(demo, "find_recipe", lambda name: tmp_path / "small.toml")
    monkeypatch.setattr(demo, "SAMPLES", 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_demo_scores_its_samples(small, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["ditlab", "demo", "--json"])
    results = []
    for _ in range(2):  # the second call uses the trained model of the first one
        main()
        results.append(json.loads(capfd.readouterr().out))
    first, second = results
    assert first["folder"] == "runs/demo"
    assert 0 <= first["accuracy"] < 0.6  # after four training steps
    assert first["classifier_accuracy"] >= 0.98
    assert first["fd"] > 5 * first["fd_floor"] > 0
    assert first["train_seconds"] > 0
    assert first["sample_seconds"] > 0
    for key in ("accuracy", "fd", "fd_floor", "train_seconds"):
        assert second[key] == first[key]
    assert Image.open(small / "runs" / "demo" / "grid.png").size[0] > 20 * 48


@pytest.mark.slow
def test_the_demo_prints_scores_and_next_commands(small, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["ditlab", "demo"])
    main()
    text = capfd.readouterr().out
    assert "images: runs/demo/grid.png" in text
    assert "ditlab sample runs/demo --labels 3 7" in text
    assert "ditlab train digits --out runs/mine" in text
    assert re.search(r"trained in \d+ s, generated 200 digits in \d+ s", text)
    assert re.search(r"classified correctly: [\d.]+ % \(classifier accuracy on held-out real digits: [\d.]+ %\)", text)
    assert re.search(r"Frechet distance to held-out real digits: [\d.]+, [\d.]+x the real-vs-real FD of [\d.]+", text)
