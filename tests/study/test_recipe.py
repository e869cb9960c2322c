import dataclasses
import re
from pathlib import Path

import pytest

from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.study import recipe
from ditlab.study.recipe import Budget, matching, read_study
from ditlab.study.tables import changed, expand_parts

DOCS = Path(__file__).parents[2] / "docs" / "studies" / "README.md"
SMALL = """
seeds = [0, 1]
[budget]
images = 64
[parts]
"a" = {model.width = 32}
"b" = {model.width = 64}
"""


@pytest.fixture
def read(tmp_path):
    """Read a study from text."""

    def read(text):
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return read_study(str(tmp_path / "mine.toml"))

    return read


@pytest.fixture
def rejection(read):
    """The message with which a text is rejected, on one line."""

    def rejection(text):
        with pytest.raises(InputError) as error:
            read(text)
        assert "\n" not in str(error.value)
        return str(error.value)

    return rejection


@pytest.mark.slow
def test_other_seeds_replace_those_of_the_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(SMALL)
    assert read_study(str(file), (3, 4)).seeds == (3, 4)
    assert dataclasses.replace(read_study(str(file), (3, 4)), seeds=(0, 1)) == read_study(str(file))
    with pytest.raises(InputError, match=r"seeds is \[3, 3\].*give different seeds"):
        read_study(str(file), (3, 3))


def test_parts_are_the_recipe_with_changes(read):
    study = read(SMALL + "[settings]\nmodel.depth = 3\noptim.lr = 1e-3\n[evaluation]\ncount = 100\nsteps = 3\n")
    recipe = study.parts["b"]
    assert (recipe.model.width, recipe.model.depth, recipe.model.heads) == (64, 3, 4)
    assert (recipe.optim.lr, recipe.optim.betas) == (1e-3, (0.9, 0.99))
    assert study.entries == {"a": ("a", ""), "b": ("b", "")}
    assert (study.name, study.budget, study.seeds, study.sample_sets) == ("mine", Budget(images=64), (0, 1), 1)
    assert study.evaluations[""].steps == 3
    assert [(plot.x, plot.y, plot.front) for plot in study.plots] == [
        ("log gmacs", "fd", True),
        ("log seconds", "fd", True),
    ]
    assert study.plots[0].fit


def test_evaluations_share_settings(read):
    study = read(SMALL + '[evaluation]\ncount = 100\nsteps = 3\n[evaluations]\nx = {}\n"y" = {steps = 5}\n')
    assert list(study.entries) == ["a, x", "a, y", "b, x", "b, y"]
    assert [(settings.count, settings.steps) for settings in study.evaluations.values()] == [(100, 3), (100, 5)]


def test_a_cross_product():
    parts = expand_parts(
        {"S": {"model": {"width": 32}}}, {"model": {"patch": [4, 2]}, "optim": {"lr": [1e-3, 1e-4]}}, "x"
    )
    assert list(parts) == [
        "S, patch 4, lr 0.001", "S, patch 4, lr 0.0001", "S, patch 2, lr 0.001", "S, patch 2, lr 0.0001",
    ]  # fmt: skip
    assert parts["S, patch 2, lr 0.0001"] == {"model": {"width": 32, "patch": 2}, "optim": {"lr": 1e-4}}
    assert list(expand_parts({}, {"model": {"depths": [[1, 1, 1], [1, 2, 1]]}}, "x")) == [
        "depths [1, 1, 1]",
        "depths [1, 2, 1]",
    ]


def test_a_part_that_names_a_network_replaces_the_model():
    base = {"model": {"name": "DiT", "depth": 4, "qk_norm": True}, "optim": {"lr": 1.0, "warmup": 3}}
    assert changed(base, {"model": {"name": "U-DiT", "width": 8}}) == {
        "model": {"name": "U-DiT", "width": 8},
        "optim": base["optim"],
    }
    assert changed(base, {"model": {"depth": 2}, "optim": {"lr": 2.0}}) == {
        "model": {"name": "DiT", "depth": 2, "qk_norm": True},
        "optim": {"lr": 2.0, "warmup": 3},
    }
    assert base["model"]["depth"] == 4


def test_only_the_star_is_special_in_patterns():
    assert matching("a, *", ["a, 1", "b, 1", "a, 2"]) == ["a, 1", "a, 2"]
    assert matching("a[1]?", ["a[1]?", "a1x"]) == ["a[1]?"]


@pytest.mark.slow
def test_the_study_of_training_options():
    study = read_study("options")
    plain = study.parts["as it is"]
    assert len(study.claims) == len(study.parts) - 1 == 9
    assert all("as it is" in claim.order for claim in study.claims[:-1])
    assert study.claims[-1].order == ("together", "Muon")
    differ = [
        part
        for part in study.parts.values()
        if (part.model, part.diffusion, part.train, part.optim)
        != (plain.model, plain.diffusion, plain.train, plain.optim)
    ]
    assert len(differ) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaling", "conditioning", "u-shape", "sampling-compute", "guidance"])
