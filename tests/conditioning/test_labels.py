"""Class labels as conditions."""

import pytest
import torch

from ditlab.conditioning import ClassLabels, create_conditioner
from ditlab.core.errors import InputError
from ditlab.core.types import Between


@pytest.fixture
def labels():
    return ClassLabels(4, ["cat", "dog", "2"])


def test_names_win_over_indices(labels):
    given = ["dog", 3, "3", "2", None, torch.tensor(1)]
    assert labels.encode(given).label.tolist() == [1, 3, 3, 2, 4, 1]
    assert labels.null(3).label.tolist() == [4, 4, 4]


def test_dropping_gives_the_null_class(labels):
    dropped = labels.drop(labels.encode([0, 1, 2]), torch.tensor([True, False, True]))
    assert dropped.label.tolist() == [4, 1, 4]


def test_points_between_two_classes(labels):
    between = labels.encode([Between("cat", "dog", 0.25), 2, Between(0, 3, 0.0), Between(0, 3, 1.0)])
    assert between.label.tolist() == [0, 2, 0, 3]
    assert between.other.label.tolist() == [1, 2, 0, 3]
    assert between.weight.tolist() == [0.25, 0, 0, 0]
    assert labels.encode([Between("cat", "cat", 0.5)]).other is None
    with pytest.raises(InputError, match=r"a weight of -0\.1 between two values; give 0 to 1"):
        labels.encode([Between(0, 1, -0.1)])


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("dgo", 'unknown class "dgo"; did you mean "dog"'),
        (4, "label 4 is out of range; this model has the classes 0 to 3"),
        (-1, "label -1 is out of range"),
        (1.5, 'unknown class "1.5"'),
        (
            "a red fox in the snow",
            'text prompt "a red fox in the snow" for a class-conditional model; its classes are cat, dog, 2',
        ),
    ],
)
def test_values_that_it_cannot_take(labels, value, line):
    with pytest.raises(InputError, match=line):
        labels.encode([value])


def test_without_names_or_classes():
    with pytest.raises(InputError, match='unknown class "cat"; give 0 to 9'):
        ClassLabels(10).encode(["cat"])
    with pytest.raises(InputError, match=r'text prompt "two cats" .* its classes are 0 to 9'):
        ClassLabels(10).encode(["two cats"])
    with pytest.raises(InputError, match="label 1 for an unconditional model; leave the labels out"):
        ClassLabels(0).encode([1])
    assert ClassLabels(0).encode([None]).label.tolist() == [0]
    assert (ClassLabels(0).all_values(), ClassLabels(2).all_values()) == ([None], [0, 1])


def test_titles_and_parts_of_file_names():
    labels = ClassLabels(3, ["a/b", "1"])
    assert [labels.title(value) for value in (0, 1, 2, None)] == ["a/b", "1", "2", "any"]
    assert [labels.stem(value) for value in ("a/b", 1, 2, None)] == ["0-a_b", "1", "2", "any"]


def test_the_data_determines_the_number_of_classes():
    data = type("Data", (), {"classes": ["x", "y"]})()
    assert ClassLabels.for_data(data, {}).network_options() == {"classes": 2}
    roomy = ClassLabels.for_data(data, {"classes": 5})
    assert (roomy.classes, roomy.names) == (5, ["x", "y"])
    with pytest.raises(InputError, match=r"data\.classes is 1, but the data has 2 classes"):
        ClassLabels.for_data(data, {"classes": 1})


def test_it_is_built_again_from_its_config(labels):
    again = create_conditioner(**labels.config)
    assert again.config == labels.config == {"kind": "class", "classes": 4, "names": ["cat", "dog", "2"]}
    with pytest.raises(InputError, match='unknown conditioner "text"; choose from: class'):
        create_conditioner("text")
