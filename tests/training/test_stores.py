"""Runs on data in a store: exact resume, a shard that vanishes, and caches that lie in a store."""

import re

import pytest
import torch
from fake_store import Faulty, png, put, put_shards, remove, tar
from rich.console import Console
from text_net import RECIPE, Letters

import ditlab
from ditlab.autoencoders import create_autoencoder
from ditlab.conditioning import ENCODERS
from ditlab.conditioning.cache import TextCache
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.file_cache import file_cache
from ditlab.data import Latents, open_dataset
from ditlab.data.latents.encode import encode
from ditlab.training import loop, train

QUIET = Console(quiet=True)
MODEL = {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}


def recipe(source, images=64, **data):
    settings = {
        "images": images,
        "batch": 8,
        "precision": "float32",
        "compile": "never",
        "device": "cpu",
        "log_every": 8,
    }
    sampling = {"sampler": "euler", "steps": 1}
    tables = {"model": MODEL, "data": {"source": source} | data, "train": settings, "sample": sampling}
    return parse_recipe(tables)


def forget_copies():
    """Remove the finished copies; a thread of the run may take a lock or write a draft at this moment."""
    for path in file_cache().folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock" and not path.name.startswith("."):
            path.unlink(missing_ok=True)


def put_folder(folder, url):
    """Copy a folder to a store."""
    for file in folder.rglob("*"):
        if file.is_file():
            put(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes())


def test_resuming_from_a_store_is_exact(store, tmp_path):
    source = put_shards(store, shards=5, each=8)
    whole = train(recipe(source, shuffle_shards=2), tmp_path / "whole", console=QUIET)
    train(recipe(source, 24, shuffle_shards=2), tmp_path / "parts", console=QUIET)
    forget_copies()  # as on another machine
    parts = train(recipe(source, shuffle_shards=2), tmp_path / "parts", console=QUIET)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Vanishing:
    """Removes a shard from the store, and all copies, in the middle of an epoch."""

    def __init__(self, url):
        self.url = url

    def on_log(self, seen, values):
        if seen == 16 and self.url:
            remove(self.url)
            forget_copies()
            self.url = ""


@pytest.mark.slow
def test_a_shard_that_vanishes_in_mid_epoch(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EXPECTED", 0)
    monkeypatch.setattr("ditlab.data.kept.SHARE", 0)
    source = put_shards(store, shards=8, each=8)
    settings = recipe(source, shuffle_shards=1)
    whole = train(settings, tmp_path / "whole", console=QUIET)
    order = ditlab.data.training_order(64, 8, 0, 0, open_dataset(source).fetched_files(1), 1)
    gone = f"{store}/train-{int(list(zip(range(8), order, strict=False))[6][1][0]) // 8:04d}.tar"
    content = Faulty().cat_file(gone)
    with pytest.raises(InputError) as error:
        train(settings, tmp_path / "run", console=QUIET, callbacks=[Vanishing(gone)])
    assert str(error.value) == (
        f"{gone} does not exist; correct the address, or restore the file; {tmp_path / 'run'} is saved at 48 images, "
        "and the same command resumes"
    )
    monkeypatch.setattr("ditlab.core.stores.VERSIONS", ())  # the restored file has a later time
    put(gone, content)
    parts = train(settings, tmp_path / "run", console=QUIET, changes=True)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class Moving:
    """Moves a folder away in the middle of an epoch."""

    def __init__(self, folder, target):
        self.folder, self.target = folder, target

    def on_log(self, seen, values):
        if seen == 16 and self.folder.exists():
            self.folder.rename(self.target)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "latents"])
