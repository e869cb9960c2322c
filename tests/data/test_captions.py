"""Captions of images in all sources."""

import io
import json
import tarfile
from dataclasses import asdict

import pytest
import torch
from PIL import Image
from rich.console import Console

from ditlab.autoencoders.patch import Patch
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import InMemory, open_dataset
from ditlab.data.images import write_folder
from ditlab.data.latents.encode import encode
from ditlab.data.sources import open_source
from ditlab.data.summary import Summary
from ditlab.data.survey import survey


def save_images(folder, count=3):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def all_captions(source, **settings):
    dataset = open_dataset(str(source), Preparation(**settings))
    return [dataset.captions(i) for i in range(len(dataset))]


def test_text_files_beside_images(tmp_path):
    folder = save_images(tmp_path / "data")
    (folder / "0.txt").write_text("  a red\n apple ", encoding="utf-8")
    (folder / "2.txt").write_text("")
    assert all_captions(folder) == [("a red apple",), (), ()]
    assert Summary.of(open_dataset(str(folder)), "data").lines()[1] == "conditions: captions, and no classes"
    assert all_captions(folder, flip=True, size="8") == 2 * [("a red apple",), (), ()]  # with mirrored copies
    assert all_captions(folder, held_out=0.4, split="train")[0] in [("a red apple",), ()]


def test_metadata_with_several_rows_lists_and_columns(tmp_path):
    folder = save_images(tmp_path / "data")
    lines = [
        {"file_name": "0.png", "text": "one", "title": "first"},
        {"file_name": "0.png", "text": "two", "title": None},
        {"file_name": "1.png", "text": ["three", "four", None], "title": "second"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert all_captions(folder) == [("one", "two"), ("three", "four"), ()]
    assert all_captions(folder, caption_column="title") == [("first",), ("second",), ()]
    assert all_captions(folder, caption_column="text, title") == [
        ("one", "two", "first"), ("three", "four", "second"), (),
    ]  # fmt: skip
    assert all_captions(folder, caption_column="none") == [(), (), ()]
    with pytest.raises(InputError, match=r'metadata.jsonl has no caption column "name" \(it has text, title\)'):
        open_dataset(str(folder), Preparation(caption_column="text,name"))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text\n0.png,"a, b"\n0.png,c\n1.png,\n')
    dataset = open_dataset(str(folder))
    assert [dataset.captions(i) for i in range(3)] == [("a, b", "c"), (), ()]
    assert "captions of 1 image from column text of metadata.csv" in dataset.reading.notes


def test_exported_images_keep_their_captions(tmp_path):
    lines = [{"file_name": "0.png", "text": ["one", "two"]}, {"file_name": "2.png", "text": "three"}]
    folder = save_images(tmp_path / "data")
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "1.png").write_bytes(b"no image")
    assert write_folder(open_dataset(str(folder)), tmp_path / "flat", 9) == 2
    assert all_captions(tmp_path / "flat") == [("one", "two"), ("three",)]
    classes = InMemory(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([1, 0, 1]), ["a", "b"])
    classes.texts = ["x", None, ["y", "z"]]
    write_folder(classes, tmp_path / "classes", 3)
    exported = open_dataset(str(tmp_path / "classes"))
    assert (exported.classes, exported.labels.tolist()) == (["a", "b"], [0, 1, 1])
    assert all_captions(tmp_path / "classes") == [(), ("x",), ("y", "z")]


def test_a_caption_that_is_no_text(tmp_path):
    folder = save_images(tmp_path / "data", 1)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": 5}))
    with pytest.raises(InputError, match=r"^a caption of 0\.png is 5, which is no text; correct it$"):
        all_captions(folder)


def test_members_of_tar_shards(tmp_path):
    folder = save_images(tmp_path / "images")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            tar.add(folder / f"{i}.png", f"{i}.png")
        for name, content in {"0.txt": "a red apple", "1.json": json.dumps({"caption": ["one", "two"]})}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    assert all_captions(tmp_path / "a.tar") == [("a red apple",), ("one", "two"), ()]


def test_columns_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = Image.new("RGB", (8, 8))
    columns = {"image": [image] * 2, "text": ["one", ""], "more": [["two", "three"], []], "label": ["x", "y"]}
    table = datasets.Dataset.from_dict(columns)
    table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    assert all_captions(tmp_path / "saved") == [("one",), ()]
    assert all_captions(tmp_path / "saved", caption_column="text,more") == [("one", "two", "three"), ()]
    dataset = open_dataset(str(tmp_path / "saved"), Preparation(caption_column="text,more"))
    assert "captions of 1 image from columns text, more" in dataset.reading.notes


def test_statistics_of_captions(tmp_path):
    folder = save_images(tmp_path / "data", 4)
    lines = [("0.png", ["A red apple!", "a red apple"]), ("1.png", "a red apple"), ("2.png", "one two three four five")]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": a, "text": b}) for a, b in lines))
    result = survey(open_source(str(folder)), Console(quiet=True)).captions
    assert asdict(result) == {
        "captions": 4, "different": 3, "without": 1, "several": 1, "words": (3, 3, 5), "vocabulary": 8,
        "most_frequent": "a red apple", "repeats": 2,
    }  # fmt: skip
    rows = [*zip(*(column.cells for column in result.table().columns), strict=True)]
    assert [(name, str(value)) for name, value in rows] == [
        ("different", "3"), ("duplicates", "1"), ("images without a caption", "1"), ("images with several", "1"),
        ("words, min / median / max", "3 / 3 / 5"), ("vocabulary", "8 words"),
        ("most frequent (2 times)", "a red apple"),
    ]  # fmt: skip
    assert survey(open_source(str(save_images(tmp_path / "plain"))), Console(quiet=True)).captions is None


def test_a_latent_cache_has_the_captions_of_its_images(tmp_path):
    folder = save_images(tmp_path / "data", 5)
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"image {i}")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-30])  # cannot be read
    settings = Preparation(size="8", flip=True, max_skipped=0.5)

    autoencoder = Patch(3, 4, 2, width=4, depth=1)

    def cached():
        dataset = open_dataset(str(folder), settings)
        encode(
            dataset,
            str(folder),
            autoencoder,
            tmp_path / "cache",
            Console(quiet=True),
            batch_size=2,
            shard=3,
        )
        cache = open_dataset(str(tmp_path / "cache"))
        return [cache.captions(i) for i in range(len(cache))]

    assert cached() == 2 * [("image 0",), ("image 1",), ("image 3",), ("image 4",)]
    (folder / "3.txt").write_text("another")
    assert cached() == 2 * [("image 0",), ("image 1",), ("another",), ("image 4",)]
