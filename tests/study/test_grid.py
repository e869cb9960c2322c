import json
import re
from dataclasses import replace

import pytest
from PIL import Image
from rich.console import Console

from ditlab.config.evaluation import Evaluation
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.inference.optimize.timing import CLOCKS
from ditlab.profiling.plan import plan
from ditlab.study import grid
from ditlab.study.grid import lay_out, rehearse, run_hash
from ditlab.study.length import images_for
from ditlab.study.recipe import Budget, Study
from ditlab.study.tables import changed

TINY = {"model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}, "train": {"batch": 32, "device": "cpu"}}
QUIET = Console(quiet=True)
SCORE = Evaluation(reference="digits-held-out", count=100, sampler="euler", steps=2, device="cpu")


def study(budget, parts=None, **more):
    parts = parts or {"a": {}}
    changes_of = {name: changed(TINY, changes) for name, changes in parts.items()}
    recipes = {name: parse_recipe(tables) for name, tables in changes_of.items()}
    return Study(name="mine", budget=budget, parts=recipes, evaluations={"": SCORE} | more, changes=changes_of)


def test_budgets():
    cost = plan(parse_recipe(TINY), timed=False)
    assert images_for(Budget(images=1000), cost, 128) == 1024
    assert images_for(Budget(images=3), cost, 128) == 128
    images = images_for(Budget(gmacs=9.0), cost, 128)
    assert images % 128 == 0
    assert images * 3 * cost.gmacs == pytest.approx(9.0, rel=128 / images)
    quick = replace(cost, steps_per_second=50.0)
    assert images_for(Budget(seconds=2.0), quick, 128) == 100 * 128


@pytest.mark.slow
def test_equal_gmacs_for_different_networks():
    small, large = lay_out(study(Budget(gmacs=1.0), {"a": {}, "b": {"model": {"depth": 4}}}), {}, QUIET)
    assert large.plan.gmacs > 2.5 * small.plan.gmacs
    assert large.training_gmacs == pytest.approx(small.training_gmacs, rel=0.02)
    assert large.training_gmacs == 3 * large.plan.gmacs * large.recipe.train.images


@pytest.mark.slow
def test_a_budget_in_seconds_is_kept_as_images():
    first = study(Budget(seconds=0.2))
    (part,) = lay_out(first, {}, QUIET)
    assert part.recipe.train.images >= 32
    assert part.seconds == pytest.approx(0.2, abs=0.5 / part.plan.steps_per_second)
    (again,) = lay_out(first, {part.hash: 640}, QUIET)
    assert again.recipe.train.images == 640
    assert again.hash == part.hash
    assert again.seconds is None  # nothing was timed
    (other,) = lay_out(study(Budget(seconds=0.3)), {part.hash: 640}, QUIET)
    assert other.hash != part.hash


def test_the_hash_changes_only_with_settings_that_determine_the_weights(tmp_path, monkeypatch):
    recipe = parse_recipe(TINY)

    def hashed(**sections):
        tables = {key: TINY.get(key, {}) | value for key, value in sections.items()}
        return run_hash(parse_recipe(TINY | tables), 64)

    same = run_hash(recipe, 64)
    assert len(same) == 8
    assert hashed(train={"log_every": 7, "device": "auto", "seed": 3, "compile": "never"}, sample={"steps": 3}) == same
    assert hashed(parallel={"accumulate": 2}) == same
    others = [
        run_hash(recipe, 65), hashed(optim={"lr": 3e-4}), hashed(model={"depth": 2}), hashed(train={"batch": 16}),
        hashed(diffusion={"target": "eps"}), hashed(train={"precision": "float32"}),
    ]  # fmt: skip
    monkeypatch.setattr(grid, "__version__", "9.9")
    others.append(run_hash(recipe, 64))
    assert len({same, *others}) == 8


def test_hashes_are_those_of_version_0_1(monkeypatch):
    """Renamed and added settings do not change them, so that the runs of a study folder are found again."""
    monkeypatch.setattr(grid, "__version__", "0.1.0")
    assert run_hash(parse_recipe(TINY), 64) == "a9b4460d"


def test_other_images_change_the_hash(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    recipe = parse_recipe({"data": {"source": str(folder)}})
    before = run_hash(recipe, 64)
    (folder / "b.png").write_bytes(b"2")
    grid.source_identity.cache_clear()
    assert run_hash(recipe, 64) != before


@pytest.mark.slow
def test_logging_intervals_are_shares_of_the_length():
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


@pytest.mark.slow
def test_checkpoints_are_saved_where_they_are_scored():
    three = {"1/4": SCORE, "3/4": SCORE, "end": SCORE}
    asked = replace(study(Budget(images=3200)), evaluations=three, shares={"1/4": 0.25, "3/4": 0.75, "end": 1.0})
    (part,) = lay_out(asked, {}, QUIET)
    assert (part.recipe.train.save_every, part.recipe.train.keep_every) == (800, 800)
    assert [evaluation.images for evaluation in part.evaluations.values()] == [800, 2400, None]
    assert len({evaluation.hash for evaluation in part.evaluations.values()}) == 3
    assert part.evaluations["end"].hash == rehearse(part.recipe, SCORE).hash
    with pytest.raises(InputError) as error:
        lay_out(replace(asked, budget=Budget(images=64)), {}, QUIET)
    assert str(error.value) == (
        'part "a": a run of 64 images has no checkpoint at 0.75 of its length; '
        "give a larger budget, or a smaller train.batch"
    )


@pytest.mark.slow
def test_time_is_processor_time_on_a_cpu(monkeypatch):
    """Wall-clock time that other programs stretch does not shorten the runs of a budget in seconds."""
    clock = iter(range(10**9))
    monkeypatch.setitem(CLOCKS, "cpu", lambda: next(clock) / 20)  # each step and each update takes 0.05 s
    monkeypatch.setitem(CLOCKS, "wall", lambda: next(clock) * 1e3)
    (part,) = lay_out(study(Budget(seconds=2.0)), {}, QUIET)
    assert part.recipe.train.clock == "cpu"
    assert part.recipe.train.images == 32 * 20
    (other,) = lay_out(study(Budget(images=64), {"a": {"train": {"clock": "wall"}}}), {}, QUIET)
    assert other.recipe.train.clock == "wall"


@pytest.mark.parametrize(
    ("options", "nfe"),
    [
        ({"sampler": "euler", "steps": 5}, 5),
        ({"sampler": "heun", "steps": 5}, 9),
        ({"sampler": "euler", "steps": 5, "guidance": 2.0}, 10),
        ({"sampler": "euler", "steps": 4, "guidance": 2.0, "guidance_interval": (0.4, 0.8)}, 6),  # at 0.75 and 0.5
    ],
)
def test_nfe_is_counted_without_a_network(options, nfe):
    assert rehearse(parse_recipe(TINY), replace(SCORE, **options)).nfe == nfe


def test_the_held_out_part_of_a_folder_is_the_reference(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("L", (8, 8), i).save(tmp_path / name / f"{i}.png")
    recipe = parse_recipe(TINY | {"data": {"source": str(tmp_path), "held_out": 0.2}})
    planned = rehearse(recipe, Evaluation(count=4, features="digits"))
    assert planned.settings.reference == f"{tmp_path}:val"
    other = parse_recipe(TINY | {"data": {"source": str(tmp_path), "held_out": 0.5}})
    assert rehearse(other, Evaluation(count=4, features="digits")).hash != planned.hash
    assert run_hash(recipe, 32) != run_hash(other, 32)


def test_settings_that_an_evaluation_leaves_open_are_the_recipes():
    recipe = parse_recipe(TINY | {"sample": {"sampler": "heun", "steps": 7, "guidance": 1.5, "interval": [0.1, 0.9]}})
    settings = rehearse(recipe, Evaluation(count=100)).settings
    assert (settings.sampler, settings.steps, settings.guidance) == ("heun", 7, 1.5)
    assert settings.guidance_interval == (0.1, 0.9)
    assert settings.reference == "digits-held-out"
    planned = rehearse(recipe, Evaluation(count=100, seed=4, batch_size=3))
    assert planned.hash == rehearse(recipe, Evaluation(count=100)).hash
    assert planned.hash != rehearse(recipe, Evaluation(count=100, steps=6)).hash


@pytest.mark.slow
def test_mistakes_are_reported_before_training():
    def message(parts=None, **changes):
        with pytest.raises(InputError) as error:
            lay_out(study(Budget(images=64), parts, **{"": replace(SCORE, **changes)}), {}, QUIET)
        return str(error.value)

    assert message(sampler="eular").startswith('part "a": unknown sampler "eular"; did you mean "euler"?')
    assert "105 images cannot be shared equally among 10 classes" in message(count=105)
    assert 'unknown metric "fid"' in message(metrics=("fid",))
    assert 'unknown features "digit"' in message(features="digit")
    assert "steps is 0; give 1 to 10000" in message(steps=0)
    assert 'part "b": width 33 must be divisible by heads 2' in message({"a": {}, "b": {"model": {"width": 33}}})
    assert 'part "b": optim.lr is -1.0' in message({"a": {}, "b": {"optim": {"lr": -1.0}}})
    assert 'no data "nowhere"' in message({"a": {"data": {"source": "nowhere"}}})


@pytest.mark.slow
def test_sampling_settings_of_previews_are_checked_before_training():
    student = {"train": {"objective": "halves"}, "sample": {"guidance": 1.15, "sampler": "map", "steps": 2}}
    one_step = replace(SCORE, sampler="map", guidance=1.0)
    noise = {"sample": {"sampler": "heun", "eta": 0.5}}
    for part, line in (
        (
            student,
            'part "a": sample.guidance is 1.15, but train.objective halves builds guidance 1 into the model; set '
            "distill.guidance to 1.15, or sample.guidance to 1",
        ),
        (
            noise,
            'part "a": the section [sample] does not suit train.objective regression: sampler heun has no eta; leave '
            "it out or use ddim",
        ),
    ):
        with pytest.raises(InputError) as error:
            lay_out(study(Budget(images=32), {"a": part}, **{"": one_step}), {}, QUIET)
        assert str(error.value) == line
    lay_out(
        study(
            Budget(images=32),
            {"a": student | {"sample": {"guidance": 1.0, "sampler": "map", "steps": 2}}},
            **{"": one_step},
        ),
        {},
        QUIET,
    )


def test_a_dry_run_predicts_times():
    parts = lay_out(study(Budget(images=64)), {}, QUIET, timed=True)
    table, *lines = grid.dry_run(study(Budget(images=64)), parts)
    assert table.row_count == 1
    assert lines[0] == "1 part x 3 seeds = 3 runs, 1 evaluation per run"
    assert re.fullmatch(r"predicted total processor time: .* of one thread", lines[1])
    part = grid.as_json(study(Budget(images=64)), parts)["parts"][0]
    assert part["seconds"] == pytest.approx(2 / parts[0].plan.steps_per_second)
    # 100 images with 2 NFE, against 64 whose training step costs three forward passes.
    assert part["scoring_seconds"] == pytest.approx(part["seconds"] * 200 / (3 * 64))
    assert part["fits"]
    assert isinstance(parts[0].recipe, Recipe)


def test_the_hash_of_a_score_includes_the_timesteps_of_a_schedule_file(tmp_path):
    file = tmp_path / "grids.json"

    def hashed(times):
        file.write_text(json.dumps({"process": {"name": "linear"}, "sampler": "euler", "grids": {"2": times}}))
        return rehearse(parse_recipe(TINY), replace(SCORE, schedule=str(file))).hash

    assert hashed([1.0, 0.5, 0.0]) == hashed([1.0, 0.5, 0.0]) != hashed([1.0, 0.4, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "digits-heldout"}, "digits-heldout"),
        ({"reference": "not-here.npz", "features": "digits"}, "not-here.npz"),
        ({"reference": "glyphs-32-held-out", "features": "digits"}, "images of 8x8"),
        ({"metrics": ("spatial",)}, "the features digits do not provide what spatial needs"),
    ],
)
def test_impossible_scores_are_rejected_before_training(options, message):
    with pytest.raises(InputError, match=message):
        rehearse(parse_recipe(TINY), replace(SCORE, **options))
