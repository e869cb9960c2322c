import json
from dataclasses import replace

import pytest
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Evaluation, Recipe
from ditlab.core.errors import InputError
from ditlab.profiling.plan import plan
from ditlab.study import grid
from ditlab.study.grid import images_of, lay_out, mark_of, rehearse
from ditlab.study.recipe import Budget, Study, changed

TINY = {"model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}, "train": {"batch": 32, "device": "cpu"}}
QUIET = Console(quiet=True)
SCORE = Evaluation(reference="digits-held-out", count=100, sampler="euler", steps=2, device="cpu")


def study(budget, parts=None, **more):
    parts = parts or {"a": {}}
    given = {name: changed(TINY, changes) for name, changes in parts.items()}
    recipes = {name: parse_recipe(tables) for name, tables in given.items()}
    return Study(name="mine", budget=budget, parts=recipes, evaluations={"": SCORE} | more, given=given)


def test_budgets():
    found = plan(parse_recipe(TINY), timed=False)
    assert images_of(Budget(images=1000), found, 128) == 1024
    assert images_of(Budget(images=3), found, 128) == 128
    images = images_of(Budget(gmacs=9.0), found, 128)
    assert images % 128 == 0
    assert images * 3 * found.gmacs == pytest.approx(9.0, rel=128 / images)
    quick = replace(found, steps_per_second=50.0)
    assert images_of(Budget(seconds=2.0), quick, 128) == 100 * 128


def test_equal_gmacs_for_different_networks():
    small, large = lay_out(study(Budget(gmacs=1.0), {"a": {}, "b": {"model": {"depth": 4}}}), {}, QUIET)
    assert large.plan.gmacs > 2.5 * small.plan.gmacs
    assert large.training_gmacs == pytest.approx(small.training_gmacs, rel=0.02)
    assert large.training_gmacs == 3 * large.plan.gmacs * large.recipe.train.images


def test_seconds_are_kept_as_images():
    first = study(Budget(seconds=0.2))
    (part,) = lay_out(first, {}, QUIET)
    assert part.recipe.train.images >= 32
    assert part.seconds == pytest.approx(0.2, abs=0.5 / part.plan.steps_per_second)
    (again,) = lay_out(first, {part.mark: 640}, QUIET)
    assert again.recipe.train.images == 640
    assert again.mark == part.mark
    assert again.seconds is None  # nothing was timed
    (other,) = lay_out(study(Budget(seconds=0.3)), {part.mark: 640}, QUIET)
    assert other.mark != part.mark


def test_a_name_changes_with_what_decides_the_weights_alone(tmp_path, monkeypatch):
    recipe = parse_recipe(TINY)

    def mark(**sections):
        tables = {key: TINY.get(key, {}) | value for key, value in sections.items()}
        return mark_of(parse_recipe(TINY | tables), 64)

    same = mark_of(recipe, 64)
    assert len(same) == 8
    assert mark(train={"log_every": 7, "device": "auto", "seed": 3, "compile": "never"}, sample={"steps": 3}) == same
    assert mark(parallel={"accumulate": 2}) == same
    others = [
        mark_of(recipe, 65), mark(optim={"lr": 3e-4}), mark(model={"depth": 2}), mark(train={"batch": 16}),
        mark(diffusion={"target": "eps"}), mark(train={"precision": "float32"}),
    ]  # fmt: skip
    monkeypatch.setattr(grid, "__version__", "9.9")
    others.append(mark_of(recipe, 64))
    assert len({same, *others}) == 8


def test_other_pictures_are_another_run(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    recipe = parse_recipe({"data": {"source": str(folder)}})
    before = mark_of(recipe, 64)
    (folder / "b.png").write_bytes(b"2")
    grid.pictures_of.cache_clear()
    assert mark_of(recipe, 64) != before


def test_a_run_logs_and_saves_in_shares_of_its_length():
    (part,) = lay_out(study(Budget(images=3200)), {}, QUIET)
    train = part.recipe.train
    assert (train.images, train.log_every, train.save_every, train.preview_every, train.keep) == (
        3200,
        80,
        800,
        3200,
        1,
    )
    (part,) = lay_out(study(Budget(images=3200), {"a": {"train": {"log_every": 320}}}), {}, QUIET)
    assert part.recipe.train.log_every == 320


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"sampler": "euler", "steps": 5}, 5),
        ({"sampler": "heun", "steps": 5}, 9),
        ({"sampler": "euler", "steps": 5, "guidance": 2.0}, 10),
        ({"sampler": "euler", "steps": 4, "guidance": 2.0, "guidance_interval": (0.4, 0.8)}, 6),  # at 0.75 and 0.5
    ],
)
def test_network_calls_are_counted_without_a_network(options, calls):
    assert rehearse(parse_recipe(TINY), replace(SCORE, **options)).calls == calls


