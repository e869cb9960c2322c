"""`ditlab.train` as Python callers use it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.core.errors import InputError
from ditlab.data import from_torch
from ditlab.training import setup
from ditlab.training.callbacks import check_callbacks

QUIET = Console(quiet=True)
TABLES = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "train": {"images": 64, "batch": 16, "precision": "float32", "device": "cpu", "log_every": 16, "compile": "never"},
    "sample": {"sampler": "euler", "steps": 1},
}


class Squares(torch.utils.data.Dataset):
    """A torch data set as people write one."""

    def __init__(self, image=None, label=lambda i: i % 3, count=12):
        self.image = image or (lambda i: torch.full((1, 8, 8), 20 * i, dtype=torch.uint8))
        self.label, self.count = label, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.image(i), self.label(i)


def test_a_recipe_can_be_tables_a_file_or_a_recipe(tmp_path):
    recipe = ditlab.Recipe.load("digits").override(TABLES)
    file = recipe.save(tmp_path / "mine.toml")
    assert ditlab.Recipe.load(file) == recipe
    assert recipe.model.qk_norm is None  # of the network that was named before
    same = recipe.override({"train": {"seed": 3}})
    assert (same.train.seed, same.model) == (3, recipe.model)
    assert recipe.override(train={"seed": 3}) == same
    with pytest.raises(InputError, match="override has the section train twice; give it once"):
        recipe.override({"train": {"seed": 3}}, train={"seed": 4})
    weights = []
    for name, given in (("tables", TABLES | {"optim": {"lr": 5e-3}}), ("again", TABLES | {"optim": {"lr": 5e-3}})):
        weights.append(ditlab.train(given, tmp_path / name, console=QUIET).net.state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert ditlab.train(file, tmp_path / "file", console=QUIET).config["images_seen"] == 64
    with pytest.raises(InputError, match=r'override has a section "trian" that no recipe has; did you mean "train"'):
        recipe.override({"trian": {}})
    with pytest.raises(InputError, match=r"train\.imagse"):
        recipe.override({"train": {"imagse": 3}})
    for section, key, instead in (
        ("train", "epochs", "train.images, the number of images to train on (epochs times the size of the data set)"),
        ("optim", "learning_rate", "optim.lr"),
        ("train", "lr", "optim.lr"),
    ):
        with pytest.raises(InputError) as caught:
            recipe.override({section: {key: 3}})
        assert str(caught.value) == f'override has a key "{section}.{key}" that no recipe has; give {instead}'
    with pytest.raises(InputError, match=r'override has a key "lr" that no recipe has; give optim.lr'):
        recipe.override(lr=3)
    with pytest.raises(InputError, match=r'"optim.lr" that no recipe has; give {"optim": {"lr": ...}}'):
        recipe.override({"optim.lr": 3})
    assert ditlab.Recipe.load(TABLES).train.images == 64
    for other in (3, None):
        with pytest.raises(InputError, match=f"^recipe is a {type(other).__name__}; give a name, the path of a .toml"):
            ditlab.train(other, tmp_path / "none")
    with pytest.raises(InputError, match='no recipe "digit"'):
        ditlab.train("digit", tmp_path / "none")


def test_the_run_folder_has_the_name_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ditlab.Recipe.load(TABLES).save("mine.toml")
    ditlab.train(file, console=QUIET)
    assert ditlab.load("runs/mine").config["images_seen"] == 64
    with pytest.raises(InputError, match=r"^a recipe without a name needs a run folder; give out$"):
        ditlab.train(TABLES)


def test_data_in_place_of_a_recipe_names_the_function_for_it(tmp_path):
    with pytest.raises(InputError, match=f'^"{tmp_path}" is a data source; call train_folder, .* or give it as data='):
        ditlab.train(tmp_path)


def test_a_torch_data_set_trains_and_resumes(tmp_path):
    pipe = ditlab.train(TABLES, tmp_path, data=Squares(), console=QUIET)
    assert (pipe.net.size, pipe.net.channels, pipe.classes) == ((8, 8), 1, ["0", "1", "2"])
    assert pipe.config["recipe"]["data"]["source"] == "python:Squares"
    longer = TABLES | {"train": TABLES["train"] | {"images": 96}}
    assert ditlab.train(longer, tmp_path, data=Squares(), console=QUIET).config["images_seen"] == 96
    with pytest.raises(InputError, match=r"12 images there, 11 here"):
        ditlab.train(longer, tmp_path, data=Squares(count=11), console=QUIET)


def test_images_of_other_types_train(tmp_path):
    floats = Squares(image=lambda i: torch.full((1, 8, 8), i / 20))
    pipe = ditlab.train(TABLES, tmp_path / "floats", data=floats, console=QUIET)
    assert (pipe.net.channels, pipe.config["images_seen"]) == (1, 64)
    arrays = {"images": torch.zeros(12, 1, 8, 8, dtype=torch.uint8), "labels": torch.arange(12) % 2, "classes": "ab"}
    assert ditlab.train(TABLES, tmp_path / "arrays", data=arrays, console=QUIET).classes == ["a", "b"]


@pytest.mark.slow
def test_values_of_a_recipe_get_their_type(tmp_path):
    tables = ditlab.Recipe.load("digits").override(TABLES)
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("L", (8, 8), 9).save(folder / "a.png")
    tables = tables.override({"sample": {"guidance": 1}})  # there are no classes
    data, settings = ditlab.config.Data(source=folder, size=16), replace(tables.train, images="32")
    pipe = ditlab.train(replace(tables, data=data, train=settings), tmp_path / "run", console=QUIET)
    assert (pipe.net.size, pipe.config["images_seen"]) == ((16, 16), 32)
    assert pipe.config["recipe"]["data"]["source"] == str(folder)
    with pytest.raises(InputError, match=r'train\.images: "many" is not a whole number'):
        ditlab.train(replace(tables, train=replace(settings, images="many")), tmp_path / "b", console=QUIET)
    with pytest.raises(InputError, match=r"data\.source is a Squares; give a string there, or this data set as data="):
        ditlab.train(replace(tables, data=ditlab.config.Data(source=Squares())), tmp_path / "b", console=QUIET)
    with pytest.raises(InputError, match=r"data\.source is a Squares; give a string there, or this data set as data="):
        ditlab.train(TABLES | {"data": {"source": Squares()}}, tmp_path / "b", console=QUIET)
    pipe = ditlab.train(TABLES, tmp_path / "path", data=folder, console=QUIET)
    assert pipe.config["recipe"]["data"]["source"] == str(folder)


@pytest.mark.slow
def test_a_model_that_reads_gray_as_rgb_resumes(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        Image.new("L", (8, 8), 40 * i).save(folder / f"{i}.png")
    tables = TABLES | {"data": {"source": str(folder), "size": "8"}}
    assert ditlab.train(tables, tmp_path / "new", console=QUIET).net.channels == 1
    with monkeypatch.context() as earlier:  # version 0.1 read gray images as RGB if a size was set
        earlier.setattr(setup, "channels_to_read", lambda job: 3)
        assert ditlab.train(tables, tmp_path / "old", console=QUIET).net.channels == 3
    longer = tables | {"train": TABLES["train"] | {"images": 96}}
    for name, channels in (("new", 1), ("old", 3)):
        pipe = ditlab.train(longer, tmp_path / name, console=QUIET)
        assert (pipe.net.channels, pipe.config["images_seen"]) == (channels, 96)


def test_the_source_of_the_data_can_be_given(tmp_path):
    pipe = ditlab.train(TABLES, tmp_path, data="glyphs-16", console=QUIET)
    assert pipe.net.size == (16, 16)


def test_pil_images_and_names_of_classes():
    class Named(Squares):
        classes = ("cat", "dog", "otter")
        targets = (2, 1, 0) * 4

    def colored(i):
        return Image.new("RGB", (6, 4), (i, 2 * i, 255))

    data = from_torch(Named(image=colored, label=lambda i: "not read"))
    assert (data.classes, data.channels, data.size, len(data)) == (["cat", "dog", "otter"], 3, (4, 6), 12)
    batch = data.fetch(torch.tensor([1, 5]))
    assert batch.x[:, :, 0, 0].tolist() == [[1, 2, 255], [5, 10, 255]]
    assert batch.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": lambda i: torch.zeros(1, 8, 8, dtype=torch.cfloat)}, "image 0: numbers of type complex64; give"),
        ({"image": lambda i: "file.png"}, "image 0 is of type str; give PIL images, tensors"),
        ({"label": lambda i: f"a red fox {i}"}, "label 0 is 'a red fox 0'; give integers from 0"),
        ({"label": lambda i: i - 3}, "label 0 is -3; give integers from 0"),
        ({"label": lambda i: 0.5}, r"label 0 is 0\.5; give integers from 0"),
        ({"count": 0}, "Squares holds no images"),
    ],
)
def test_data_sets_of_another_form(options, words):
    with pytest.raises(InputError, match=words):
        from_torch(Squares(**options))


def test_images_of_different_sizes():
    data = from_torch(Squares(image=lambda i: torch.zeros(1, 8 + (i > 6), 8, dtype=torch.uint8)))
    with pytest.raises(InputError, match=r"image 8 has the shape \(1, 9, 8\) but image 0 has \(1, 8, 8\)"):
        data.fetch(torch.tensor([3, 8]))


class Recorder:
    """A callback with all methods."""

    def __init__(self, stop_at=None):
        self.stop_at, self.logged, self.shown, self.ended = stop_at, {}, [], []
        self.steps, self.saved = [], []

    def on_step(self, seen, net):
        self.steps.append((seen, net.training))

    def on_checkpoint(self, seen, folder):
        self.saved.append((seen, (folder / "model.safetensors").exists()))

    def on_log(self, seen, values):
        self.logged[seen] = values
        return seen == self.stop_at

    def on_preview(self, seen, image):
        self.shown.append((seen, image.size[0] > 8))

    def on_end(self, pipe):
        self.ended.append(pipe)


def test_callbacks_receive_metrics_and_previews(tmp_path):
    recorder = Recorder()
    tables = TABLES | {"train": TABLES["train"] | {"preview_every": 32}}
    pipe = ditlab.train(tables, tmp_path, callbacks=[recorder, SimpleNamespace(on_end=str)], console=QUIET)
    assert list(recorder.logged) == [16, 32, 48, 64]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [values["loss"] for values in recorder.logged.values()]
    assert recorder.shown == [(32, True), (64, True)]
    assert recorder.ended == [pipe]
    assert recorder.steps == [(16, True), (32, True), (48, True), (64, True)]
    assert recorder.saved[-1] == (64, True)


def test_a_method_that_is_never_called_is_an_error(tmp_path):
    class Odd:
        def on_batch(self, seen):
            pass

        on_chekpoint = None

    with pytest.raises(InputError) as caught:
        ditlab.train(TABLES, tmp_path, callbacks=[Odd()], console=QUIET)
    assert str(caught.value).startswith('callback Odd has the method "on_batch"; ')


def test_callbacks_that_are_never_called_are_an_error(tmp_path):
    for callbacks, message in (
        (
            [print],
            "callback builtin_function_or_method has no method of on_step, on_log, on_preview, on_checkpoint, on_e",
        ),
        (Recorder(), "callbacks is a Recorder; give a list of objects"),
        ([Recorder], r"callback Recorder is a class; give an object, Recorder\(\)"),
    ):
        with pytest.raises(InputError, match=message):
            ditlab.train(TABLES, tmp_path / "run", callbacks=callbacks, console=QUIET)
    check_callbacks([SimpleNamespace(on_end=print, on_gpu=True)])  # on_gpu is no method


@pytest.mark.slow
def test_a_callback_stops_a_run_which_can_be_resumed(tmp_path):
    recorder = Recorder(stop_at=32)
    pipe = ditlab.train(TABLES, tmp_path / "parts", callbacks=[recorder], console=QUIET)
    assert pipe.config["images_seen"] == 32
    assert len(recorder.ended) == 1
    assert (tmp_path / "parts" / "report.html").exists()
    parts = ditlab.train(TABLES, tmp_path / "parts", console=QUIET)
    whole = ditlab.train(TABLES, tmp_path / "whole", console=QUIET)
    assert all(torch.equal(a, b) for a, b in zip(*(x.net.parameters() for x in (parts, whole)), strict=True))


@pytest.mark.slow
def test_a_callback_stops_a_run_after_any_step(tmp_path):
    stop = SimpleNamespace(on_step=lambda seen, net: seen >= 24)
    tables = TABLES | {"train": TABLES["train"] | {"log_every": 64}}
    assert ditlab.train(tables, tmp_path, callbacks=[stop], console=QUIET).config["images_seen"] == 32
    assert ditlab.train(tables, tmp_path, console=QUIET).config["images_seen"] == 64
