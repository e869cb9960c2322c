import io
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.autoencoders.patch import Patch
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import InMemory, from_torch, open_dataset
from ditlab.data.identity import Stamp, Stamps, compare, read_stamps
from ditlab.data.latents.cache import Latents
from ditlab.data.latents.encode import encode
from ditlab.data.parse import content_identity
from ditlab.data.sources import open_source

from .latents.test_cache import autoencoder


def write(file, gray, size=(8, 8)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (gray, gray, gray)).save(file)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write(tmp_path / "num" / "cat" / f"{i}.png", 10 + i)
        write(tmp_path / "num" / "dog" / f"{i}.png", 110 + i)
    return tmp_path / "num"


def touch(file, seconds=1_000_000_000):
    os.utime(file, (seconds, seconds))


def stamps(rows):
    names, labels, sizes, times, hashes = zip(*rows, strict=True)
    return Stamps(list(names), *(np.array(each, np.int64) for each in (labels, sizes, times, hashes)))


def nothing_is_read(i):
    raise AssertionError(f"image {i} was read")


class TestComparison:
    def test_images_that_are_the_same_are_not_read(self):
        before = stamps([("a", 0, 10, 1, 5), ("b", 1, 20, 2, 0)])
        changes, now = compare(before, stamps([("a", 0, 10, 1, 0), ("b", 1, 20, 2, 0)]), nothing_is_read)
        assert not changes
        assert str(changes) == ""
        assert now.hashes.tolist() == [5, 0]  # what is known stays known

    def test_every_kind_of_change_is_listed(self):
        before = [("a", 0, 10, 1, 5), ("b", 0, 10, 1, 5), ("c", 0, 10, 1, 5), ("d", 0, 10, 1, 5), ("e", 0, 10, 1, 0)]
        now = [("a", 0, 11, 1, 0), ("c", 1, 10, 1, 0), ("d", 0, 10, 2, 0), ("e", 0, 10, 2, 0), ("f", 0, 10, 1, 0)]
        changes, _ = compare(stamps(before), stamps(now), lambda i: 6)
        assert str(changes) == (
            "1 removed (b), 1 new (f), 2 with other content (a, d), 1 with another label (c), "
            "1 with another modification time, which may have changed (e)"
        )

    def test_a_hash_decides_if_only_the_time_differs(self):
        before, now = stamps([("a", 0, 10, 1, 5)]), stamps([("a", 0, 10, 2, 0)])
        changes, known = compare(before, now, lambda i: 5)
        assert not changes
        assert (known.hashes.tolist(), known.times.tolist()) == ([5], [2])
        assert str(compare(before, now, lambda i: 6)[0]) == "1 with other content (a)"

    def test_labels_are_compared_by_the_names_of_their_classes(self):
        """The folder bee is renamed to yak, so that cow comes before it."""
        was = [("ant/0", 0, 1, 1, 1), ("bee/0", 1, 1, 1, 1), ("cow/0", 2, 1, 1, 1), ("cow/1", 2, 1, 1, 1)]
        is_ = [("ant/0", 0, 1, 1, 1), ("cow/0", 1, 1, 1, 1), ("cow/1", 2, 1, 1, 1), ("yak/0", 2, 1, 1, 1)]
        before = replace(stamps(was), classes=["ant", "bee", "cow"])
        now = replace(stamps(is_), classes=["ant", "cow", "yak"])
        assert str(compare(before, now, nothing_is_read)[0]) == (
            "1 removed (bee/0), 1 new (yak/0), 1 with another label (cow/1), 1 of classes with another number (cow/0)"
        )
        unnamed = compare(replace(before, classes=()), now, nothing_is_read)[0]  # a list of an earlier version
        assert unnamed.relabeled == ["cow/0"]

    def test_another_order(self):
        before, now = stamps([("a", 0, 1, 1, 1), ("b", 0, 1, 1, 1)]), stamps([("b", 0, 1, 1, 1), ("a", 0, 1, 1, 1)])
        assert str(compare(before, now, nothing_is_read)[0]) == "the same images in another order"

    def test_three_names_of_each_list_are_shown(self):
        before, now = stamps([(str(i), 0, 1, 1, 1) for i in range(1500)]), stamps([("0", 0, 1, 1, 1)])
        assert str(compare(before, now, nothing_is_read)[0]) == "1,499 removed (1, 2, 3, ...)"

    def test_files_keep_all_names(self, tmp_path):
        names = ["a", "line\nfeed", "back\\slash\\n", "\udcff", "café", ""]
        before = Stamps.of((Stamp(name, i, -i) for i, name in enumerate(names)), list(range(6)))
        before.save(tmp_path / "x.npz")
        after = Stamps.load(tmp_path / "x.npz")
        assert list(after.names) == names
        assert after.equal(before)
        classes = ["a", "line\nfeed", "c", "d", "e", "f"]
        named = replace(before, classes=classes)
        named.save(tmp_path / "named.npz")
        assert list(Stamps.load(tmp_path / "named.npz").classes) == classes
        assert not named.equal(before)
        Stamps.of([], []).save(tmp_path / "none.npz")
        assert len(Stamps.load(tmp_path / "none.npz")) == 0
        (tmp_path / "x.npz").write_bytes(b"PK")
        assert Stamps.load(tmp_path / "x.npz") is None
        assert Stamps.load(tmp_path / "nothing.npz") is None

    def test_a_million_names_take_little_space(self, tmp_path):
        names = [Stamp(f"class{i // 1000:04d}/image{i:07d}.jpg", 100_000 + i % 977, 10**18 + i) for i in range(100_000)]
        Stamps.of(names, np.arange(100_000) // 1000).save(tmp_path / "x.npz")
        assert (tmp_path / "x.npz").stat().st_size < 1_000_000


class TestSources:
    def test_a_folder_has_names_sizes_and_times(self, folder):
        data = open_dataset(str(folder))
        state = data.stamps()
        assert list(state.names[:2]) == ["cat/0.png", "cat/1.png"]
        assert state.labels.tolist() == [0] * 6 + [1] * 6
        file = (folder / "cat" / "1.png").stat()
        assert (state.sizes[1], state.times[1]) == (file.st_size, file.st_mtime_ns)
        write(folder / "copy" / "1.png", 11)
        assert data.content_hash(1) == open_dataset(str(folder)).content_hash(6)  # cat/1.png and copy/1.png
        (folder / "cat" / "1.png").unlink()
        assert data.stamps().sizes[1] == -1
        assert data.content_hash(1) not in (0, data.content_hash(0))

    def test_a_tar_shard(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for i in range(3):
                content = io.BytesIO()
                Image.new("L", (8, 8), i).save(content, "BMP")
                member = tarfile.TarInfo(f"{i}.bmp")
                member.size = len(content.getvalue())
                tar.addfile(member, io.BytesIO(content.getvalue()))
        data = open_dataset(str(tmp_path / "x.tar"))
        state = data.stamps()
        assert list(state.names) == ["x.tar:0.bmp", "x.tar:1.bmp", "x.tar:2.bmp"]
        assert (state.sizes == member.size).all()
        assert (state.times == (tmp_path / "x.tar").stat().st_mtime_ns).all()
        assert len({data.content_hash(i) for i in range(3)}) == 3

    def test_a_sample_file_has_the_checksum_of_its_images(self, tmp_path):
        images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
        np.savez(tmp_path / "x.npz", arr_0=images)
        before = open_dataset(str(tmp_path / "x.npz"))
        state = before.stamps().hashed(np.arange(2), before.content_hash)
        images[1] = 0
        np.savez(tmp_path / "x.npz", arr_0=images)
        after = open_dataset(str(tmp_path / "x.npz"))
        assert str(compare(state, after.stamps(), after.content_hash)[0]) == "1 with other content (1)"

    def test_images_in_memory_and_latents(self, tmp_path):
        def data(changed=0):
            images = torch.arange(3 * 3 * 8 * 12).reshape(3, 3, 8, 12).byte()
            images[1] += changed
            return InMemory(images, torch.zeros(3, dtype=torch.long), ["a"])

        def caches(name, changed=0):
            encode(data(changed), "x", autoencoder(), tmp_path / name, Console(quiet=True))
            return Latents(tmp_path / name)

        for make in (lambda changed: data(changed), lambda changed: caches(f"cache{changed}", changed)):
            before, after = make(0), make(1)
            assert not compare(before.stamps(), make(0).stamps(), before.content_hash)[0]
            assert compare(before.stamps(), after.stamps(), after.content_hash)[0].changed == ["1"]

    def test_a_torch_data_set_shows_count_and_labels(self):
        pairs = [(Image.new("L", (8, 8)), i % 2) for i in range(4)]
        state = from_torch(pairs).stamps()
        assert (list(state.names), state.labels.tolist()) == (["0", "1", "2", "3"], [0, 1, 0, 1])

    def test_a_hugging_face_data_set_is_recognized_by_its_content(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        images = [Image.new("L", (8, 8), 20 * i) for i in range(3)]
        rows = {"image": images, "label": [0, 1, 0]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        states = []
        for name in ("one", "two"):  # the same rows, saved twice
            datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
            data = open_dataset(str(tmp_path / name))
            states.append(data.stamps().hashed(np.arange(3), data.content_hash))
        assert not compare(*states, data.content_hash)[0]
        rows["image"][2] = Image.new("L", (8, 8), 200)
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "three")
        data = open_dataset(str(tmp_path / "three"))
        with data.source.raw(2) as image:
            assert not getattr(image, "_im", None)  # opened and not decoded
        assert content_identity(str(tmp_path / "three")) != content_identity(str(tmp_path / "two"))
        (tmp_path / "three").rename(tmp_path / "four")
        assert data.content_hash(2) == open_dataset(str(tmp_path / "four")).content_hash(2)
        assert compare(states[0], data.stamps(), data.content_hash)[0].changed == ["2"]

    def test_a_hundred_thousand_files_take_a_look_each(self, tmp_path):
        (tmp_path / "a").mkdir()
        for i in range(2000):
            (tmp_path / "a" / f"{i}.png").touch()
        source = open_source(str(tmp_path))
        started = time.process_time()
        with ThreadPoolExecutor() as pool:
            assert len(read_stamps(source.stamp, source.labels.numpy(), pool)) == 2000
        assert time.process_time() - started < 0.5  # 0.02 s on an idle machine


class TestEncoding:
    """`encode` into an existing cache, of shards with four images."""

    def encode(self, folder, out="cache", source=None):
        said = io.StringIO()
        done = encode(
            open_dataset(str(folder)), source or str(folder), autoencoder(), folder.parent / out,
            Console(file=said, width=500), shard=4, dtype="fp32",
        )  # fmt: skip
        lines = [line for line in said.getvalue().splitlines() if not line.startswith(("data: ", "conditions: "))]
        notes = [line for line in lines if "encoding " not in line or "shards of" in line]
        return done.images, " ".join(notes).strip()

    def check(self, folder):
        """The cache holds what a new one would hold."""
        self.encode(folder, "fresh")
        cache, fresh = Latents(folder.parent / "cache"), Latents(folder.parent / "fresh")
        assert torch.equal(cache.labels, fresh.labels)
        assert cache.classes == fresh.classes
        assert torch.equal(*(each.fetch(torch.arange(len(fresh))).x for each in (cache, fresh)))

    def test_nothing_changed(self, folder):
        assert self.encode(folder) == (12, "")
        assert self.encode(folder) == (0, "")

    def test_an_overwritten_image(self, folder):
        self.encode(folder)
        size = (folder / "dog" / "5.png").stat().st_size
        write(folder / "dog" / "5.png", 116)
        assert (folder / "dog" / "5.png").stat().st_size == size
        images, note = self.encode(folder)
        assert (images, note) == (
            4, f"1 with other content (dog/5.png); encoding 1 of 3 shards of {folder.parent / 'cache'}"
        )  # fmt: skip
        self.check(folder)
        assert self.encode(folder) == (0, "")

    def test_an_image_in_another_class(self, folder):
        self.encode(folder)
        (folder / "cat" / "5.png").rename(folder / "dog" / "6.png")
        images, note = self.encode(folder)
        assert images == 8  # the shard with cat/5.png, and those after it up to dog/6.png
        assert note.startswith("1 removed (cat/5.png), 1 new (dog/6.png); encoding 2 of 3 shards")
        self.check(folder)

    def test_other_times_alone(self, folder):
        self.encode(folder)
        for file in folder.rglob("*.png"):
            touch(file)
        assert self.encode(folder) == (0, "")
        touch(folder / "cat" / "0.png", 5)
        write(folder / "cat" / "1.png", 99)
        assert self.encode(folder)[0] == 4
        self.check(folder)

    def test_a_renamed_class(self, folder):
        self.encode(folder)
        (folder / "cat").rename(folder / "zebra")
        images, note = self.encode(folder)
        assert images == 12
        assert note.startswith("6 removed (cat/0.png, cat/1.png, cat/2.png, ...), 6 new (zebra/0.png, ")
        assert "another label" not in note
        assert Latents(folder.parent / "cache").classes == ["dog", "zebra"]
        self.check(folder)

    @pytest.mark.parametrize("change", ["more", "fewer"])
    def test_another_number_of_images(self, folder, change):
        self.encode(folder)
        if change == "more":
            write(folder / "dog" / "7.png", 200)
        else:
            for i in range(4):
                (folder / "dog" / f"{i + 2}.png").unlink()
        images, note = self.encode(folder)
        assert images == (1 if change == "more" else 0)
        if change == "more":
            assert note == f"1 new (dog/7.png); encoding 1 of 4 shards of {folder.parent / 'cache'}"
        else:
            assert note.startswith("4 removed (dog/2.png, dog/3.png, dog/4.png, ...); encoding 0 of 2 shards")
        self.check(folder)

    def test_other_labels_in_a_table(self, folder):
        table = folder.parent / "labels.csv"
        names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]

        def open_with(labels):
            table.write_text("file,label\n" + "".join(f"{n},{b}\n" for n, b in zip(names, labels, strict=True)))
            return open_dataset(str(folder), Preparation(labels=str(table)))

        out = folder.parent / "cache"
        encode(open_with("aaaaaabbbbbb"), str(folder), autoencoder(), out, Console(quiet=True), shard=4)
        done = encode(open_with("aaaaabbbbbbb"), str(folder), autoencoder(), out, Console(quiet=True), shard=4)
        assert done.images == 4
        assert Latents(out).labels.tolist() == [0] * 5 + [1] * 7

    def test_a_source_in_another_spelling_or_place(self, folder, monkeypatch):
        self.encode(folder)
        monkeypatch.chdir(folder.parent)
        for text in ("num", "num/", "./num"):
            assert self.encode(folder, source=text) == (0, "")
        moved = folder.rename(folder.parent / "moved")
        assert self.encode(moved) == (0, f"{folder} is now {moved}, with the same images")
        assert self.encode(moved) == (0, "")
        write(folder / "cat" / "0.png", 0)
        write(folder / "dog" / "0.png", 0)
        with pytest.raises(InputError, match=r"holds a cache of other images \(source: .*moved, not .*num; 10 removed"):
            self.encode(folder)

    def test_other_settings_are_named_in_words(self, folder):
        def refused(**settings):
            with pytest.raises(InputError) as error:
                encode(
                    open_dataset(str(folder), Preparation(**settings)), str(folder), autoencoder(),
                    folder.parent / "cache", Console(quiet=True), shard=4, dtype="fp32",
                )  # fmt: skip
            return str(error.value).removeprefix(f"{folder.parent / 'cache'} holds another cache ")

        self.encode(folder)
        assert (
            refused(size="16")
            == "(size is 8x8 there, 16x16 here; shape is 4x4x4 there, 4x8x8 here); give another folder"
        )
        assert refused(size="8") == "(size is not set there, 8x8 here); give another folder"
        assert refused(size="8", fit="stretch", flip=True) == (
            "(fit is crop there, stretch here; flip is false there, true here); give another folder"
        )

    def test_two_processes(self, folder):
        def part(rank):
            out = folder.parent / "cache"
            options = {"shard": 4, "dtype": "fp32", "rank": rank, "world": 2}
            return encode(open_dataset(str(folder)), str(folder), autoencoder(), out, Console(quiet=True), **options)

        assert [part(0).entries, part(1).entries] == [None, 12]
        write(folder / "cat" / "0.png", 77)  # shard 0, of process 0
        write(folder / "cat" / "4.png", 78)  # shard 1, of process 1
        first = part(0)
        assert (first.images, first.entries) == (4, None)
        second = part(1)
        assert (second.images, second.entries) == (4, 12)
        self.check(folder)

    def test_mirrored_copies(self, folder):
        def run():
            data = open_dataset(str(folder), Preparation(size="8", flip=True))
            out = folder.parent / "cache"
            return encode(data, str(folder), autoencoder(), out, Console(quiet=True), shard=4).images

        assert run() == 24
        assert run() == 0
        write(folder / "cat" / "0.png", 77)
        assert run() == 8  # the shard of the image, and that of its copy

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_other_shown_channels_are_no_other_cache(self, tmp_path, dtype):
        (tmp_path / "bands").mkdir()
        for i in range(2):
            np.save(tmp_path / "bands" / f"{i}.npy", np.full((8, 8, 3), i, dtype))
        out, ae = tmp_path / "cache", Patch(3, 4, 2, 8, 1)

        def run(**settings):
            data = open_dataset(str(tmp_path / "bands"), Preparation(size="8", **settings))
            return encode(data, str(tmp_path / "bands"), ae, out, Console(quiet=True)).images

        assert run() == 2
        assert run(show=(2,)) == 0
        assert Latents(out).values.shown == (2,)
        assert run() == 0
        assert Latents(out).values.shown == ()
        if dtype == np.uint16:
            with pytest.raises(InputError, match=r"holds another cache \(values\.high is 1\.0 there, 9\.0 here\); "):
                run(range="0,9")


def test_the_identity_of_a_folder_covers_only_what_is_read(folder):
    for split in ("train", "val"):
        write(folder.parent / "all" / split / "a" / "0.png", 7)
    text, split = str(folder.parent / "all"), folder.parent / "all" / "val" / "a" / "0.png"
    first = content_identity(text)
    assert content_identity(text, Preparation(split="val")) != first  # another time
    write(split, 8)
    (folder.parent / "all" / "notes.pdf").touch()
    (folder.parent / "all" / "train" / "a" / "Thumbs.db").touch()
    run = folder.parent / "all" / "train" / "run"
    write(run / "previews" / "0.png", 9)
    for name in ("recipe.toml", "metrics.jsonl"):
        (run / name).touch()
    assert content_identity(text) == first
    caption = folder.parent / "all" / "train" / "a" / "0.txt"
    caption.write_text("a cat")
    assert (second := content_identity(text)) != first
    caption.write_text("a tall cat")
    assert content_identity(text) != second


def test_the_identity_of_images_covers_labels_in_a_table(folder):
    table = folder / "metadata.csv"
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]

    def identity(labels):
        table.write_text("file,label\n" + "".join(f"{n},{b}\n" for n, b in zip(names, labels, strict=True)))
        return content_identity(str(folder))

    first = identity("aaaaaabbbbbb")
    assert identity("aaaaabbbbbbb") != first
    assert identity("aaaaaabbbbbb") == first


def test_the_identity_of_a_hub_data_set_needs_no_download():
    assert content_identity("hf:nobody/nothing") != content_identity("hf:nobody/nothing", Preparation(split="val"))


def test_the_identity_of_a_folder_does_not_depend_on_its_place(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    first = content_identity("num")
    for text in ("num/", "./num", str(folder)):
        assert content_identity(text) == first
    folder.rename(folder.parent / "moved")
    assert content_identity("moved") == first
    (folder.parent / "moved" / "cat" / "0.png").rename(folder.parent / "moved" / "cat" / "9.png")
    assert content_identity("moved") != first
    assert content_identity("moved/cat/*") == content_identity(str(folder.parent / "moved" / "cat" / "*"))


def test_no_source_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nothing = content_identity("")
    Path("later.txt").touch()
    assert content_identity("") == nothing
