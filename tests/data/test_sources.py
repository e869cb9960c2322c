import csv
import gzip
import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from helpers import posix_only
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import Preprocess, open_dataset
from ditlab.data.images import Images
from ditlab.data.reading import LeftOut
from ditlab.data.sources import Unreadable, open_source
from ditlab.data.sources import shards as module
from ditlab.data.sources.base import label_column


def save_image(path, value, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def reds(dataset, indices=None):
    indices = torch.arange(len(dataset)) if indices is None else torch.tensor(indices)
    batch = dataset.fetch(indices)
    return batch.x[:, 0, 0, 0].tolist(), batch.labels.tolist()


class TestFolders:
    @posix_only
    def test_deep_folders_belong_to_their_class_and_loops_end(self, tmp_path):
        save_image(tmp_path / "große Katze" / "2020" / "a b.png", 1)
        save_image(tmp_path / "große Katze" / "c.png", 2)
        save_image(tmp_path / "犬" / "d.png", 3)
        os.symlink(tmp_path, tmp_path / "犬" / "up")
        os.symlink(tmp_path / "犬", tmp_path / "犬" / "round")
        save_image(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "e.png", 4)
        os.symlink(tmp_path.parent / f"{tmp_path.name}-elsewhere", tmp_path / "犬" / "linked")
        source = open_source(str(tmp_path))
        assert source.classes == ["große Katze", "犬"]
        assert sorted(source.name(i) for i in range(len(source))) == [
            "große Katze/2020/a b.png", "große Katze/c.png", "犬/d.png", "犬/linked/e.png",
        ]  # fmt: skip
        assert source.labels.tolist() == [0, 0, 1, 1]

    @posix_only
    def test_no_image_counts_twice(self, tmp_path):
        home, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
        for path in (home / "a" / "1.png", home / "b" / "1.png", elsewhere / "2.png"):
            save_image(path, 1)
        os.symlink(home / "b", home / "a" / "also")
        for name in ("a", "b"):
            os.symlink(elsewhere, home / name / "linked")
        source = open_source(str(home))
        assert [source.name(i) for i in range(len(source))] == ["a/1.png", "a/linked/2.png", "b/1.png"]
        os.symlink(home / "b", home / "c")
        with pytest.raises(InputError, match=r"c and .*b are the same folder; remove one of them"):
            open_source(str(home))

    def test_names_that_are_not_utf8_can_be_reported(self, tmp_path):
        home = tmp_path / "data"
        save_image(home / "a.png", 1)
        save_image(home / "b.png", 2)
        try:
            (home / os.fsdecode(b"\xff.png")).write_bytes(b"")
        except OSError:
            pytest.skip("this file system takes UTF-8 only")
        data = Images(open_source(str(home)), Preprocess((8, 8)), report=tmp_path / "skipped.csv")
        data.fetch(torch.arange(3))
        assert data.skipped == {r"\xff.png": "cannot identify image file"}
        assert r"\xff.png,cannot identify" in (tmp_path / "skipped.csv").read_text()

    def test_one_class_with_one_image(self, tmp_path):
        save_image(tmp_path / "only" / "a.png", 9)
        assert reds(open_dataset(str(tmp_path))) == ([9], [0])

    def test_empty_things_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"no images in .*; put some there"):
            open_source(str(tmp_path))
        save_image(tmp_path / "a" / "1.png", 1)
        (tmp_path / "b").mkdir()
        source = open_source(str(tmp_path))
        assert source.classes == ["a"]
        assert source.reading.left_out == {"folder without images": LeftOut(1, "b")}


