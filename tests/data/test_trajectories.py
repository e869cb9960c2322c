"""Trajectories of fields: exact waves, files of arrays, and pairs of states."""

import numpy as np
import pytest
import torch

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.builtin.waves import DAMPING, STEP, Waves
from ditlab.data.summary import Summary

FILES = Preparation(trajectories=True)


@pytest.fixture
def folder(tmp_path):
    """Two classes of trajectories (T, 3, 4, 6); all numbers of a state are 10 times its trajectory, plus its number."""
    for i, name in enumerate(["heat/a", "heat/b", "burgers/a"]):
        path = tmp_path / "fields" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        states = 10 * i + np.arange(5.0)[:, None, None, None] + np.zeros((5, 3, 4, 6))
        np.save(path, states) if name != "heat/b" else np.savez(path.with_suffix(".npz"), states[:4])
    (tmp_path / "fields" / "notes.txt").write_text("")
    return tmp_path / "fields"


@pytest.mark.parametrize("walls", [False, True])
def test_waves_solve_their_equation(walls):
    h, dt = 1 / 48, 1e-4
    fine = Waves(48, walls=walls).at(3, 7 * STEP + dt * torch.tensor([-1.0, 0, 1])).double()
    height, change = fine[:, 0], fine[:, 1]
    assert torch.allclose((height[2] - height[0]) / (2 * dt), change[1], atol=2e-2)
    acceleration = (change[2] - change[0]) / (2 * dt)
    wide = torch.nn.functional.pad(height[1][None, None], (1,) * 4, "replicate" if walls else "circular")[0, 0]
    middle = wide[1:-1, 1:-1]
    laplace = (wide[2:, 1:-1] + wide[:-2, 1:-1] + wide[1:-1, 2:] + wide[1:-1, :-2] - 4 * middle) / h**2
    residual = acceleration - laplace + 2 * DAMPING * change[1]
    assert residual.norm() < 0.04 * acceleration.norm()  # of the second order in h


def test_pairs_of_waves_follow_each_other():
    data = open_dataset("waves-8")
    batch = data.fetch(torch.tensor([19, 20, 21]))  # the last pair of the first trajectory, two of the second
    states = data.values.normalized(data.states(1, 0, 3))
    assert torch.equal(batch.x[1:], states[:2])
    assert torch.equal(batch.extra["next"][1:], states[1:])
    assert torch.equal(batch.extra["next"][0], data.values.normalized(data.states(0, 20, 21))[0])
    assert len(data) == 4000
    assert len(open_dataset("waves-walls-8-held-out")) == 800
    assert batch.x.std() == pytest.approx(1, abs=0.4)


def test_files_are_trajectories(folder):
    data = open_dataset(str(folder), FILES)
    assert data.classes == ["burgers", "heat"]
    assert data.lengths == [5, 5, 4]
    assert (data.channels, data.size) == (3, (4, 6))
    batch = data.fetch(torch.arange(len(data)))
    numbers = [data.values.restored(part)[:, 2, 1, 1].round().tolist() for part in (batch.x, batch.extra["next"])]
    assert numbers[0] == [20, 21, 22, 23, 0, 1, 2, 3, 10, 11, 12]
    assert numbers[1] == [21, 22, 23, 24, 1, 2, 3, 4, 11, 12, 13]
    assert batch.labels.tolist() == [0] * 4 + [1] * 7
    assert batch.x.mean().abs() < 1e-6  # standardized
    lines = Summary.of(data, "fields").lines()
    assert lines[0].startswith("data: fields: 11 pairs of 4x6 pixels, RGB, float32")
    assert lines[1] == "conditions: 2 classes from folders, 4 to 7 pairs each (burgers, heat)"
    assert any("of 3 trajectories of 4 to 5 states" in line for line in lines)
    assert "left out: no trajectory (.npy, .npz): 1 (notes.txt)" in lines
    assert data.stamps().names[:2] == ["burgers/a.npy:0", "burgers/a.npy:1"]


def test_every_second_state_and_held_out_trajectories(folder):
    data = open_dataset(str(folder), Preparation(trajectories=True, stride=2))
    assert data.lengths == [3, 3, 2]
    assert data.values.restored(data.fetch(torch.tensor([0])).extra["next"])[0, 0, 0, 0] == pytest.approx(22)
    parts = [
        open_dataset(str(folder), Preparation(trajectories=True, held_out=0.5, split=part, label_column="none"))
        for part in ("train", "val")
    ]
    assert sorted([*parts[0].lengths, *parts[1].lengths]) == [4, 5, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 4, 4)), r"a.npy is no trajectory: its shape is \(3, 4, 4\); give an array \(T, C, H, W\)"),
        (np.zeros((1, 1, 4, 4)), r"a.npy has 1 state with stride 1; give trajectories of 2 or more"),
        (np.zeros((2, 1, 4, 4)), "all numbers of channel 1 are 0, which cannot be standardized"),
        (np.zeros((2, 1, 4, 4), complex), r"a.npy is no trajectory: numbers of type complex128"),
        (b"text", r"a.npy is no trajectory: "),
    ],
)
def test_files_that_are_no_trajectories(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "a.npy").write_bytes(content)
    else:
        np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=message):
        open_dataset(str(tmp_path), FILES)


def test_trajectories_that_do_not_fit(tmp_path):
    with pytest.raises(InputError, match=r"no trajectories in .*; put files .npy or .npz"):
        open_dataset(str(tmp_path), FILES)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.normal(size=(3, 1, 4, 4)))
    np.save(tmp_path / "b.npy", rng.normal(size=(3, 2, 4, 4)))
    with pytest.raises(InputError, match=r"b.npy has states of 2x4x4 .* but a.npy has 1x4x4"):
        open_dataset(str(tmp_path), FILES)
    np.save(tmp_path / "b.npy", np.where(np.arange(3)[:, None, None, None] == 2, np.nan, rng.normal(size=(3, 1, 4, 4))))
    data = open_dataset(str(tmp_path), Preparation(trajectories=True, range="-3,3"))
    with pytest.raises(InputError, match=r"state 2 of b.npy has numbers that are not finite; remove the file"):
        data.fetch(torch.tensor([3]))
    np.savez(tmp_path / "b.npz", one=np.zeros(1), two=np.zeros(1))
    (tmp_path / "b.npy").unlink()
    with pytest.raises(InputError, match=r"b.npz is no trajectory: it holds 2 arrays \(one, two\); keep one"):
        open_dataset(str(tmp_path), FILES)
    with pytest.raises(
        InputError, match=r"trajectories is true, which has no effect on the data set waves-8; remove it"
    ):
        open_dataset("waves-8", FILES)
    with pytest.raises(InputError, match=r"frames is 4, which has no effect on"):
        open_dataset(str(tmp_path), Preparation(trajectories=True, frames=4))
