"""Measures of a model itself: the change of its blocks between steps, their spectrum, and the loss on other images."""

import math

import pytest
import torch
from helpers import tiny_pipeline

from ditlab.config.evaluation import Evaluation
from ditlab.config.reader import parse_recipe, to_tables
from ditlab.core.errors import InputError
from ditlab.study.measures import MEASURES, StudyResults, measure_of
from ditlab.study.measures.loss import held_out_loss
from ditlab.study.measures.similarity import block_similarity
from ditlab.study.measures.spectrum import as_grid, low_share, spectrum

SETTINGS = Evaluation(count=4, batch_size=3, sampler="euler", steps=3, guidance=1.0, device="cpu")


def test_blocks_that_ignore_the_time_and_the_input_do_not_change():
    pipe = tiny_pipeline(classes=10, patch=2)
    found = block_similarity(pipe, SETTINGS, None)
    assert 0 < found["block_similarity"] < 1
    assert found["block_change"] > 0
    assert found["block_similarity"] == pytest.approx((found["block_similarity_0"] + found["block_similarity_1"]) / 2)
    for block in pipe.net.blocks:
        block.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    constant = block_similarity(pipe, SETTINGS, None)
    assert (constant["block_similarity"], constant["block_change"]) == (pytest.approx(1), 0)
    assert all(len(block._forward_hooks) == 1 for block in pipe.net.blocks)  # that of this test


def test_the_share_of_low_frequencies():
    place = torch.arange(8) / 8
    slow, fast = torch.cos(2 * math.pi * place), torch.cos(2 * math.pi * 3 * place)  # 1/8 and 3/8 cycles per position
    rows = torch.ones(8, 1)
    assert low_share((5 + rows * slow)[None, None]) == pytest.approx(1)
    assert low_share((5 + rows * fast)[None, None]) == pytest.approx(0, abs=1e-6)
    assert low_share((rows * (2 * slow + fast))[None, None]) == pytest.approx(4 / 5)
    tokens = torch.randn(2, 1 + 16, 6)
    assert torch.equal(as_grid(tokens), tokens[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1))
    assert as_grid(torch.zeros(2, 4, 4, 6)).shape == (2, 6, 4, 4)
    assert as_grid(torch.zeros(2, 6, 4, 4)).shape == (2, 6, 4, 4)
    assert as_grid(torch.zeros(2, 4, 6)) is None


def test_the_spectrum_of_a_model():
    found = spectrum(tiny_pipeline(classes=10, patch=2), SETTINGS, None)
    assert set(found) == {
        "low_frequencies", "low_frequencies_4", "low_frequencies_block_0", "low_frequencies_block_1"
    }  # fmt: skip
    assert 0 < found["low_frequencies"] < 1
    with pytest.raises(InputError, match=r"no block of DiT.* has a grid of 4 or more positions a side"):
        spectrum(tiny_pipeline(classes=10, patch=4), SETTINGS, None)


def test_the_loss_of_a_model_without_output_is_that_of_the_target():
    pipe = tiny_pipeline(classes=10)
    pipe.config["recipe"] = to_tables(parse_recipe({"model": {"name": "DiT-S/2"}}))
    first, again = (held_out_loss(pipe, SETTINGS, None)["loss"] for _ in range(2))
    assert first == again
    for parameter in pipe.net.final_layer.parameters():
        torch.nn.init.zeros_(parameter)
    few, many = (held_out_loss(pipe, Evaluation(count=count, batch_size=64), None)["loss"] for count in (64, 256))
    assert many == pytest.approx(few, rel=0.1)
    assert 1 < many < 2.5  # noise has the variance 1, and digits in -1..1 about another 0.5 to 1


def test_a_measure_has_an_evaluation_of_its_own():
    results = StudyResults()
    assert (results["loss"], results["fd"], results["prompts_seen"]) == ("held-out-loss", "frechet", "prompts")
    assert len(results) == len(set(results))
    assert results.lower_is_better("loss")
    assert not results.lower_is_better("block_similarity")
    assert results.lower_is_better("fd")
    assert measure_of(Evaluation(metrics=("frechet",))) is None
    assert measure_of(Evaluation(metrics=("spectrum",))) is MEASURES["spectrum"]
    with pytest.raises(InputError) as error:
        measure_of(Evaluation(metrics=("frechet", "spectrum")))
    assert str(error.value) == (
        "metrics is frechet, spectrum, but spectrum measures the model itself; give it an evaluation of its own"
    )
    with pytest.raises(InputError, match="reuse is 2, with which blocks are left out"):
        MEASURES["block-similarity"].check(None, Evaluation(reuse=2))