def test_what_an_evaluation_leaves_open_is_the_recipes():
    recipe = parse_recipe(TINY | {"sample": {"sampler": "heun", "steps": 7, "guidance": 1.5, "interval": [0.1, 0.9]}})
    found = rehearse(recipe, Evaluation(count=100)).settings
    assert (found.sampler, found.steps, found.guidance, found.guidance_interval) == ("heun", 7, 1.5, (0.1, 0.9))
    assert found.reference == "digits-held-out"
    way = rehearse(recipe, Evaluation(count=100, seed=4, batch_size=3))
    assert way.mark == rehearse(recipe, Evaluation(count=100)).mark
    assert way.mark != rehearse(recipe, Evaluation(count=100, steps=6)).mark


def test_mistakes_are_found_before_training():
    def told(parts=None, **changes):
        with pytest.raises(InputError) as error:
            lay_out(study(Budget(images=64), parts, **{"": replace(SCORE, **changes)}), {}, QUIET)
        return str(error.value)

    assert told(sampler="eular").startswith('part "a": unknown sampler "eular"; did you mean "euler"?')
    assert "105 images cannot be shared equally among 10 classes" in told(count=105)
    assert 'unknown metric "fid"' in told(metrics=("fid",))
    assert 'unknown features "digit"' in told(features="digit")
    assert "0 sampling steps" in told(steps=0)
    assert 'part "b": width 33 must be divisible by heads 2' in told({"a": {}, "b": {"model": {"width": 33}}})
    assert 'part "b": optim.lr is -1.0' in told({"a": {}, "b": {"optim": {"lr": -1.0}}})
    assert 'no data "nowhere"' in told({"a": {"data": {"source": "nowhere"}}})


def test_what_a_dry_run_says():
    parts = lay_out(study(Budget(images=64)), {}, QUIET, timed=True)
    table, *lines = grid.dry_run(study(Budget(images=64)), parts)
    assert table.row_count == 1
    assert lines[0] == "1 parts x 3 seeds = 3 runs, 1 evaluations of each"
    assert "in all" in lines[1]
    found = grid.as_json(study(Budget(images=64)), parts)["parts"][0]
    assert found["seconds"] == pytest.approx(2 / parts[0].plan.steps_per_second)
    # 100 pictures pass twice, against 64 that pass three times.
    assert found["scoring_seconds"] == pytest.approx(found["seconds"] * 200 / (3 * 64))
    assert found["fits"]
    assert isinstance(parts[0].recipe, Recipe)


def test_a_score_changes_with_the_times_that_a_grid_file_holds(tmp_path):
    file = tmp_path / "grids.json"

    def mark(times):
        file.write_text(json.dumps({"process": {"name": "linear"}, "sampler": "euler", "grids": {"2": times}}))
        return rehearse(parse_recipe(TINY), replace(SCORE, schedule=str(file))).mark

    assert mark([1.0, 0.5, 0.0]) == mark([1.0, 0.5, 0.0]) != mark([1.0, 0.4, 0.0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reference": "digits-heldout"}, "digits-heldout"),
        ({"reference": "not-here.npz", "features": "digits"}, "not-here.npz"),
        ({"reference": "glyphs-32-held-out", "features": "digits"}, "images of 8x8"),
        ({"metrics": ("spatial",)}, "spatial needs what the features digits do not give"),
    ],
)
def test_scores_that_cannot_be_are_refused_before_training(options, told):
    with pytest.raises(InputError, match=told):
        rehearse(parse_recipe(TINY), replace(SCORE, **options))
