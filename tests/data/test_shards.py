"""Tar shards: every image is read or counted, and labels and captions belong to their images."""

import io
import json
import tarfile

import pytest
from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.data.images import write_folder
from ditlab.data.parse import parse_source
from ditlab.data.reading import LeftOut
from ditlab.data.sources import open_source
from ditlab.data.sources import shards as module


def png(value=0):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def names(source):
    return [source.name(i).partition(":")[2] for i in range(len(source))]


def test_masks_and_labels_of_dotted_names(tmp_path):
    kinds = (("png", png(1)), ("seg.png", png(2)), ("json", json.dumps({"label": "cat"}).encode()))
    shard = write(tmp_path / "a.tar", [(f"im.{i:04d}.{kind}", content) for i in range(3) for kind, content in kinds])
    source = open_source(str(shard))
    assert names(source) == ["im.0000.png", "im.0001.png", "im.0002.png"]
    assert (source.classes, source.labels.tolist()) == (["cat"], [0, 0, 0])
    assert source.reading.left_out == {"further image of a sample (.seg.png)": LeftOut(3, "im.0000.seg.png")}
    masks = open_source(str(shard), Preparation(image_column="seg"))
    assert names(masks) == ["im.0000.seg.png", "im.0001.seg.png", "im.0002.seg.png"]
    assert masks.labels.tolist() == [0, 0, 0]
    assert masks.reading.left_out == {"further image of a sample (.png)": LeftOut(3, "im.0000.png")}


def test_numbers_in_names_are_no_kinds_of_images(tmp_path):
    members = [(f"scan.{i:03d}.{suffix}", png(i)) for i in range(6) for suffix in ("jpg", "png")]
    source = open_source(str(write(tmp_path / "a.tar", members)))
    assert len(source) == 6
    assert source.reading.left_out == {"further image of a sample (.png)": LeftOut(6, "scan.000.png")}
    with pytest.raises(InputError) as error:
        open_source(str(tmp_path / "a.tar"), Preparation(image_column="seg"))
    assert str(error.value) == 'image_column is "seg", but the shards have .jpg, .png; correct or remove it'


def test_a_message_on_missing_images_is_short(tmp_path):
    for suffix in ("a", "b", "c", "d", "e", "f"):
        (tmp_path / f"x.{suffix}").write_text("no image")
    with pytest.raises(InputError, match=r"\(1 not an image \(\.d\): x\.d\) \(and 2 more kinds\); put some there"):
        open_source(str(tmp_path))


def test_dots_in_names_are_part_of_the_name(tmp_path):
    write(tmp_path / "a.tar", [(f"{kind}.{i:03d}.png", png(i)) for kind in ("scan", "map") for i in range(6)])
    source = open_source(str(tmp_path))
    assert len(source) == 12
    assert source.reading.left_out == {}
    dates = write(
        tmp_path / "b.tar", [("img.2020-01-01.png", png()), ("img.2020-01-02.png", png()), ("j.v2.png", png())]
    )
    assert len(open_source(str(dates))) == 3


def test_labels_of_dotted_names(tmp_path):
    members = [x for i in range(6) for x in ((f"{i}.5.png", png(i)), (f"{i}.5.cls", str(i % 2).encode()))]
    source = open_source(str(write(tmp_path / "a.tar", members)))
    assert (source.classes, source.labels.tolist()) == (["0", "1"], [0, 1, 0, 1, 0, 1])
    assert source.reading.conditions == "2 classes from .cls members"


def masked(*, jpg=False):
    kinds = ("jpg" if jpg else "png", "seg.png", "cls")
    return [(f"{i:04d}.{kind}", b"1" if kind == "cls" else png(i)) for i in range(3) for kind in kinds]


def test_a_mask_is_no_image(tmp_path):
    shard = write(tmp_path / "a.tar", masked())
    source = open_source(str(shard))
    assert names(source) == ["0000.png", "0001.png", "0002.png"]
    assert source.labels.tolist() == [0, 0, 0]
    assert source.reading.left_out == {"further image of a sample (.seg.png)": LeftOut(3, "0000.seg.png")}
    assert source.reading.notes == ["one image of each sample is read; also there: .seg.png (image_column chooses)"]
    for wanted in ("seg", "seg.png"):
        assert names(open_source(str(shard), Preparation(image_column=wanted))) == [
            "0000.seg.png", "0001.seg.png", "0002.seg.png",
        ]  # fmt: skip
    assert names(open_source(str(shard), Preparation(image_column="png"))) == ["0000.png", "0001.png", "0002.png"]
    with pytest.raises(InputError, match=r'image_column is "depth", but the shards have \.png, \.seg\.png; correct'):
        open_source(str(shard), Preparation(image_column="depth"))


