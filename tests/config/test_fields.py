"""What the fields of a recipe state about themselves."""

from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest

from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.fields import check_settings, renamed, resume_rules
from ditlab.config.reader import parse_recipe
from ditlab.config.sampling import SamplingOptions
from ditlab.config.sections import Model, Recipe
from ditlab.core.errors import InputError
from ditlab.study.recipe import Basics, Budget
from ditlab.training.checks import check_recipe


def test_every_setting_has_a_rule_for_resuming():
    rules = resume_rules(Recipe)
    assert rules["train.images"] == rules["data.max_skipped"] == rules["parallel.shard"] == "free"
    assert rules["optim.lr"] == rules["train.batch"] == rules["diffusion.time_mean"] == "ask"
    assert rules["optim.name"] == rules["diffusion.target"] == rules["train.seed"] == "never"
    fixed = [section.type for section in fields(Recipe) if is_dataclass(section.type)]  # not the network's
    assert len(rules) == sum(len(fields(kind)) for kind in fixed)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.images", 0, "train.images is 0; give 1 or more"),
        ("train.lora", -1, "train.lora is -1; give 0 or more"),
        ("train.ema", 1.0, "train.ema is 1.0; give at least 0 and less than 1"),
        ("train.seed", 2**32, "train.seed is 4294967296; give 0 to 4294967295"),
        ("optim.warmup", -1, "optim.warmup is -1; give a number that is not negative"),
        ("optim.clip", float("inf"), "optim.clip is inf; give a number that is not negative"),
        ("optim.betas", (0.9, 1.5), "optim.betas is 1.5; give at least 0 and less than 1"),
        ("parallel.timeout", 0, "parallel.timeout is 0; give 1 or more"),
        ("train.layer_sync_weight", float("nan"), "train.layer_sync_weight is nan"),
        ("diffusion.time_mean", 1e9, "diffusion.time_mean is 1000000000.0; give a number from -10 to 10"),
        ("diffusion.time_scale", 11.0, "diffusion.time_scale is 11.0; give a number from -1 to 10"),
        ("data.max_skipped", float("nan"), "data.max_skipped is nan; give a number from 0 to 1"),
    ],
)
def test_numbers_outside_their_range(key, value, words):
    section, _, name = key.partition(".")
    with pytest.raises(InputError, match=words):
        check_settings(Recipe().override({section: {name: list(value) if isinstance(value, tuple) else value}}))


SECTIONS = [field.type for field in fields(Recipe) if is_dataclass(field.type)]
KINDS = [*SECTIONS, AutoencoderTraining, Evaluation, Copying, SamplingOptions, Basics, Budget]


def numbers_in(hint):
    """Whether values of this type are or hold numbers."""
    return hint in (int, float) or any(numbers_in(part) for part in get_args(hint))


def numeric_fields():
    return [
        (kind, name, str(hint).startswith("tuple") or "tuple[" in str(hint))
        for kind in KINDS
        for name, hint in get_type_hints(kind).items()
        if numbers_in(hint) and "dict" not in str(hint)
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("kind", "name", "many"), numeric_fields(), ids=lambda x: getattr(x, "__name__", str(x)))
def test_every_number_must_be_finite(kind, name, many, value):
    with pytest.raises(InputError, match=f"^{name} is -?(nan|inf); give "):
        check_settings(replace(kind(), **{name: (value, value) if many else value}))


def test_numbers_of_the_network_must_be_finite():
    recipe = replace(Recipe(), model=Model("DiT-S/2", mlp_ratio=float("nan")))
    with pytest.raises(InputError, match=r"^model.mlp_ratio is nan; give a finite number$"):
        check_recipe(recipe)


def test_old_names_are_read_with_a_note():
    tables = {"train": {"widths": [0.1], "patience": 3, "align": [0, 1], "align_weight": 0.25}}
    with pytest.warns(FutureWarning, match=r"train\.widths is now called train\.power_ema") as notes:
        recipe = parse_recipe(tables)
    assert len(notes) == 4
    assert (recipe.train.power_ema, recipe.train.max_bad_steps) == ((0.1,), 3)
    assert (recipe.train.layer_sync, recipe.train.layer_sync_weight) == ((0, 1), 0.25)
    assert parse_recipe({}, ["--train.widths=0.05", "--train.widths=0.1"]).train.power_ema == (0.05, 0.1)
    _, silent = renamed(Recipe, {"train": {"widths": [], "patience": 10}})  # as files of earlier versions have them
    assert silent == []
    with pytest.warns(FutureWarning):
        assert Recipe().override({"train": {"patience": 4}}).train.max_bad_steps == 4


def test_a_setting_under_both_names_is_refused():
    words = r"train\.patience and train\.max_bad_steps are the same setting; give train\.max_bad_steps"
    with pytest.raises(InputError, match=words):
        renamed(Recipe, {"train": {"patience": 5, "max_bad_steps": 5}})


def test_options_of_the_process():
    table = {"diffusion": {"process": "linear", "process_options": {"clock_rate": -1}}}
    assert parse_recipe(table).diffusion.process_options == {"clock_rate": -1}
    given = parse_recipe({}, ["--diffusion.process_options.clock_rate=-1", "--diffusion.process-options.clock_start=1"])
    assert given.diffusion.process_options == {"clock_rate": -1.0, "clock_start": 1.0}


RANGES = {"at_least", "below", "up_to", "share", "not_negative", "between"}


def test_every_number_has_a_range():
    without = {
        f"{kind.__name__}.{field.name}"
        for kind in KINDS
        for field in fields(kind)
        if numbers_in(get_type_hints(kind)[field.name]) and not RANGES & set(field.metadata)
    }
    # These may have any finite value, or are checked by the process, by the text encoder and by the recipe of a study.
    study = {"Budget.images", "Budget.gmacs", "Budget.seconds", "Basics.sample_sets"}
    assert without == {
        "Evaluation.expect",
        "Evaluation.show",
        "Diffusion.process_options",
        "Data.encoder_options",
        "Train.encoder_dropout",
        *study,
    }


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**30])
def test_whole_numbers_must_fit_into_a_tensor(value):
    with pytest.raises(InputError, match=f"^train.images is {value}; give a number of at most {2**63 - 1}$"):
        check_settings(replace(Recipe(), train=replace(Recipe().train, images=value)))
