"""Tar shards in a store: the same images as on a disk, each once in an epoch, in an order that needs few shards."""

import http.server
import threading
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from fake_store import Faulty, finish_fetching, png, put, put_shards, remove, tar

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.file_cache import file_cache
from ditlab.core.stores import StoreError
from ditlab.data import open_dataset, open_source, training_order
from ditlab.data.parse import content_identity, parse_source


def pixels(dataset, indices):
    return dataset.fetch(torch.tensor(indices)).x[:, 0, 0, 0].tolist()


def test_the_images_of_a_pattern(store):
    dataset = open_dataset(put_shards(store))
    assert (len(dataset), dataset.classes, dataset.size) == (20, ["0", "1"], (8, 8))
    assert pixels(dataset, [19, 0, 7]) == [19, 0, 7]
    assert dataset.labels.tolist() == [0, 1] * 10
    assert [dataset.captions(i) for i in (0, 19)] == [("number 0",), ("number 19",)]
    assert dataset.stamps().names[7] == "train-0001.tar:0007.png"
    assert len(Faulty.fetched) == 4


def test_patterns_folders_and_single_files(store):
    put_shards(store)
    put(f"{store}/classes.txt", b"even\nodd\n")
    for text, count in ((f"{store}/train-*.tar", 20), (store, 20), (f"{store}/train-0002.tar", 5)):
        source = open_source(text)
        assert (len(source), source.classes) == (count, ["even", "odd"])


def test_the_same_images_as_on_a_disk(store, tmp_path):
    members = {f"{i}.{kind}": png(i + 100 * ("seg" in kind)) for i in range(3) for kind in ("png", "seg.png")}
    (tmp_path / "a.tar").write_bytes(tar(members))
    put(f"{store}/a.tar", tar(members))
    for settings in (Preparation(), Preparation(image_column="seg"), Preparation(held_out=0.4)):
        stored, local = (open_dataset(text, settings) for text in (f"{store}/a.tar", str(tmp_path / "a.tar")))
        everything = list(range(len(local)))
        assert pixels(stored, everything) == pixels(local, everything)
        assert stored.stamps().names == local.stamps().names
    with pytest.raises(InputError, match=r'image_column is "mask", but the shards have .png, .seg.png; correct or rem'):
        open_dataset(f"{store}/a.tar", Preparation(image_column="mask"))


def test_parts_of_the_names_of_shards(store):
    for part, first in (("train", 0), ("val", 5)):
        put(f"{store}/x-{part}-0.tar", tar({f"{i}.png": png(i) for i in range(first, first + 5)}))
    assert pixels(open_dataset(store), [0]) == [0]
    assert pixels(open_dataset(f"{store}/x-*.tar:val"), [0]) == [5]
    held_out = parse_source(store).held_out()
    assert held_out is not None
    assert held_out.text == f"{store}:val"
    with pytest.raises(InputError, match=r'split is "train", but the source is .*:val; remove one of them'):
        open_source(f"{store}:val", Preparation(split="train"))


def test_a_listing_that_is_kept_is_the_same(store):
    put(f"{store}/a.tar", tar({f"{i}.{kind}": png() for i in range(3) for kind in ("png", "seg.png")}))
    first, second = (open_source(f"{store}/a.tar") for _ in range(2))
    assert first.places == second.places
    assert first.reading == second.reading


def test_a_later_start_fetches_nothing(store):
    pattern = put_shards(store)
    identity = content_identity(pattern)
    Faulty.fetched.clear()
    assert content_identity(pattern) == identity
    assert [open_source(pattern).captions(i) for i in (3, 4)] == [("number 3",), ("number 4",)]
    assert Faulty.fetched == []
    put(f"{store}/train-0000.tar", tar({"0.png": png(9), "0.cls": b"0", "0.txt": b"new"}))
    assert content_identity(pattern) != identity


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", b"", r"a.tar.gz is no tar file; give the address of uncompressed tar files"),
        ("a.tar", b"\x1f\x8b" + bytes(600), r"shard .*a.tar is compressed, so its images cannot be read in any order"),
        ("a.tar", tar({"a.png": png()})[:700], r"shard .*a.tar is truncated, damaged or compressed"),
    ],
)
def test_files_that_are_no_shards(store, name, content, message):
    put(f"{store}/{name}", content)
    with pytest.raises(InputError, match=message):
        open_source(f"{store}/{name}")


