import numpy as np
import pytest
import torch
from helpers import tiny_pipeline

from ditlab.core.errors import InputError


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize(
    "words",
    [
        {"labels": np.array(1), "seeds": np.array(7)},
        {"labels": torch.tensor(1), "seeds": torch.tensor(7)},
        {"labels": 1, "seeds": 7, "size": np.array([8, 8]).tolist(), "batch_size": np.array(2)},
        {"labels": 1, "seeds": 7, "steps": np.array(2), "guidance": np.array(1.0)},
    ],
)
def test_arrays_without_axis_are_numbers(pipe, words):
    expected = pipe(1, seeds=7, steps=2, sampler="euler", output_type="np").images
    assert np.array_equal(pipe(**{"steps": 2} | words, sampler="euler", output_type="np").images, expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"seeds": 1.0}, "seed 1.0 is not a whole number; give 0 to 9223372036854775807"),
        ({"steps": 2.5}, "steps 2.5; give a whole number"),
        ({"steps": torch.tensor(2.5)}, "steps tensor(2.5000); give a whole number"),
        ({"steps": np.array([2])}, "steps array([2]); give a whole number"),
        ({"guidance": [1, 2]}, "guidance [1, 2]; give a number"),
        ({"guidance": 10**400}, f"guidance {10**400}; give a number"),
        ({"size": 5}, "size 5; give height and width, such as (8, 8)"),
        ({"size": "8x8"}, "size '8x8'; give height and width, such as (8, 8)"),
        ({"size": (8, 3)}, "size 8x3; sides must be multiples of 2: give 8x4, the nearest one"),
        ({"size": (8, 8.5)}, "size 8.5; give a whole number"),
        ({"preset": 5}, 'unknown preset "5"; choose from: draft, normal, best, reference, dit-published'),
        ({"preset": []}, 'unknown preset "[]"; choose from: draft, normal, best, reference, dit-published'),
        ({"generator": 5}, "generator 5; give a torch.Generator, or a list with one for each image"),
        ({"image": 5}, "image is a int; give a PIL image, or a list of them"),
        ({"image": []}, "there is no image to start from; give one, or a list of them"),
        *(
            (
                {"schedule": times, "steps": None},
                "the times of a schedule must fall from at most 1 to 0; give one time more than steps",
            )
            for times in ([0.0], [1.0], 1.0, [], torch.tensor(0.5))
        ),
    ],
)
def test_other_values_are_one_line(pipe, words, message):
    with pytest.raises(InputError) as caught:
        pipe(**{"labels": 1, "steps": 2, "sampler": "euler"} | words)
    assert str(caught.value) == message
