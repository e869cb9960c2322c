"""Caches that machines write together: in a shared folder, or in a store and nothing else."""

import pytest
import torch
from fake_store import Faulty, remove
from rich.console import Console

from ditlab.autoencoders import create_autoencoder
from ditlab.cli.data import Encoding
from ditlab.core.errors import InputError
from ditlab.core.stores import StoreError, matching, read
from ditlab.data import InMemory, open_dataset
from ditlab.data.latents.encode import encode
from ditlab.data.latents.shards import write_shard

QUIET = Console(quiet=True)
FILES = ("*.json", "shards/*.safetensors", "autoencoder/*")


def dataset(seed=1):
    images = torch.randint(0, 256, (23, 1, 8, 8), generator=torch.Generator().manual_seed(seed)).byte()
    return InMemory(images, torch.arange(23) % 2, ["a", "b"], captions=[f"number {i}" for i in range(23)])


def make(out, seed=1, **options):
    torch.manual_seed(0)
    autoencoder = create_autoencoder(kind="patch", picture_channels=1, latent_channels=2, stride=2, width=8, depth=1)
    return encode(dataset(seed), "some images", autoencoder.eval(), out, QUIET, batch_size=3, shard=4, **options)


def content(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for pattern in FILES for file in folder.glob(pattern)
    }


def stored(url):
    return {name: read(file.url) for pattern in FILES for name, file in matching(url, pattern).items()}


def test_parts_in_a_shared_folder_equal_one_machine(tmp_path):
    make(tmp_path / "alone")
    done = [make(tmp_path / "shared", rank=rank, world=3).entries for rank in (2, 0, 1)]
    assert done == [None, None, 23]
    assert content(tmp_path / "shared") == content(tmp_path / "alone")


def test_parts_in_a_store_equal_one_machine(store, tmp_path):
    make(tmp_path / "alone")
    done = [make(tmp_path / str(rank), rank=rank, world=3, upload=store).entries for rank in (2, 0, 1)]
    assert done == [None, None, 23]
    assert stored(store) == content(tmp_path / "alone")
    dataset = open_dataset(store)
    assert (len(dataset), dataset.captions(22)) == (23, ("number 22",))


def test_the_part_of_a_killed_machine_is_done_again(store, tmp_path, monkeypatch):
    make(tmp_path / "alone")
    make(tmp_path / "0", rank=0, world=2, upload=store)
    written = []

    def killed(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(write_shard(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr("ditlab.data.latents.encode.write_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "1", rank=1, world=2, upload=store)
    remove(f"{store}/shards/000001.json")  # as if killed between the shard and its entry
    assert make(tmp_path / "elsewhere", rank=1, world=2, upload=store).images == 11
    assert stored(store) == content(tmp_path / "alone")
    assert make(tmp_path / "new", rank=1, world=2, upload=store).images == 0


def test_a_local_cache_is_copied_without_encoding(store, tmp_path):
    make(tmp_path / "alone")
    assert make(tmp_path / "alone", upload=store).images == 0
    assert stored(store) == content(tmp_path / "alone")


def test_changed_images_are_encoded_again(store, tmp_path):
    make(tmp_path / "a", upload=store)
    make(tmp_path / "changed", seed=2)
    assert make(tmp_path / "b", seed=2, upload=store).images == 23
    assert stored(store) == content(tmp_path / "changed")


def test_another_cache_in_the_store(store, tmp_path):
    make(tmp_path / "a", upload=store)
    with pytest.raises(InputError) as error:
        make(tmp_path / "b", upload=store, dtype="fp32")
    assert str(error.value) == f"{store} holds another cache (dtype is fp16 there, fp32 here); give another address"


def test_a_store_that_fails_loses_nothing(store, tmp_path, monkeypatch):
    puts = []

    def failing(self, source, target, **options):
        puts.append(target)
        raise PermissionError("Forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(Faulty, "put_file", failing)
        with pytest.raises(StoreError, match=r"no access to .* \(Forbidden\); give credentials"):
            make(tmp_path / "a", rank=1, world=2, upload=store)
    assert len(puts) == 1
    assert make(tmp_path / "a", rank=1, world=2, upload=store).images == 7  # the first shard was there


@pytest.mark.parametrize("part", ["9/8", "0/8", "3", "3/8/2", "a/b"])
def test_parts_that_do_not_exist(part):
    with pytest.raises(InputError, match=rf'--part is "{part}"; give NUMBER/COUNT, such as 3/8'):
        Encoding(part=part).place()


def test_parts_and_processes(monkeypatch):
    monkeypatch.setattr("ditlab.cli.data.process_place", lambda: (1, 4))
    assert Encoding(part="3/8").place() == (9, 32)
    assert Encoding().place() == (1, 4)