def test_shards_on_this_machine_that_vanish_in_mid_epoch(latents, form, tmp_path, monkeypatch):
    """Although `max_skipped` allows the loss of every image, none is replaced by another one."""
    monkeypatch.setattr("ditlab.data.kept.SHARE", 0)
    if form == "tar":
        (tmp_path / "shards").mkdir()
        for number in range(20):
            (tmp_path / "shards" / f"{number:02d}.tar").write_bytes(tar({f"{number}.png": png(number)}))
    source, shards = (tmp_path / "shards",) * 2 if form == "tar" else (latents[0], latents[0] / "shards")
    settings = recipe(str(source), max_skipped=1.0) if form == "tar" else recipe(str(source))
    whole = train(settings, tmp_path / "whole", console=QUIET)
    with pytest.raises(InputError) as error:
        train(settings, tmp_path / "run", console=QUIET, callbacks=[Moving(shards, tmp_path / "gone")])
    assert re.fullmatch(
        rf"{shards}/\S+ cannot be read \(No such file or directory\); restore this file; "
        rf"{tmp_path / 'run'} is saved at \d\d images, and the same command resumes",
        str(error.value),
    )
    (tmp_path / "gone").rename(shards)
    parts = train(settings, tmp_path / "run", console=QUIET)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_setting_without_effect(tmp_path):
    with pytest.raises(InputError, match=r"data.shuffle_shards is 2, which has no effect on digits; remove it"):
        train(recipe("digits", shuffle_shards=2), tmp_path / "run", console=QUIET)


@pytest.fixture
def latents(store, tmp_path):
    """A latent cache on this machine, and its copy in a store."""
    dataset = open_dataset(put_shards(f"{store}/images"))
    torch.manual_seed(0)
    autoencoder = create_autoencoder(kind="patch", picture_channels=3, latent_channels=4, stride=2, width=8, depth=1)
    encode(dataset, "images", autoencoder.eval(), tmp_path / "latents", QUIET, shard=8)
    put_folder(tmp_path / "latents", f"{store}/latents")
    return tmp_path / "latents", f"{store}/latents"


def test_a_latent_cache_in_a_store(latents):
    local, stored = (open_dataset(str(place)) for place in latents)
    indices = torch.tensor([19, 0, 7, 8])
    assert torch.equal(local.fetch(indices).x, stored.fetch(indices).x)
    assert torch.equal(local.labels, stored.labels)
    assert (local.captions(3), local.checksums) == (stored.captions(3), stored.checksums)
    assert stored.fetched_files(1).tolist() == [0] * 8 + [1] * 8 + [2] * 4


def test_only_the_needed_shards_of_latents_are_fetched(latents):
    Faulty.fetched.clear()
    stored = open_dataset(latents[1])
    stored.expect(torch.tensor([8, 9]))
    stored.fetch(torch.tensor([9]))
    assert [name for name in Faulty.fetched if name.startswith("0")] == ["000001.safetensors"]


@pytest.mark.slow
def test_training_on_latents_in_a_store(latents, tmp_path):
    runs = [train(recipe(str(place), 16), tmp_path / str(i), console=QUIET) for i, place in enumerate(latents)]
    assert [run.autoencoder.config["kind"] for run in runs] == ["patch", "patch"]


def test_damaged_latents_in_a_store(latents):
    remove(f"{latents[1]}/shards/000001.safetensors")
    with pytest.raises(InputError, match=r"latents lacks the shard 000001.safetensors; restore it, or encode again"):
        open_dataset(latents[1])
    put(f"{latents[1]}/shards/000001.safetensors", bytes(100))
    with pytest.raises(
        InputError, match=r"shard .*000001.safetensors (does not have the length|is missing or damaged)"
    ):
        Latents.open(latents[1])


@pytest.mark.slow
def test_a_cache_of_captions_in_a_store(store, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "letters", Letters)
    source = put_shards(f"{store}/images")
    encoder = Letters.for_captions(["number 1"], {})
    cache = TextCache.prepare(tmp_path / "texts", encoder)
    list(cache.add(["", *(f"number {i}" for i in range(20))], encoder))
    put_folder(tmp_path / "texts", f"{store}/texts")
    data = RECIPE["data"] | {"source": source}
    runs = []
    for place in (str(tmp_path / "texts"), f"{store}/texts"):
        tables = RECIPE | {"data": data | {"text_cache": place}}
        runs.append(train(tables, tmp_path / f"run{len(runs)}", console=QUIET))
    for a, b in zip(*(run.net.state_dict().values() for run in runs), strict=True):
        assert torch.equal(a, b)
