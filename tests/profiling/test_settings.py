"""The cheapest settings of memory."""

import pytest

from ditlab.config.reader import parse_recipe
from ditlab.core.units import GIB
from ditlab.profiling import settings
from ditlab.profiling.settings import Question, cheapest, line
from ditlab.training.memory import ActivationSizes, Held

HELD = Held(4 * GIB, 4 * GIB, 8 * GIB, 4 * GIB)


@pytest.fixture(autouse=True)
def held(monkeypatch):
    """A network of a billion parameters."""
    monkeypatch.setattr(
        settings,
        "held_in_training",
        lambda make, recipe: HELD if recipe.optim.moments == "float32" else HELD._replace(moments=2 * GIB),
    )


def sizes(checkpointing, offloaded, batch):
    """One GiB for each image, a tenth of it with recomputing, and a twentieth outside the blocks."""
    kept = batch * GIB / (10 if checkpointing else 1)
    return ActivationSizes(batch * GIB / 20, kept / 10, 0, kept) if offloaded else ActivationSizes(kept, 0, 0, 0)


def answer(gib, devices=1, batch=16, **more):
    recipe = parse_recipe({"model": {"name": "DiT"}, "train": {"batch": batch}} | more)
    found = cheapest(
        Question(None, recipe, devices, gib * GIB, flops=100e12, flop=1e15, again=1 / 3, launch=0.01), sizes
    )
    return None if found is None else found.settings


@pytest.mark.parametrize(
    ("gib", "devices", "expected"),
    [
        (48, 1, {}),
        (30, 1, {"parallel.accumulate": 2}),
        (18, 1, {"parallel.offload": ("average",), "parallel.accumulate": 16}),
        (11.5, 1, {"parallel.offload": ("average", "moments"), "parallel.accumulate": 8}),
        (8, 1, None),
        (24, 8, {}),
        (18, 8, {"parallel.shard": "full"}),
        (5, 8, {"parallel.shard": "full", "parallel.accumulate": 2}),
    ],
)
def test_the_settings_that_fit_and_take_the_least_time(gib, devices, expected):
    assert answer(gib, devices) == expected


def test_moments_of_8_bits_are_the_last_resort():
    muon = answer(18, optim={"name": "muon"})
    assert "optim.moments" not in muon
    assert "moments" not in muon.get("parallel.offload", ())
    lora = {"train": {"batch": 16, "init_from": "x", "lora": 4}}
    assert "parallel.shard" not in answer(18, 8, **lora)


def test_the_settings_as_a_line():
    recipe = parse_recipe({"model": {"name": "DiT"}, "train": {"batch": 16}})
    question = Question(None, recipe, 1, 18 * GIB, flops=100e12, flop=1e15, again=1 / 3, launch=0.01)
    found = line(cheapest(question, sizes))
    assert found.startswith('cheapest settings that fit: parallel.offload = ["average"], parallel.accumulate = 16 (17.')
    assert line(None) == "no settings fit; take more devices, or a smaller network"
