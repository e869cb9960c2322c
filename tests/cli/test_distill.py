"""The command `ditlab distill`."""

import pytest


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "ditlab.training.distill", lambda run, out, *, console, **options: calls.append((run, str(out), options))
    )
    return calls


def test_the_options_reach_the_call(ditlab, called):
    printed = ditlab("distill", "runs/a", "runs/b", "--steps", "2", "--guidance", "1", "3", "--images", "1e4")
    options = {"steps": 2, "guidance": (1.0, 3.0), "guidance_interval": None, "images": 10_000, "correction": 0}
    assert called == [("runs/a", "runs/b", options)]
    assert printed.err == "model, recipe and report are in runs/b; try: ditlab sample runs/b\n"
    ditlab("distill", "runs/a", "runs/b", "--guidance-interval", "0.1", "0.7", "--correction", "5e3")
    options = {"steps": 1, "guidance": None, "guidance_interval": (0.1, 0.7), "images": None, "correction": 5000}
    assert called[1] == ("runs/a", "runs/b", options)


def test_bad_input_is_one_line(ditlab, tmp_path):
    line = ditlab("distill", tmp_path / "none", tmp_path / "out", code=2).err
    assert line.count("\n") == 1
    assert line.startswith(f"ditlab: no model at {tmp_path / 'none'}, which does not exist; give a model folder")
    assert "steps" in ditlab("distill", "a", "b", "--steps", "0", code=2).err