def test_studies_that_come_with_ditlab(name):
    study = read_study(name)
    assert len(study.seeds) >= 3
    assert study.claims
    assert all(claim.paper for claim in study.claims)
    assert len(study.parts) >= (9 if name == "scaling" else 1)
    for part in study.parts.values():
        assert (part.train.precision, part.train.compile) == ("float32", "never")  # so that training is deterministic


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "flow-against-ddpm", "skips-and-caching", "few-steps", "dynamic", "early-exit", "mamba", "frequencies", "video",
        "scaling-letters",
    ],
)  # fmt: skip
def test_studies_of_the_newer_systems(name):
    study = read_study(name)
    assert len(study.seeds) >= 3
    assert study.claims
    assert any(claim.paper for claim in study.claims)
    for part in study.parts.values():
        assert (part.train.precision, part.train.compile) == ("float32", "never")
    if name == "scaling-letters":
        (law,) = [claim for claim in study.claims if claim.predicts]
        assert len(matching(law.among, study.entries)) == 13  # twelve in the fit, and the one that is predicted


@pytest.mark.slow
def test_the_study_of_the_guide(read):
    (text,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    study = read(text)
    assert list(study.parts) == [f"{target}, width {w}" for target in ("x0", "eps", "velocity") for w in (192, 256)]
    assert study.claims[1].among == "velocity, *, 50 steps"


def test_the_old_name_of_sample_sets_is_read(read):
    assert read("draws = 3\n" + SMALL).sample_sets == 3


def test_an_empty_grid(rejection):
    assert "has no parts, so there is nothing to train" in rejection("[budget]\nimages = 64\n")
    assert "cross.model.patch is 4; give a list of values" in rejection(
        "[budget]\nimages = 64\n[cross]\nmodel.patch = 4"
    )
    assert "cross.model is 4, but must be a table" in rejection("[budget]\nimages = 64\n[cross]\nmodel = 4")
    assert "cross.model.patch is []" in rejection("[budget]\nimages = 64\n[cross]\nmodel.patch = []")


def test_numbers_outside_their_range(rejection):
    assert "seeds is 4294967296; give 0 to 4294967295" in rejection(SMALL.replace("[0, 1]", "[0, 4294967296]"))
    assert "seeds is -1; give 0 to 4294967295" in rejection(SMALL.replace("[0, 1]", "[-1]"))


@pytest.mark.parametrize("unit", ["gmacs", "seconds"])
def test_the_budget_must_be_finite(rejection, unit):
    assert f"budget.{unit} is nan; give a finite number" in rejection(SMALL.replace("images = 64", f"{unit} = nan"))


@pytest.mark.slow
def test_messages_name_the_nearest_known_name(rejection):
    assert 'a key "seed" that no study has; did you mean "seeds"?' in rejection("seed = 3\n" + SMALL)
    assert 'a key "evaluatoin"' in rejection(SMALL + "[evaluatoin]\nsteps = 3\n")
    assert 'a key "image" that no budget has; did you mean "images"?' in rejection(SMALL.replace("images", "image"))
    assert 'a key "step" that no evaluation has; did you mean "steps"?' in rejection(SMALL + "[evaluation]\nstep = 3\n")
    assert 'a key "odrer" that no claim has; did you mean "order"?' in rejection(SMALL + '[[claims]]\nodrer = ["a"]\n')
    line = rejection(SMALL.replace("model.width = 64", "model.widht = 64"))
    assert "model.widht" in line
    assert "--model.width" in line
    assert 'part "b"' in line
    assert 'part "b" has a section "width"' in rejection(SMALL.replace("model.width = 64", "width = {x = 64}"))
    assert 'no recipe "diggits"; give the path' in rejection('recipe = "diggits"\n' + SMALL)
    with pytest.raises(InputError, match='did you mean "scaling"'):
        read_study("scalling")


@pytest.fixture
def quickly(monkeypatch):
    """Skip reading the parts, which takes a tenth of a second each."""
    monkeypatch.setattr(recipe, "parse_recipe", lambda tables, source: Recipe())


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_claims_and_plots_are_checked(rejection):
    claim = SMALL + "[[claims]]\nsays = 'x'\n"
    assert 'there is no entry "c"' in rejection(claim + 'order = ["a", "c"]\n')
    assert 'by is "fid", which is not a result; did you mean "fd"?' in rejection(
        claim + 'by = "fid"\norder = ["a", "b"]\n'
    )
    assert "give one of order" in rejection(claim)
    assert "give one of order" in rejection(claim + 'order = ["a"]\n')
    assert "give one of order" in rejection(claim + 'order = ["a", "b"]\nfalls_with = "gmacs"\n')
    assert "more_than needs falls_with or rises_with" in rejection(claim + 'order = ["a", "b"]\nmore_than = "gmacs"\n')
    assert 'among is "a*", but order names its entries; remove among' in rejection(
        claim + 'order = ["a", "b"]\namong = "a*"\n'
    )
    assert '"gmac" is not an axis; did you mean "gmacs"?' in rejection(claim + 'falls_with = "log gmac"\n')
    assert "model.name is 'DiT-S/2' in part \"a\"; an axis needs a number" in rejection(
        claim + 'falls_with = "model.name"\n'
    )
    assert "model.size is None" in rejection(SMALL + '[[plots]]\nx = "model.size"\n')
    assert 'no entry "z, *"' in rejection(SMALL + '[[plots]]\nlines = ["z, *"]\n')
    minus = claim + 'order = ["a", "b"]\nminus = "z"\n'
    assert 'minus is "z", but must be an evaluation' in rejection(minus)
    assert "minus needs order" in rejection(claim + 'falls_with = "gmacs"\nminus = "z"\n')
    front = rejection(SMALL + '[[plots]]\nx = "accuracy"\nfront = true\n')
    assert 'the plot of "fd" over "accuracy" has no front; give a result over a cost (gmacs, parameters' in front
    law = claim + 'by = "loss"\npredicts = "b"\n'
    assert "within is 2.0; give a share between 0 and 1" in rejection(law + "within = 2\n")
    assert 'predicts is "*"; give the name of one entry' in rejection(law.replace('predicts = "b"', 'predicts = "*"'))
    assert "within needs predicts" in rejection(claim + 'order = ["a", "b"]\nwithin = 0.1\n')
    scores = '[evaluation]\nmetrics = ["frechet"]\n'
    assert "add precision-recall" in rejection(claim + 'by = "recall"\norder = ["a", "b"]\n' + scores)


@pytest.mark.slow
def test_shares_of_the_training_are_checked(read, rejection):
    shares = SMALL + '[evaluations]\n"half" = {at = 0.5, steps = 3}\n"end" = {}\n'
    study = read(shares)
    assert (study.shares, study.smallest_share) == ({"half": 0.5, "end": 1.0}, 0.5)
    assert study.evaluations["half"].steps == 3
    assert 'evaluation "half": at is 2; give a share of the training above 0, up to 1' in rejection(
        shares.replace("0.5", "2")
    )
    assert 'evaluation "end": at is 1.0, but the checkpoints are saved at multiples of the smallest share, 0.3' in (
        rejection(shares.replace("0.5", "0.3"))
    )
    assert "at is under [evaluation]; set it for single ones" in rejection(SMALL + "[evaluation]\nat = 0.5\n")
    assert 'part "a": at determines the checkpoints; remove train.keep_every' in rejection(
        shares + "[settings]\ntrain = {keep_every = 5}\n"
    )


@pytest.mark.slow
def test_an_evaluation_of_some_parts(read, rejection):
    some = SMALL + '[evaluations]\n"x" = {}\n"y" = {parts = ["b*"]}\n'
    assert list(read(some).entries) == ["a, x", "b, x", "b, y"]
    assert 'evaluation "y": there is no part "c"' in rejection(some.replace("b*", "c"))
    assert "parts is 'b*'; give a list of names or patterns" in rejection(some.replace('["b*"]', '"b*"'))
    assert 'no evaluation scores part "a"' in rejection(some.replace('"x" = {}\n', ""))


@pytest.mark.usefixtures("quickly")
def test_budget_and_seeds_are_the_studys(rejection):
    assert "a study sets train.images itself; set it under [budget]" in rejection(
        SMALL + "[settings]\ntrain.images = 3\n"
    )
    assert 'part "b": a study sets train.seed itself' in rejection(SMALL.replace("model.width = 64", "train.seed = 4"))
    for budget in ("", "images = 64\ngmacs = 3", "seconds = 0"):
        assert "give one of images, gmacs or seconds" in rejection(SMALL.replace("images = 64", budget))
    assert "give different seeds" in rejection(SMALL.replace("[0, 1]", "[1, 1]"))
    assert "give different seeds" in rejection(SMALL.replace("[0, 1]", "[]"))
    assert "give different seeds, and 1 sample set or more" in rejection("sample_sets = 0\n" + SMALL)


@pytest.mark.usefixtures("quickly")
def test_values_of_a_wrong_type(rejection):
    assert "parts is 3, but must be a table, [parts]" in rejection("parts = 3\n[budget]\nimages = 64\n")
    assert 'part "a" is 3, but must be a table' in rejection("[budget]\nimages = 64\n[parts]\na = 3\n")
    assert "claims is {" in rejection(SMALL + "[claims]\nx = 3\n")
    assert "evaluations is empty" in rejection(SMALL + "[evaluations]\n")
    assert 'evaluation "x" is 3' in rejection(SMALL + "[evaluations]\nx = 3\n")
    assert '"many" is not a whole number' in rejection(SMALL.replace("64", '"many"', 1))
    assert "not valid TOML" in rejection("[parts")
