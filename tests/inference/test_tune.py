import json

import pytest
import torch
from helpers import smooth, tiny_pipeline
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.diffusion.process import DDPM, Linear
from ditlab.diffusion.samplers import time_grid
from ditlab.inference.tune import FINE, STARTS, final, tune

QUIET = Console(quiet=True)


@pytest.mark.parametrize(("guidance", "interval"), [(None, None), (2.0, (0.2, 0.7))])
def test_tuned_times_come_nearer_to_the_fine_solution(guidance, interval):
    pipe = smooth(tiny_pipeline())
    found = tune(pipe, [3, 5], "ab2", 4, QUIET, guidance, interval)
    assert list(found) == [3, 5]
    options = {"sampler": "ab2", "guidance_scale": guidance, "guidance_interval": interval}
    finest = final(pipe, time_grid("uniform", pipe.objective.process, FINE), 4, options)

    def error(grid):
        return float((final(pipe, grid, 4, options) - finest).norm() / finest.norm())

    for count, each in found.items():
        named = [error(time_grid(name, pipe.objective.process, count)) for name in STARTS]
        times = torch.tensor(each.times, dtype=torch.float64)
        assert error(times) == pytest.approx(each.after, rel=1e-5)
        assert each.before == pytest.approx(named[0], rel=1e-5)
        assert each.after < 0.9 * min(named)
        assert len(times) == count + 1
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()


def test_bad_input():
    with pytest.raises(InputError, match="sampler ddpm adds noise in each step"):
        tune(tiny_pipeline(), [4], "ddpm", 4, QUIET)
    with pytest.raises(InputError, match="steps 1 and images 4"):
        tune(tiny_pipeline(), [4, 1], "ab4", 4, QUIET)


def test_a_file_of_grids_belongs_to_its_process(tmp_path):
    file = tmp_path / "grids.json"
    times = [1.0, 0.7, 0.2, 0.0]
    file.write_text(
        json.dumps({"process": {"name": "linear"}, "sampler": "ab4", "grids": {"3": times, "2": [1, 2, 0]}})
    )
    assert time_grid(str(file), Linear(), 3).tolist() == times
    pipe = tiny_pipeline()
    drawn = pipe([0], num_inference_steps=3, grid=str(file), output_type="latent").images
    assert torch.equal(drawn, pipe([0], grid=torch.tensor(times), output_type="latent").images)
    with pytest.raises(InputError, match="was made for the process linear, and this model has ddpm"):
        time_grid(str(file), DDPM(), 3)
    with pytest.raises(InputError, match="has no schedule of 4 steps; it has 3, 2"):
        time_grid(str(file), Linear(), 4)
    with pytest.raises(InputError, match="the schedule of 2 steps is not 3 falling times"):
        time_grid(str(file), Linear(), 2)
    with pytest.raises(InputError, match="there is no schedule file"):
        time_grid(str(tmp_path / "none.json"), Linear(), 4)
    file.write_text("[]")
    with pytest.raises(InputError, match="is not a file of timestep schedules"):
        time_grid(str(file), Linear(), 4)