class TestTables:
    def test_labels_from_csv_and_jsonl(self, tmp_path):
        home = tmp_path / "data"
        for i in range(3):
            save_image(home / f"{i}.png", i)
        (tmp_path / "l.csv").write_text("file,label\n0.png,cat\n1.png,dog\n2.png,cat\n")
        (tmp_path / "l.jsonl").write_text(
            "".join(f'{{"file_name": "{i}.png", "label": {9 + i % 2}}}\n' for i in range(3))
        )
        by_csv, by_jsonl = (
            open_source(str(home), Preparation(labels=str(tmp_path / name))) for name in ("l.csv", "l.jsonl")
        )
        assert (by_csv.classes, by_csv.labels.tolist()) == (["cat", "dog"], [0, 1, 0])
        assert (by_jsonl.classes, by_jsonl.labels.tolist()) == (["9", "10"], [0, 1, 0])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,label\n0.png,cat\n", r"1\.png has no label \(2 without one\); correct"),
            ("file,label\n" + "".join(f"{i}.png,a\n" for i in range(4)), r"3\.png has no image \(1 without one\)"),
            ("name,label\n0.png,cat\n", "give a CSV file with the columns file and label"),
            ("file,label\n0.png\n", r"lack a label for 0\.png; give a CSV"),
            ("file,label\n0.png,\n", r"lack a label for 0\.png; give a CSV"),
            ("file,label\n0.png,a\n0.png,b\n", r"0\.png has the labels a and b in .*; remove one of the rows"),
        ],
    )
    def test_tables_that_do_not_fit(self, tmp_path, text, message):
        for i in range(3):
            save_image(tmp_path / "data" / f"{i}.png", i)
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            open_source(str(tmp_path / "data"), Preparation(labels=str(tmp_path / "l.csv")))

    def test_tables_of_spreadsheets(self, tmp_path):
        save_image(tmp_path / "data" / "0.png", 0)
        (tmp_path / "l.CSV").write_bytes("\ufefffile,label\r\n0.png,grün\r\n".encode())
        assert open_source(str(tmp_path / "data"), Preparation(labels=str(tmp_path / "l.CSV"))).classes == ["grün"]
        (tmp_path / "l.CSV").write_bytes("file,label\n0.png,grün\n".encode("latin-1"))
        with pytest.raises(InputError, match="are not UTF-8; save the table as CSV UTF-8"):
            open_source(str(tmp_path / "data"), Preparation(labels=str(tmp_path / "l.CSV")))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('["0.png", 1]', "lack an object in line 1"),
            ('{"file": "0.png", "label": null}', r"lack a label for 0\.png"),
        ],
    )
    def test_json_lines_that_do_not_fit(self, tmp_path, line, message):
        save_image(tmp_path / "data" / "0.png", 0)
        (tmp_path / "l.jsonl").write_text(line)
        with pytest.raises(InputError, match=message):
            open_source(str(tmp_path / "data"), Preparation(labels=str(tmp_path / "l.jsonl")))

    def test_labels_where_there_are_some_already(self, tmp_path):
        (tmp_path / "0.tar").write_bytes(b"")
        with pytest.raises(InputError, match=r'labels is "l\.csv", which has no effect on .*; remove it'):
            open_source(str(tmp_path), Preparation(labels="l.csv"))


