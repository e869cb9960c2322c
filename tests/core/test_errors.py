"""Messages that name what the user probably meant."""

import pytest

from ditlab.core.errors import nearest, nearest_path


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("runs/dmeo", "did you mean runs/demo?"),
        ("rusn/demo", "did you mean runs/demo?"),
        ("Runs/DEMO", "did you mean runs/demo?"),
        ("rusn/dmeo/checkpoint", "did you mean runs/demo/checkpoints?"),
        ("./runs/dmeo", "did you mean runs/demo?"),
        ("my.tmol", "did you mean my.toml?"),
        ("runs/other", "give the folder of a run"),
        ("my.toml/x", "give the folder of a run"),
        ("runs/demo", "give the folder of a run"),  # it exists, but is something else
        ("runs/secret", "give the folder of a run"),  # a hidden name is not proposed
        ("x" * 5000, "give the folder of a run"),
        ("", "give the folder of a run"),
    ],
)
def test_the_nearest_existing_path(given, answer, tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / ".secret").mkdir()
    (tmp_path / "my.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_path(given, "give the folder of a run") == answer


def test_absolute_paths_and_folders_that_lead_up(tmp_path, monkeypatch):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert nearest_path(tmp_path / "runs" / "dmeo", "") == f"did you mean {tmp_path / 'runs' / 'demo'}?"
    monkeypatch.chdir(tmp_path / "runs" / "demo")
    assert nearest_path("../dmeo", "") == "did you mean ../demo?"


def test_the_nearest_name():
    assert nearest("Hune", ["heun", "euler"]) == 'did you mean "heun"?'
    assert nearest("xyz", ["heun", "euler"]) == "choose from: heun, euler"