def test_missing_shards(store):
    put_shards(store)
    with pytest.raises(StoreError, match=r"train-0004.tar does not exist; correct the address, or restore the file"):
        open_source(f"{store}/train-{{0000..0004}}.tar")
    with pytest.raises(InputError, match=r"no tar file .*/other-\*.tar; give the address of tar files, or of a folder"):
        open_source(f"{store}/other-*.tar")


def epoch(dataset, batch, mixed, seed=3, seen=0):
    order = training_order(len(dataset), batch, seed, seen, dataset.fetched_files(mixed), mixed)
    return [next(order) for _ in range((len(dataset) - seen) // batch)]


def test_no_image_twice_in_an_epoch_over_four_ranks(store):
    dataset = open_dataset(put_shards(store, shards=6, each=8))
    batches = epoch(dataset, batch=8, mixed=2)
    ranks = [[i for indices in batches for i in indices[2 * rank : 2 * rank + 2].tolist()] for rank in range(4)]
    read = [pixels(dataset, indices) for indices in ranks]
    assert sorted(chain(*read)) == list(range(48))
    assert epoch(dataset, batch=8, mixed=2, seen=24)[0].tolist() == batches[3].tolist()
    assert epoch(dataset, batch=8, mixed=2, seed=4)[0].tolist() != batches[0].tolist()


def test_few_shards_are_needed_at_a_time(store):
    dataset = open_dataset(put_shards(store, shards=6, each=8), Preparation(flip=True))
    batches = torch.cat(epoch(dataset, batch=8, mixed=2))
    windows = [{int(i) % 48 // 8 for i in window} for window in batches.split(32)]
    assert [len(window) for window in windows] == [2, 2, 2]
    assert set.union(*windows) == set(range(6))
    first = batches[:32].tolist()
    assert {i // 48 for i in first} == {0, 1}  # mirrored images too
    assert np.abs(np.diff([i % 48 // 8 for i in first])).sum() > 10  # images of both shards in turns


def test_the_order_of_local_data_is_unchanged():
    generator = torch.Generator().manual_seed(5 * 1_000_003)
    assert torch.equal(next(training_order(10, 10, 5, 0)), torch.randperm(10, generator=generator))


def test_shards_that_are_needed_together_must_fit(store, monkeypatch):
    pattern = put_shards(store, shards=6)
    dataset = open_dataset(pattern)
    monkeypatch.setenv("DITLAB_CACHE_GIB", str(100_000 / 2**30))
    file_cache.cache_clear()
    assert dataset.fetched_files(2) is not None
    with pytest.raises(
        InputError, match=r"the 6 largest shards, which are needed at the same time, have .* GiB, but all"
    ):
        dataset.fetched_files(3)


def test_shards_are_fetched_before_they_are_needed(store):
    dataset = open_dataset(put_shards(store))
    for path in (file_cache().folder / "files").iterdir():
        path.unlink()
    Faulty.fetched.clear()
    dataset.expect(torch.tensor([0, 1, 12]))
    finish_fetching()
    assert sorted(Faulty.fetched) == ["train-0000.tar", "train-0002.tar"]


def test_a_shard_that_vanishes_is_no_unreadable_image(store):
    dataset = open_dataset(put_shards(store))
    for path in (file_cache().folder / "files").iterdir():
        path.unlink()
    remove(f"{store}/train-0001.tar")
    assert pixels(dataset, [0]) == [0]
    with pytest.raises(StoreError, match=r"train-0001.tar does not exist; correct the address, or restore the file"):
        dataset.fetch(torch.tensor([1, 6]))
    assert dataset.skipped == {}


def test_headers_of_the_first_shards_only(store, monkeypatch):
    monkeypatch.setattr("ditlab.data.sources.stored_tar.HEADERS", 6)
    dataset = open_dataset(put_shards(store))
    assert dataset.reading.notes[-1] == "the headers of the first 10 images are read"
    assert len(dataset) == 20


@pytest.mark.slow
def test_a_web_server(store, tmp_path):
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "a.tar").write_bytes(tar({f"{i}.png": png(i) for i in range(3)}))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert pixels(open_dataset(f"{address}/a.tar"), [2, 0]) == [2, 0]
        with pytest.raises(StoreError, match=r"b.tar does not exist; correct the address"):
            open_source(f"{address}/b.tar")
        server.shutdown()