def test_the_only_sample_has_a_mask_too(tmp_path):
    assert names(open_source(str(write(tmp_path / "a.tar", masked()[:3])))) == ["0000.png"]


def test_two_suffixes_of_one_name(tmp_path):
    shard = write(tmp_path / "a.tar", [("1.png", png(1)), ("1.jpg", png(2)), ("2.png", png(3))])
    source = open_source(str(shard))
    assert names(source) == ["1.jpg", "2.png"]
    assert source.reading.left_out == {"further image of a sample (.png)": LeftOut(1, "1.png")}


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("image.png", "mask.png"), ["0.image.png", "1.image.png"]),
        (("rgb.png",), ["0.rgb.png", "1.rgb.png"]),
        (("front.png", "back.png"), ["0.front.png", "0.back.png", "1.front.png", "1.back.png"]),  # nothing is lost
    ],
)
def test_samples_without_a_plain_image(tmp_path, kinds, expected):
    shard = write(tmp_path / "a.tar", [(f"{i}.{kind}", png()) for i in range(2) for kind in kinds])
    assert names(open_source(str(shard))) == expected


def test_class_folders(tmp_path):
    members = [(f"./{name}/{i}.png", png(i)) for name in ("dog", "cat", "10", "9") for i in range(3)]
    source = open_source(str(write(tmp_path / "a.tar", members)))
    assert source.classes == ["9", "10", "cat", "dog"]
    assert source.labels.tolist() == [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert source.reading.conditions == "4 classes from folders in the shards"
    without = open_source(str(tmp_path / "a.tar"), Preparation(label_column="none"))
    assert (without.classes, without.reading.conditions) == ([], "unconditional")
    below = write(tmp_path / "b.tar", [(f"set/images/{name}/deep/1.png", png()) for name in ("dog", "cat")])
    assert open_source(str(below)).classes == ["cat", "dog"]
    beside = write(tmp_path / "c.tar", [("cat/1.png", png()), ("dog/1.png", png()), ("1.png", png())])
    source = open_source(str(beside))
    assert source.classes == []
    assert source.reading.notes == ["folders in the shards are not classes: c.tar:1.png is in none"]
    alone = write(tmp_path / "d.tar", [("part/1.png", png()), ("part/2.png", png())])
    assert open_source(str(alone)).reading.conditions == "unconditional"


def test_splits_in_the_shards_and_in_their_names(tmp_path):
    members = [(f"{part}/{name}/1.png", png()) for part in ("train", "val") for name in ("cat", "dog")]
    shard = str(write(tmp_path / "a.tar", members))
    source = open_source(shard)
    assert names(source) == ["train/cat/1.png", "train/dog/1.png"]
    assert (source.classes, source.reading.split) == (["cat", "dog"], "train (also there: val)")
    assert names(open_source(shard, Preparation(split="validation"))) == ["val/cat/1.png", "val/dog/1.png"]
    assert open_source(shard, Preparation(split="none")).classes == ["train", "val"]
    for name in ("set-train-000", "set-train-001", "set-val-000"):
        write(tmp_path / "named" / f"{name}.tar", [(f"{name}.png", png())])
    source = open_source(str(tmp_path / "named"))
    assert names(source) == ["set-train-000.png", "set-train-001.png"]
    assert source.reading.split == "train (also there: val)"
    assert len(open_source(str(tmp_path / "named"), Preparation(split="none"))) == 3
    with pytest.raises(InputError, match=r'unknown split of the names of the shards: "test"; choose from: train, val'):
        open_source(str(tmp_path / "named"), Preparation(split="test"))
    with pytest.raises(InputError, match='split is "val", but the shards have no parts train and val; remove split'):
        open_source(str(write(tmp_path / "b.tar", [("1.png", png())])), Preparation(split="val"))


@pytest.mark.parametrize("kind", ["folders", "names"])
def test_the_held_out_part(tmp_path, kind):
    if kind == "folders":
        text = str(write(tmp_path / "a.tar", [(f"{part}/{part}.png", png()) for part in ("train", "test", "valid")]))
    else:
        for part in ("train", "test", "valid"):
            write(tmp_path / f"set-{part}-000.tar", [(f"{part}.png", png())])
        text = str(tmp_path)
    for source in (parse_source(text), parse_source(f"{text}:train"), parse_source(text, Preparation(split="train"))):
        assert source.held_out().text == f"{text}:valid"
    held_out = parse_source(text).held_out().images()
    assert [name.rpartition("/")[2] for name in names(held_out)] == ["valid.png"]
    assert held_out.reading.split.startswith("valid (also there: ")
    assert len(open_dataset(f"{text}:test")) == 1
    for other in (parse_source(f"{text}:test"), parse_source(text, Preparation(split="none"))):
        assert other.held_out() is None
    with pytest.raises(InputError, match=r'split is "test", but the source is .*:valid; remove one of them'):
        open_source(f"{text}:valid", Preparation(split="test"))


def test_suffixes_in_capitals(tmp_path):
    members = [x for i in range(4) for x in ((f"{i}.PNG", png(i)), (f"{i}.CLS", str(i % 2).encode()))]
    source = open_source(str(write(tmp_path / "a.tar", members)))
    assert source.labels.tolist() == [0, 1, 0, 1]


def with_json(tmp_path, rows, name="a.tar", **extra):
    members = []
    for i, row in enumerate(rows):
        members += [(f"{i}.png", png(i)), (f"{i}.json", json.dumps(row).encode())]
        members += [(f"{i}.{suffix}", content) for suffix, content in extra.items()]
    return str(write(tmp_path / name, members))


def test_labels_in_json(tmp_path):
    shard = with_json(tmp_path, [{"class": "cat", "kind": 2}, {"class": "dog", "kind": 1.0}])
    source = open_source(shard)
    assert (source.classes, source.reading.conditions) == (
        ["cat", "dog"],
        '2 classes from key "class" of .json members',
    )
    source = open_source(shard, Preparation(label_column="kind"))
    assert (source.classes, source.labels.tolist()) == (["1", "2"], [1, 0])
    with pytest.raises(
        InputError, match=r'label_column is "x", but no member has it \(keys of the \.json members: class'
    ):
        open_source(shard, Preparation(label_column="x"))
    with pytest.raises(InputError, match=r"a\.tar:0\.png has a list of labels in the shards; give one label"):
        open_source(with_json(tmp_path, [{"label": ["a", "b"]}]))
    with pytest.raises(InputError, match=r"member 0\.json is no JSON .*; correct it"):
        open_source(str(write(tmp_path / "c.tar", [("0.png", png()), ("0.json", b"{")])))
    both = open_source(with_json(tmp_path, [{"label": "a"}, {"label": "b"}], name="d.tar", cls=b"7"))
    assert both.classes == ["7"]
    assert both.reading.notes == ["labels from .cls members; also there: label"]


def test_captions(tmp_path):
    rows = [{"text": "a cat\u2028here"}, {"text": "a dog"}]
    source = open_source(with_json(tmp_path, rows))
    captions = source.columns["caption"].values
    assert (len(captions), captions[0], captions[1]) == (2, "a cat\u2028here", "a dog")
    assert captions[0:2] == ["a cat\u2028here", "a dog"]
    assert source.reading.notes == ['captions of 2 images from key "text" of .json members']
    source = open_source(with_json(tmp_path, [{"long": "b"}], name="b.tar", txt="grün\n".encode()))
    assert source.columns["caption"].values[0] == "grün"
    assert source.reading.notes == [
        "no labels; columns of the .json members that are not read: long (label_column chooses one)",
        "captions of 1 image from .txt members",
    ]
    source = open_source(str(tmp_path / "b.tar"), Preparation(caption_column="long"))
    assert source.columns["caption"].values[0] == "b"
    assert "caption" not in open_source(str(tmp_path / "b.tar"), Preparation(caption_column="none")).columns
    with pytest.raises(InputError, match='caption_column is "x", but no member has it'):
        open_source(str(tmp_path / "b.tar"), Preparation(caption_column="x"))
    some = open_source(str(write(tmp_path / "c.tar", [("0.png", png()), ("1.png", png()), ("1.txt", b"one")])))
    assert list(some.columns["caption"].values) == ["", "one"]


def test_other_members_are_counted(tmp_path):
    members = [
        ("1.png", png()),
        ("._1.png", b""),
        ("__MACOSX/2.png", png()),
        ("1.npz", b""),
        ("1.heic", b""),
        ("2.mp4", b""),
    ]
    left = open_source(str(write(tmp_path / "a.tar", members))).reading.left_out
    assert left == {
        "hidden": LeftOut(1, "a.tar:._1.png"),
        "system file or folder": LeftOut(1, "a.tar:__MACOSX/2.png"),
        "not an image (.npz)": LeftOut(1, "a.tar:1.npz"),
        "needs the package pillow-heif (.heic)": LeftOut(1, "a.tar:1.heic"),
        "not an image (.mp4)": LeftOut(1, "a.tar:2.mp4"),
    }


def test_the_video_of_a_sample_comes_before_its_thumbnail(tmp_path):
    pytest.importorskip("av")
    shard = write(tmp_path / "a.tar", [("1.jpg", png()), ("1.mp4", b""), ("2.webp", png()), ("2.mp4", b"")])
    clips = open_source(str(shard), Preparation(frames=4))
    assert names(clips) == ["1.mp4", "2.mp4"]


def test_a_cached_listing_depends_on_the_settings_and_on_its_format(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "KEEP_LISTING_FROM", 1)
    shard = with_json(tmp_path, [{"label": "a", "kind": "x"}])
    assert open_source(shard).classes == ["a"]
    assert open_source(shard, Preparation(label_column="kind")).classes == ["x"]
    assert open_source(shard).classes == ["a"]
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2
    monkeypatch.setattr(module, "LISTING", module.LISTING + 1)
    monkeypatch.setattr(module, "list_shard", lambda shard, settings: module.Listing([["new.png", 0, 1]]))
    assert names(open_source(shard)) == ["new.png"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.XZ", "a.tar.zst"])
def test_compressed_shards_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"shard .*a\..* is compressed, .*; decompress it first"):
        open_source(str(tmp_path / name))


def test_a_program_is_no_file():
    text = "pipe:curl -s x.tar"
    with pytest.raises(InputError, match="is a program and no file; give the address of the shards, such as s3://"):
        open_source(text)


def test_braces(tmp_path):
    for i in range(3):
        write(tmp_path / f"part-{i:06d}.tar", [(f"{i}.png", png(i))])
    assert names(open_source(f"{tmp_path}/part-{{000000..000001}}.tar")) == ["0.png", "1.png"]
    assert names(open_source(f"{tmp_path}/part-00000{{2,0}}.tar")) == ["2.png", "0.png"]
    assert names(open_source(f"{tmp_path}/p*-{{000001..000002}}.tar")) == ["1.png", "2.png"]
    with pytest.raises(InputError, match=r'no tar file ".*part-000003\.tar" \(1 of 2 are missing\); give an existing'):
        open_source(f"{tmp_path}/part-{{000002..000003}}.tar")
    with pytest.raises(InputError, match=r"\{5\.\.1\} in .* stands for 0 names; give \{FIRST\.\.LAST\}"):
        open_source(f"{tmp_path}/part-{{5..1}}.tar")
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(InputError, match=r"a\.png is no tar file, but .* matches tar files too"):
        open_source(f"{tmp_path}/*")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\ncat\n", r'classes\.txt has the class "cat" twice \(line 2\)'),
        (b"cat\n\ndog\n", r"classes\.txt has an empty line \(line 2\)"),
        (b"", r"classes\.txt has an empty line \(line 1\)"),
        (b"caf\xe9\ndog\n", r"classes\.txt is not UTF-8"),
    ],
)
def test_class_names_that_cannot_be_used(tmp_path, content, message):
    write(tmp_path / "a.tar", [("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b"1")])
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(str(tmp_path))
    (tmp_path / "classes.txt").write_bytes("\ufeffcat \r\ndog\n\n".encode())
    assert open_source(str(tmp_path)).classes == ["cat", "dog"]


def test_texts_that_are_not_utf8(tmp_path):
    label = write(tmp_path / "a.tar", [("0.png", png()), ("0.cls", b"caf\xe9")])
    with pytest.raises(InputError, match=r"^member 0\.cls is not UTF-8; save the text as UTF-8$"):
        open_source(str(label))
    caption = open_source(str(write(tmp_path / "b.tar", [("0.png", png()), ("0.txt", b"caf\xe9")])))
    with pytest.raises(InputError, match=r"^member at byte \d+ of b\.tar is not UTF-8; save the text as UTF-8$"):
        caption.columns["caption"].values[0]


def test_keys_that_may_be_labels_are_named(tmp_path):
    shard = write(tmp_path / "a.tar", [("0.png", png()), ("0.json", b'{"species": "cat", "caption": "a cat"}')])
    source = open_source(str(shard))
    assert source.reading.notes[0] == (
        "no labels; columns of the .json members that are not read: species (label_column chooses one)"
    )
    assert open_source(str(shard), Preparation(label_column="species")).classes == ["cat"]
    assert "no labels" not in str(open_source(str(shard), Preparation(label_column="none")).reading.notes)


def test_class_names_that_are_paths_are_exported_into_the_folder(tmp_path):
    classes = [b"../../x", b"/tmp/abs", b"CON", b"end. ", b"a:b", b"\x1b[0m"]
    shard = write(
        tmp_path / "t.tar", [(f"{i}.png", png(i)) for i in range(6)] + [(f"{i}.cls", c) for i, c in enumerate(classes)]
    )
    folder = tmp_path / "in" / "out"
    write_folder(open_dataset(str(shard)), folder, 6)
    assert sorted(path.name for path in folder.iterdir()) == ["_CON", "_[0m", "__.._x", "_tmp_abs", "a_b", "end"]
    assert len(list(tmp_path.rglob("*.png"))) == len(list(folder.glob("*/*.png"))) == 6