class TestTar:
    def shards(self, folder, labels):
        folder.mkdir(exist_ok=True)
        for number in range(2):
            with tarfile.open(folder / f"{number}.tar", "w") as tar:
                for i in range(3):
                    buffer = io.BytesIO()
                    Image.new("RGB", (12, 8), (10 * number + i, 0, 0)).save(buffer, "PNG")
                    files = {"png": buffer.getvalue()} | labels(number, i)
                    for kind, content in files.items():
                        info = tarfile.TarInfo(f"part/{i:03d}.{kind}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))

    def test_images_and_labels(self, tmp_path):
        self.shards(tmp_path / "cls", lambda n, i: {"cls": str(i).encode()})
        data = open_dataset(str(tmp_path / "cls"))
        assert data.classes == ["0", "1", "2"]
        assert reds(data, [5, 0, 3]) == ([12, 0, 10], [2, 0, 0])
        assert len(open_source(str(tmp_path / "cls" / "1.tar"))) == 3
        assert len(open_source(str(tmp_path / "cls" / "*.tar"))) == 6
        (tmp_path / "cls" / "classes.txt").write_text("cat\ndog\neel\n")
        assert open_source(str(tmp_path / "cls")).classes == ["cat", "dog", "eel"]
        self.shards(tmp_path / "json", lambda n, i: {"json": b'{"label": "otter"}', "txt": b"a caption"})
        assert open_source(str(tmp_path / "json")).classes == ["otter"]
        self.shards(tmp_path / "bare", lambda n, i: {})
        assert open_source(str(tmp_path / "bare")).classes == []

    def test_numbers_as_labels_where_class_names_are_numbers(self, tmp_path):
        names = tmp_path / "classes.txt"
        self.shards(tmp_path, lambda n, i: {"cls": str(i + 1).encode()})
        names.write_text("1\n2\n3\n")
        assert open_source(str(tmp_path)).labels.tolist() == [0, 1, 2, 0, 1, 2]
        names.write_text("cat\ndog\neel\nfox\n")
        assert open_source(str(tmp_path)).labels.tolist() == [1, 2, 3, 1, 2, 3]
        names.write_text("001\n002\n003\n")
        with pytest.raises(InputError, match=r'label 1 is ambiguous: .*"001".*"002"; give "001" or index:1'):
            open_source(str(tmp_path))
        self.shards(tmp_path, lambda n, i: {"cls": f"index:{i}".encode()})
        assert open_source(str(tmp_path)).labels.tolist() == [0, 1, 2, 0, 1, 2]
        self.shards(tmp_path, lambda n, i: {"cls": b"owl"})
        with pytest.raises(InputError, match=r': unknown class "owl"; choose from: 001, 002, 003'):
            open_source(str(tmp_path))

    def test_large_shards_are_listed_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(module, "KEEP_LISTING_FROM", 2)
        self.shards(tmp_path / "a", lambda n, i: {"cls": str(i).encode()})
        first = open_source(str(tmp_path / "a"))
        with monkeypatch.context() as patch:
            patch.setattr(module, "list_shard", None)  # it would fail if it were called
            again = open_source(str(tmp_path / "a"))
        assert again.places == first.places
        assert again.labels.tolist() == first.labels.tolist()
        shard = again.shards[0]
        os.utime(shard, ns=(0, 0))  # another file, as far as one can tell
        monkeypatch.setattr(module, "list_shard", lambda shard, settings: module.Listing())
        assert len(open_source(str(tmp_path / "a")).places) < len(first.places)

    def test_a_truncated_shard_is_named(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {})
        content = (tmp_path / "1.tar").read_bytes()
        # within the first header, an image, between members, within the second header
        for length in (0, 511, 600, 1024, 1100, 1600, 3072):
            (tmp_path / "1.tar").write_bytes(content[:length])
            with pytest.raises(InputError, match=r"1\.tar is truncated, damaged or compressed \(.*\); copy it again"):
                open_source(str(tmp_path))

    def test_a_damaged_header_is_not_the_end(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {})
        content = bytearray((tmp_path / "1.tar").read_bytes())
        content[1024 + 10] ^= 0xFF
        (tmp_path / "1.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"1\.tar .*no header and no end of archive at byte 1024"):
            open_source(str(tmp_path))

    def test_a_compressed_shard_is_rejected(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {})
        (tmp_path / "1.tar").write_bytes(gzip.compress((tmp_path / "1.tar").read_bytes()))
        with pytest.raises(InputError, match=r"1\.tar is compressed, .*; decompress it first"):
            open_source(str(tmp_path))

    def test_some_labels_are_too_few(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {"cls": b"3"} if i else {})
        with pytest.raises(
            InputError, match=r"0\.tar:part/000\.png has no label, but others have one \(2 images without\)"
        ):
            open_source(str(tmp_path))

    def test_json_about_something_else_is_no_label(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {"json": b'{"caption": "otter"}'})
        assert open_source(str(tmp_path)).classes == []

    def test_shards_among_images(self, tmp_path):
        self.shards(tmp_path, lambda n, i: {})
        save_image(tmp_path / "cat" / "1.png", 1)
        with pytest.raises(InputError, match=r'holds images and 0\.tar; give ".*/\*\.tar", or move'):
            open_source(str(tmp_path))
        assert len(open_source(str(tmp_path / "*.tar"))) == 6

    def test_shards_without_images(self, tmp_path):
        with tarfile.open(tmp_path / "0.tar", "w"):
            pass
        with pytest.raises(InputError, match="no images in"):
            open_source(str(tmp_path))


def test_hugging_face_data_sets(tmp_path):
    import datasets

    images = [Image.new("RGB", (12, 8), (i, 0, 0)) for i in range(4)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"photo": images, "kind": [0, 1, 1, 0]}, features=features)
    table.save_to_disk(tmp_path / "set")
    data = open_dataset(f"hf:{tmp_path / 'set'}")
    assert data.classes == ["cat", "dog"]
    assert reds(data) == ([0, 1, 2, 3], [0, 1, 1, 0])
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "other")
    with pytest.raises(InputError, match=r"has no column of images \(it has a\)"):
        open_dataset(f"hf:{tmp_path / 'other'}")
    with pytest.raises(InputError, match="cannot open the data set"):
        open_source(f"hf:{tmp_path / 'nothing'}")
    assert open_source(str(tmp_path / "set")).classes == ["cat", "dog"]
    with pytest.raises(InputError, match="has no splits; omit :test"):
        open_source(f"hf:{tmp_path / 'set'}:test")
    datasets.DatasetDict({"validation": table}).save_to_disk(tmp_path / "splits")
    assert len(open_source(f"hf:{tmp_path / 'splits'}:validation")) == 4
    with pytest.raises(InputError, match=r'unknown split of .*: "train"; choose from: validation'):
        open_source(f"hf:{tmp_path / 'splits'}")


