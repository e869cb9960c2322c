"""Class labels as conditions."""

import numpy as np
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
    assert [labels.stem(value) for value in ("a/b", 1, 2, None)] == ["a_b", "1", "2", "any"]


def test_long_and_hidden_names_give_files_of_every_system():
    labels = ClassLabels(4, ["ä" * 300, "ä" * 301, ".hidden", "CON"])
    long = "ä" * 40
    assert [labels.stem(value) for value in range(4)] == [f"{long}-index0", f"{long}-index1", "_hidden", "CON"]


def test_file_names_of_classes_that_differ_in_special_characters_or_case():
    labels = ClassLabels(6, ["a b", "A/B", "crane", "crane", "c"])
    stems = [labels.stem(value) for value in range(6)]
    assert stems == ["a_b-index0", "A_B-index1", "crane-index2", "crane-index3", "c", "5"]


NO_NAME = "no class name, and class names of this model are numbers"
TWO = 'is ambiguous: it may be the class "{0}", or index {1}, which is the class "{2}"; give "{0}" or index:{1}'


class TestNamesThatAreNumbers:
    """A number is a name first; an index has the prefix "index:" where it could be another name."""

    one_based = ClassLabels(10, [str(i) for i in range(1, 11)])
    padded = ClassLabels(10, [f"{i:03d}" for i in range(1, 11)])

    @pytest.mark.parametrize("one", [1, "1", np.int64(1), torch.tensor(1), "index:0", "index: 0"])
    def test_a_name_wins_over_an_index(self, one):
        assert self.one_based.names[self.one_based.index(one)] == "1"

    @pytest.mark.parametrize(
        ("kind", "label", "line"),
        [
            ("one_based", 0, f'label 0 is {NO_NAME}; give index:0 for the class "1"'),
            ("one_based", "0", f'label 0 is {NO_NAME}; give index:0 for the class "1"'),
            ("one_based", "02", f'label 02 {TWO.format("2", 2, "3")}'),
            ("one_based", "010", 'unknown class "010"; give "10"'),
            ("one_based", 11, 'unknown class "11"; did you mean "1"?'),
            ("one_based", "index:10", "label index:10 is out of range; this model has the indices 0 to 9"),
            ("padded", 1, f'label 1 {TWO.format("001", 1, "002")}'),
            ("padded", "1", f'label 1 {TWO.format("001", 1, "002")}'),
            ("padded", "1.0", f'label 1.0 {TWO.format("001", 1, "002")}'),
            ("padded", 0, f'label 0 is {NO_NAME}; give index:0 for the class "001"'),
            ("padded", 10, 'unknown class "10"; give "010"'),
        ],
    )  # fmt: skip
    def test_numbers_that_are_no_names(self, kind, label, line):
        with pytest.raises(InputError) as caught:
            getattr(self, kind).index(label)
        assert str(caught.value) == line

    def test_indices_work_where_names_are_no_other_numbers(self):
        for names in (["cat", "dog", "eel"], ["0", "1", "2"], ["00", "01", "02"], ["cat", "1", "eel"], []):
            labels = ClassLabels(3, names)
            assert [labels.index(value) for value in (1, "1", "index:1", "index:2", "02")] == [1, 1, 1, 2, 2]
            assert labels.all_values() == [0, 1, 2]

    def test_one_number_among_words(self):
        labels = ClassLabels(4, ["cat", "dog", "1984"])
        assert [labels.index(value) for value in ("dog", 1984, "index:1", "index:3")] == [1, 2, 1, 3]
        assert labels.all_values() == ["cat", "dog", "1984", "index:3"]
        with pytest.raises(InputError, match=r'label 1 is no class name, .*; give index:1 for the class "dog"'):
            labels.index(1)

    def test_all_values_are_read_as_all_classes(self):
        for labels in (self.one_based, self.padded, ClassLabels(4, ["5", "x", "5"]), ClassLabels(3)):
            assert labels.encode(labels.all_values()).label.tolist() == list(range(labels.classes))
            assert [labels.index(labels.value(i)) for i in range(labels.classes)] == list(range(labels.classes))

    def test_titles_and_file_names(self):
        assert [self.one_based.title(value) for value in (1, "index:1")] == ["1", "2"]
        assert [self.padded.stem(value) for value in ("001", "index:1")] == ["001", "002"]

    def test_points_between_two_of_them(self):
        between = self.one_based.encode([Between("1", 3, 0.5), Between("index:1", 2, 0.5)])
        assert (between.label.tolist(), between.other.label.tolist()) == ([0, 1], [2, 1])


@pytest.mark.parametrize(
    ("names", "label", "line"),
    [
        (["01", "1", "1.0", "2"], "001",
         'label 001 is ambiguous: it may be the class "01", "1", "1.0", or index 1, which is the class "1"; '
         'give "01", "1", "1.0" or index:1'),
        (["0", "1", "+1", "-1"], "01",
         'label 01 is ambiguous: it may be the class "1", "+1", or index 1, which is the class "1"; '
         'give "1", "+1" or index:1'),
        (["7", "07", "cat"], "007", 'unknown class "007"; give "7", "07"'),
    ],
)  # fmt: skip
def test_names_of_the_same_number(names, label, line):
    labels = ClassLabels(len(names), names)
    assert [labels.index(name) for name in names] == [0, 1, 2, 3][: len(names)]
    with pytest.raises(InputError) as error:
        labels.index(label)
    assert str(error.value) == line


@pytest.mark.parametrize("names", [[], ["1", "2", "3"]])
@pytest.mark.parametrize("text", ["index:" + "9" * 5000, "9" * 5000, "1" + "0" * 1_000_000, "9" * 5000 + ".5"])
def test_numbers_of_many_digits_are_no_classes(names, text):
    with pytest.raises(InputError, match=r"^unknown class \"(index:)?[19]"):
        ClassLabels(3, names).index(text)
    assert ClassLabels(3, names).index("index:" + "0" * 5000 + "2") == 2


def test_names_are_compared_in_one_form_of_unicode():
    labels = ClassLabels(2, ["cafe\u0301", "the\u0301"])  # as macOS writes the names of folders
    assert [labels.index(value) for value in ("caf\u00e9", "th\u00e9", "cafe\u0301")] == [0, 1, 0]


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
    with pytest.raises(InputError, match='unknown conditioner "image"; choose from: class, text'):
        create_conditioner("image")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("../../x", "__.._x"),
        ("/abs", "_abs"),
        ("C:\\x", "C__x"),
        ("a\x00b\n\x1b[0m", "a_b___0m"),
        ("CON", "CON"),  # "CON-seed0.png" is no reserved name, "CON.x-seed0.png" is one
        ("con.x", "_con.x"),
        (".", "_"),
        ("..", "_"),
        (".hidden", "_hidden"),
        ("St.", "St."),
        ("x" * 400, "x" * 80),
        ("é" * 400, "é" * 40),
    ],
)
def test_any_class_name_becomes_a_file_name(name, stem):
    assert ClassLabels(1, [name]).stem(0) == stem
