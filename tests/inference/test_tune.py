import json

import pytest
import torch
from helpers import smooth, tiny_pipeline
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.core.formats import read_object
from ditlab.diffusion.process import DDPM, Linear
from ditlab.diffusion.samplers import grids, time_grid
from ditlab.inference import tune_budget
from ditlab.inference.optimize.reuse import Reuse
from ditlab.inference.tune import FINE, STARTS, Tuned, final, fine_images, tune, write_schedules
from ditlab.inference.tune_budget import call_costs, evaluations, search

QUIET = Console(quiet=True)


@pytest.mark.slow
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


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize("reuse", [None, 2, 3])
def test_whole_evaluations_are_those_of_the_network(reuse, interval):
    pipe, cache = tiny_pipeline(), None if reuse is None else Reuse(reuse)
    options = {"sampler": "ab4", "steps": 7, "guidance": 2.0, "guidance_interval": interval}
    plan = pipe.resolve(**options)
    pipe([0, 1], seeds=[0, 1], reuse=cache, **options)
    expected = (plan.evaluations,) * 2 if cache is None else (cache.computed // 2, cache.asked // 2)
    assert evaluations(plan, reuse) == expected
    assert expected[1] == plan.evaluations


@pytest.mark.slow
def test_the_best_caching_and_schedule_under_a_budget_are_found(monkeypatch):
    pipe = smooth(tiny_pipeline())
    monkeypatch.setattr(tune_budget, "INTERVALS", (None, 3))
    monkeypatch.setattr(tune_budget, "call_costs", lambda pipe, images: (2.0, 0.5))  # ms of whole and partial ones
    assert [(each.reuse, each.steps, each.cost) for each in search(pipe, 4.1, "ms", "euler", 1, QUIET)] == [
        (None, 2, 4)
    ]
    found = search(pipe, 3.0, "evaluations", "euler", 2, QUIET)
    assert {(each.reuse, each.steps, each.cost) for each in found} == {(None, 3, 3.0), (3, 6, 2 + 4 / 4)}
    assert found[0].tuned.after < found[1].tuned.after
    fine = fine_images(pipe, 2, {"sampler": "euler"})
    for each in found:
        images = final(pipe, torch.tensor(each.tuned.times), 2, {"sampler": "euler", "reuse": each.reuse})
        assert float((images - fine).norm() / fine.norm()) == pytest.approx(each.tuned.after, rel=1e-4)
    with pytest.raises(InputError) as error:
        search(pipe, 1.5, "ms", "euler", 4, QUIET)
    assert str(error.value) == "the budget is 1.5 ms; give at least 4, the cost of 2 steps"


def test_a_partial_evaluation_costs_less():
    whole, partial = call_costs(tiny_pipeline(depth=12), 4)
    assert 0 < partial < whole


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


def test_a_schedule_is_sampled_with_the_caching_for_which_it_was_tuned(tmp_path, monkeypatch):
    pipe, file = smooth(tiny_pipeline()), tmp_path / "schedules.json"
    times = [1.0, 0.7, 0.4, 0.1, 0.0]
    write_schedules(file, pipe, "euler", {4: Tuned(times, 0.0, 0.0)}, 2)
    options = {"sampler": "euler", "steps": 4}
    expected = pipe(0, schedule=torch.tensor(times, dtype=torch.float64), reuse=2, output_type="latent", **options)
    made = pipe(0, schedule=str(file), output_type="latent", **options)
    assert torch.equal(made.images, expected.images)
    assert made.settings[0]["settings"]["reuse"] == 2
    whole = pipe(0, schedule=torch.tensor(times, dtype=torch.float64), output_type="latent", **options)
    assert not torch.equal(made.images, whole.images)
    reads = []
    monkeypatch.setattr(grids, "read_object", lambda path: reads.append(path) or read_object(path))
    plan = pipe.resolve(schedule=str(file), reuse=Reuse(2), **options)
    assert plan.options.reuse == 2
    file.write_text("overwritten later")
    assert plan.schedule == times  # those that were used
    assert reads == [file]
    write_schedules(file, pipe, "euler", {4: Tuned(times, 0.0, 0.0)}, 2)
    for words, given in (({"reuse": 3}, "reuse is 3"), ({"reuse_error": 0.1}, "reuse_error is 0.1")):
        with pytest.raises(InputError) as error:
            pipe.resolve(schedule=str(file), **options, **words)
        name = given.split()[0]
        assert str(error.value) == (
            f"{given}, but {file} was tuned for reuse 2; leave {name} out, or give a schedule that was tuned "
            "without feature caching, as ditlab tune does without a budget"
        )
