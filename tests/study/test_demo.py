import json

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


def test_demo_scores_what_it_drew(small, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["ditlab", "demo", "--json"])
    results = []
    for _ in range(2):  # the second time the trained model is there already
        main()
        results.append(json.loads(capfd.readouterr().out))
    first, second = results
    assert first["folder"] == "runs/demo"
    assert 0 <= first["accuracy"] < 0.6  # hardly trained
    assert first["classifier_accuracy"] >= 0.98
    assert first["fd"] > 5 * first["fd_floor"] > 0
    assert first["train_seconds"] > 0
    assert first["sample_seconds"] > 0
    for key in ("accuracy", "fd", "fd_floor", "train_seconds"):
        assert second[key] == first[key]
    assert Image.open(small / "runs" / "demo" / "grid.png").size[0] > 20 * 48


def test_demo_says_where_the_pictures_are_and_what_to_try(small, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["ditlab", "demo"])
    main()
    text = capfd.readouterr().out
    assert "pictures: runs/demo/grid.png" in text
    assert "ditlab sample runs/demo --labels 3 7" in text
    assert "ditlab train digits --out runs/mine" in text
    assert "x the floor of" in text