@pytest.mark.parametrize("label", [None, -1])
def test_hugging_face_rows_without_a_label(tmp_path, label):
    import datasets

    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["cat"])})
    images = [Image.new("RGB", (12, 8))] * 2
    datasets.Dataset.from_dict({"photo": images, "kind": [0, label]}, features=features).save_to_disk(tmp_path)
    with pytest.raises(InputError, match=r"\[1\] has no label \(1 row without one\)"):
        open_source(f"hf:{tmp_path}")


@pytest.fixture
def damaged(tmp_path):
    """Ten good images and three that are not: truncated, animated, tiny."""
    home = tmp_path / "data" / "c"
    for i in range(10):
        save_image(home / f"{i}.png", i)
    Image.effect_noise((64, 64), 50).save(home / "3a.jpg")
    (home / "3a.jpg").write_bytes((home / "3a.jpg").read_bytes()[:900])
    frames = [Image.new("RGB", (12, 8), (i, 0, 0)) for i in (1, 99)]
    frames[0].save(home / "5a.gif", save_all=True, append_images=frames[1:])
    save_image(home / "7a.png", 7, size=(12, 3))
    return tmp_path / "data"


class TestSkipping:
    def test_the_next_image_stands_in_and_the_broken_one_is_listed(self, damaged, tmp_path):
        report = tmp_path / "out" / "skipped.csv"
        source = open_source(str(damaged))
        data = Images(source, Preprocess((8, 8)), report=report, max_skipped=0.5)
        names = [source.name(i) for i in range(len(source))]
        assert reds(data)[0] == [4 if "3a" in n else 6 if "5a" in n else 8 if "7a" in n else int(n[2]) for n in names]
        rows = list(csv.reader(report.open()))
        assert rows[0] == ["name", "reason"]
        rows[1:] = sorted(rows[1:])  # several threads read
        assert [row[0] for row in rows[1:]] == ["c/3a.jpg", "c/5a.gif", "c/7a.png"]
        assert "truncated" in rows[1][1]
        assert rows[2][1] == "animated"
        assert rows[3][1] == "only 12x3 pixels; min_side is 8"
        readable = data.fetch_readable(torch.arange(13))
        assert readable.x[:, 0, 0, 0].tolist() == list(range(10))

    def test_a_resumed_run_lists_nothing_twice_and_counts_anew(self, tmp_path):
        home, report = tmp_path / "data", tmp_path / "skipped.csv"
        for i in range(40):
            save_image(home / f"{i}.png", i)
        for i in (1, 2):
            (home / f"{i}.png").write_bytes(b"")
        for _ in range(2):
            Images(open_source(str(home)), Preprocess((8, 8)), report=report).fetch(torch.arange(40))
            assert sorted(row[0] for row in csv.reader(report.open())) == ["1.png", "2.png", "name"]
        save_image(home / "1.png", 1)  # repaired: what was listed before does not count any more
        (home / "3.png").write_bytes(b"")
        data = Images(open_source(str(home)), Preprocess((8, 8)), report=report)
        data.fetch(torch.arange(40))
        assert sorted(data.skipped) == ["2.png", "3.png"]
        (home / "5.png").write_bytes(b"")
        for _ in range(2):  # nor is a limit forgotten by starting again
            with pytest.raises(
                InputError, match=r"3 of 40 images cannot be read.*\(max_skipped\); it is 0\.075 so far"
            ):
                Images(open_source(str(home)), Preprocess((8, 8)), report=report).fetch(torch.arange(40))

    def test_a_single_broken_image_is_no_catastrophe(self, tmp_path):
        for i in range(3):
            save_image(tmp_path / f"{i}.png", i)
        (tmp_path / "1.png").write_bytes(b"")
        assert reds(Images(open_source(str(tmp_path)), Preprocess((8, 8))))[0] == [0, 2, 2]
        with pytest.raises(InputError, match=r"1 of 3 images cannot be read"):
            Images(open_source(str(tmp_path)), Preprocess((8, 8)), max_skipped=0).fetch(torch.arange(3))

    def test_too_many_are_too_many(self, damaged):
        with pytest.raises(
            InputError, match=r"\d of 13 images cannot be read, the last one is c/.*; repair them, or allow"
        ):
            Images(open_source(str(damaged)), Preprocess((8, 8)), max_skipped=0.1).fetch(torch.arange(13))

    @pytest.mark.slow
    def test_one_in_a_thousand_costs_a_line(self, tmp_path):
        for i in range(1000):
            save_image(tmp_path / "c" / f"{i}.png", i % 256)
        (tmp_path / "c" / "500.png").write_bytes(b"")
        data = Images(open_source(str(tmp_path)), Preprocess((8, 8)))
        batch = data.fetch_readable(torch.arange(1000))
        assert len(batch.labels) == 999
        assert list(data.skipped) == ["c/500.png"]

    def test_a_folder_deleted_during_the_run(self, tmp_path):
        for i in range(40):
            save_image(tmp_path / "data" / f"{i}.png", i)
        data = Images(open_source(str(tmp_path / "data")), Preprocess((8, 8)))
        data.fetch(torch.arange(4))
        shutil.rmtree(tmp_path / "data")
        assert len(data.fetch(torch.arange(4))) == 4  # which are in memory
        with pytest.raises(InputError, match=r"\d of 40 images cannot be read, the last one is .*No such file"):
            data.fetch(torch.arange(8))


