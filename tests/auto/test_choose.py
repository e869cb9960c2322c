"""What is chosen for a data source."""

import numpy as np
import pytest
from PIL import Image

from ditlab.auto import choose
from ditlab.auto.choose import Choice, base_tables, choose_data, choose_network, grid, recipe_from, size_of
from ditlab.auto.facts import Facts, look
from ditlab.config.reader import with_values
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError


def facts(images=5000, size=(64, 64), one_size=True, one_aspect=True, channels=3, classes=None, resizable=True):
    classes = {"a": images // 2, "b": images - images // 2} if classes is None else classes
    return Facts("x", images, size, one_size, one_aspect, channels, classes, resizable, "")


def write(folder, name, size, mode="RGB"):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1]).save(file)


class TestLook:
    def test_a_folder_of_classes(self, tmp_path):
        for i in range(3):
            write(tmp_path, f"cats/{i}.png", (20, 40))
        write(tmp_path, "dogs/0.png", (24, 48), "L")
        found = look(str(tmp_path), Preparation())
        assert (found.images, found.size, found.one_size, found.one_aspect) == (4, (20, 40), False, True)
        assert (found.channels, found.classes) == (3, {"cats": 3, "dogs": 1})
        assert (found.resizable, found.held_out) == (True, "")

    def test_a_divided_folder(self, tmp_path):
        for part in ("train", "val"):
            write(tmp_path, f"{part}/a/0.png", (8, 8))
        assert look(str(tmp_path), Preparation()).held_out == str(tmp_path / "val")

    def test_different_aspect_ratios(self, tmp_path):
        for i, size in enumerate([(20, 20), (20, 60), (60, 20)]):
            write(tmp_path, f"{i}.png", size)
        found = look(str(tmp_path), Preparation())
        assert (found.size, found.one_aspect, found.classes) == ((20, 20), False, {})

    def test_clips(self, tmp_path):
        frames = [Image.new("L", (8, 8), i) for i in (0, 255)]
        for i in range(3):
            frames[0].save(tmp_path / f"{i}.webp", save_all=True, append_images=frames[1:])
        write(tmp_path, "still.png", (8, 8))
        message = "holds clips, and only images can be trained on without a recipe; write a recipe with data.frames"
        for source, settings in ((str(tmp_path), Preparation()), ("moving-digits-32", Preparation())):
            with pytest.raises(InputError, match=message):
                look(source, settings)
        with pytest.raises(InputError, match=message):
            look(str(tmp_path), Preparation(frames=2))

    def test_a_built_in_data_set(self):
        found = look("digits", Preparation())
        assert (found.images, found.size, found.channels, found.held_out) == (1437, (8, 8), 1, "digits-held-out")
        assert (len(found.classes), min(found.classes.values()), found.resizable) == (10, 139, False)


class TestData:
    @pytest.mark.parametrize(
        ("found", "size"),
        [
            (facts(size=(28, 28)), (28, 28)),
            (facts(size=(30, 30)), (32, 32)),
            (facts(size=(8, 8)), (8, 8)),
            (facts(size=(512, 512)), (64, 64)),
            (facts(size=(100, 400)), (32, 128)),
            (facts(size=(300, 400), one_size=False, one_aspect=False), (64, 64)),
            (facts(size=(48, 60), one_size=False, one_aspect=False), (48, 48)),
        ],
    )
    def test_size(self, found, size):
        assert size_of(found)[0] == size

    def test_the_side_of_squares_grows_with_the_images(self):
        assert [grid(8, 8), grid(28, 28), grid(32, 32), grid(64, 64), grid(32, 128)] == [1, 2, 2, 4, 4]

    def test_images_of_a_usable_size_are_not_resized(self):
        assert [choice.key for choice in choose_data(facts(), {})] == ["held_out"]

    def test_a_tenth_is_held_out_but_not_more_than_two_thousand(self):
        assert choose_data(facts(5000), {})[0].value == 0.1
        assert choose_data(facts(200_000), {})[0].value == 0.01

    def test_nothing_is_held_out_of_few_images(self):
        assert choose_data(facts(199), {}) == []

    def test_settings_of_the_user_are_not_chosen(self):
        given = {"data": {"size": "32", "held_out": 0.2}}
        assert choose_data(facts(size=(100, 100)), given) == []


class TestNetwork:
    def test_a_larger_network_from_its_number_of_images_on(self, monkeypatch):
        networks = [{"name": "Hourglass-XS", "images": 0}, {"name": "Hourglass-S", "images": 1000}]
        changed = choose.table() | {"networks": networks}
        monkeypatch.setattr(choose, "table", lambda: changed)
        few = choose_network(facts(), base_tables(facts()), [5000, 999], 30)
        many = choose_network(facts(), base_tables(facts()), [5000, 1000], 30)
        assert [choice.value for choice in few] == ["Hourglass-XS", 4]
        assert [choice.value for choice in many] == ["Hourglass-S", 4]
        assert "about 5,000 training images in 30 minutes on this machine; Hourglass-S pays from 1,000 on" in str(
            few[0]
        )

    def test_a_network_of_the_user_stays(self):
        assert (
            choose_network(facts(), with_values(base_tables(facts()), {"model": {"name": "DiT-S/4"}}), [1, 1], 30) == []
        )

    def test_the_recipe_is_valid(self):
        options = choose.network_options((64, 64))[0]
        recipe = recipe_from(with_values(base_tables(facts()), {"model": options, "data": {"held_out": 0.1}}), facts())
        assert (recipe.model.name, recipe.model.patch, recipe.data.source) == ("Hourglass-XS", 4, "x")
        assert (recipe.diffusion.target, recipe.optim.name, recipe.sample.sampler) == ("x0", "muon", "ab4")


def test_a_choice_names_its_option():
    assert str(Choice("data", "held_out", 0.1, "why")) == "--data.held-out 0.1: why"
    assert str(Choice("data", "flip", False, "why")) == "--data.no-flip: why"
    assert str(Choice("data", "flip", True, "why")) == "--data.flip: why"
    assert str(Choice("model", "name", "Hourglass-XS", "why")) == "--model.name Hourglass-XS: why"
    assert np.isfinite(choose.table()["time"]["score"])
