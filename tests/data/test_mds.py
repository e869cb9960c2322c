"""MDS shards: the same images, labels and captions as were written, without the package that wrote them."""

import json
import struct

import pytest
from fake_store import png

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, SourceError
from ditlab.data import open_dataset, open_source
from ditlab.data.parse import content_identity


def write(folder, rows, encodings, each=3, **entry):
    """Write rows column -> bytes in the format of mosaicml-streaming."""
    folder.mkdir(parents=True)
    sizes = {name: {"int": 8, "uint8": 1}.get(encoding) for name, encoding in encodings.items()}
    shards = []
    for number in range(0, len(rows), each):
        part = rows[number : number + each]
        samples = []
        for row in part:
            head = b"".join(struct.pack("<I", len(row[name])) for name in encodings if sizes[name] is None)
            samples.append(head + b"".join(row[name] for name in encodings))
        starts = [4 * (len(part) + 2)]
        for sample in samples:
            starts.append(starts[-1] + len(sample))
        name = f"shard.{number // each:05d}.mds"
        content = struct.pack(f"<{len(starts) + 1}I", len(part), *starts) + b"".join(samples)
        (folder / name).write_bytes(content)
        shards.append(
            {
                "column_names": [*encodings], "column_encodings": [*encodings.values()],
                "column_sizes": [*sizes.values()],
                "compression": None, "format": "mds", "hashes": [], "samples": len(part), "size_limit": 2**26,
                "version": 2, "zip_data": None, "raw_data": {"basename": name, "bytes": len(content), "hashes": {}},
            } | entry
        )  # fmt: skip
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    return folder


def rows(count=7, first=0):
    return [
        {"caption": b"number %d" % i, "image": png(i), "label": struct.pack("<q", i % 2)}
        for i in range(first, first + count)
    ]


USUAL = {"caption": "str", "image": "png", "label": "int"}


def test_images_labels_and_captions(tmp_path):
    dataset = open_dataset(str(write(tmp_path / "a", rows(), USUAL)))
    assert dataset.fetch(dataset.labels.new_tensor([6, 0, 3])).x[:, 0, 0, 0].tolist() == [6, 0, 3]
    assert (dataset.labels.tolist(), dataset.classes) == ([0, 1, 0, 1, 0, 1, 0], ["0", "1"])
    assert dataset.captions(4) == ("number 4",)
    assert dataset.stamps().names[3:5] == ["shard.00001.mds[0]", "shard.00001.mds[1]"]
    assert content_identity(str(tmp_path / "a"))


def test_raw_pixels_and_other_columns(tmp_path):
    pixels = struct.pack("<3I", 8, 8, 1) + b"L" + bytes(range(64))
    part = [{"pic": pixels, "kind": b"cat", "seen": b"\x05"}] * 2
    folder = write(tmp_path / "a", part, {"pic": "pil", "kind": "str", "seen": "uint8"})
    source = open_source(str(folder), Preparation(label_column="kind"))
    assert source.classes == ["cat"]
    assert source.read(1).getpixel((1, 2)) == 17
    assert open_source(str(folder), Preparation(label_column="seen")).classes == ["5"]


def test_a_shard_that_vanishes_or_changes_is_no_unreadable_image(tmp_path):
    source = open_source(str(write(tmp_path / "a", rows(), USUAL)))
    shard = tmp_path / "a" / "shard.00001.mds"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(SourceError, match=r"shard.00001.mds cannot be read \(No such file .*\); restore this file$"):
        source.read(5)
    shard.write_bytes(content[:-9])
    assert source.read(4).size == (8, 8)
    with pytest.raises(SourceError, match=rf"ends before byte {len(content) - 8:,}, so it has changed; restore this"):
        source.read(5)


def test_parts(tmp_path):
    write(tmp_path / "train", rows(4), USUAL)
    write(tmp_path / "val", rows(2, first=4), USUAL)
    assert open_dataset(str(tmp_path)).captions(0) == ("number 0",)
    assert open_dataset(f"{tmp_path}:val").captions(0) == ("number 4",)
    with pytest.raises(InputError, match=r'split is "val", but .* has no parts; remove split'):
        open_source(str(tmp_path / "val"), Preparation(split="val"))


def test_damaged_and_compressed_shards(tmp_path):
    folder = write(tmp_path / "a", rows(), USUAL)
    file = folder / "shard.00001.mds"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"shard.00001.mds has another length than its index.*; copy it again"):
        open_source(str(folder))
    folder = write(tmp_path / "b", rows(), USUAL, zip_data={"basename": "x.zstd"})
    with pytest.raises(
        InputError, match=r"index.json .*are compressed, or of another version.*; write the shards again"
    ):
        open_source(str(folder))