def test_mirrored_versions_come_last(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = open_dataset(str(tmp_path), Preparation(size="8", flip=True))
    both = data.fetch(torch.arange(2)).x
    assert len(data) == 2
    assert np.array_equal(both[0].permute(1, 2, 0).numpy(), pixels)
    assert torch.equal(both[1], both[0].flip(2))
    assert data.preprocessing["flip"] is True


def test_gray_on_request(tmp_path):
    save_image(tmp_path / "a.png", 100)
    data = open_dataset(str(tmp_path), Preparation(size="8", gray=True))
    assert data.channels == 1
    assert data.fetch(torch.tensor([0])).x.unique().tolist() == [30]  # 0.299 of the red


def test_unreadable_gives_the_reason(tmp_path):
    save_image(tmp_path / "a.png", 1)
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(Unreadable, match=r"^cannot identify image file$"):
        source.read(0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(Unreadable, match=r"^No such file or directory$"):
        source.read(0)
    save_image(tmp_path / "a.png", 1, size=(12, 5))
    with pytest.raises(Unreadable, match="only 12x5 pixels"):
        source.read(0)
    assert source.read(0, min_side=5).size == (12, 5)


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", 1, size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(Unreadable, match=r"1600 pixels.* exceeds limit"):
        open_source(str(tmp_path)).read(0)


def test_camera_images_with_a_preview_are_images(tmp_path):
    preview = Image.new("RGB", (8, 8))
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    opened = open_source(str(tmp_path)).read(0)
    assert (opened.format, opened.n_frames, opened.getpixel((3, 3))) == ("MPO", 2, (9, 9, 9))


def test_built_in_sets_and_caches_have_their_own_size():
    with pytest.raises(InputError, match=r"data digits has images of 8x8, not 16x16; omit the size"):
        open_dataset("digits", Preparation(size="16"))
    with pytest.raises(InputError, match=r"flip is true, which has no effect on the data set digits; remove it"):
        open_dataset("digits", Preparation(flip=True))


def test_a_label_without_a_class():
    with pytest.raises(InputError, match=r"^image 1 has the label 2, but there are 2 classes$"):
        label_column([0, 2], ["a", "b"])
    assert label_column([0, 1], ["a", "b"]).values.tolist() == [0, 1]
