"""Names with letters that Unicode can encode in two forms: macOS stores them decomposed, keyboards type composed."""

import io
import tarfile
import unicodedata

import pytest
import torch
from PIL import Image

from ditlab.conditioning import ClassLabels
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import from_torch, open_dataset
from ditlab.data.sources import open_source
from ditlab.training.init_from import read_pairs

COMPOSED, DECOMPOSED = "café", unicodedata.normalize("NFD", "café")


def write(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(file)


@pytest.mark.parametrize("name", [COMPOSED, DECOMPOSED])
def test_class_folders(tmp_path, name):
    write(tmp_path / name / "0.png")
    write(tmp_path / "cafz" / "0.png")
    data = open_dataset(str(tmp_path))
    assert data.classes == ["cafz", COMPOSED]  # one order for both forms
    assert data.stamps().names[1] == f"{COMPOSED}/0.png"
    assert data.fetch(torch.arange(2)).x.shape == (2, 1, 8, 8)


def test_two_folders_of_one_name(tmp_path):
    write(tmp_path / COMPOSED / "0.png")
    write(tmp_path / DECOMPOSED / "0.png")
    with pytest.raises(InputError, match=f'two classes have the name "{COMPOSED}", in different encodings; rename one'):
        open_source(str(tmp_path))


@pytest.mark.parametrize("in_table", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("on_disk", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables(tmp_path, in_table, on_disk, suffix):
    write(tmp_path / "images" / f"{on_disk}.png")
    write(tmp_path / "images" / "x.png")
    rows = [(f"{in_table}.png", DECOMPOSED), ("x.png", COMPOSED)]
    if suffix == "csv":
        text = "file,label\n" + "".join(f"{file},{label}\n" for file, label in rows)
    else:
        text = "".join(f'{{"file": "{file}", "label": "{label}"}}\n' for file, label in rows)
    (tmp_path / f"t.{suffix}").write_text(text, encoding="utf-8")
    source = open_source(str(tmp_path / "images"), Preparation(labels=str(tmp_path / f"t.{suffix}")))
    assert source.classes == [COMPOSED]
    assert source.labels.tolist() == [0, 0]


def test_tar_labels(tmp_path):
    image = io.BytesIO()
    Image.new("L", (8, 8)).save(image, "PNG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for i, label in enumerate((COMPOSED, DECOMPOSED)):
            for name, content in ((f"{i}.png", image.getvalue()), (f"{i}.cls", label.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (tmp_path / "classes.txt").write_text(f"dog\n{DECOMPOSED}\n", encoding="utf-8")
    source = open_source(str(tmp_path / "x.tar"))
    assert (source.classes, source.labels.tolist()) == (["dog", COMPOSED], [1, 1])


def test_torch_data_sets():
    class Pairs(list):
        classes = (DECOMPOSED,)

    assert from_torch(Pairs([(Image.new("L", (8, 8)), 0)])).classes == [COMPOSED]


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED])  # a model of an earlier version may hold either
@pytest.mark.parametrize("given", [COMPOSED, DECOMPOSED])
def test_labels_of_a_model(stored, given):
    labels = ClassLabels(2, ["dog", stored])
    assert labels.encode([given, "dog"]).label.tolist() == [1, 0]
    assert labels.names == ["dog", COMPOSED]
    assert labels.title(given) == COMPOSED
    assert labels.stem(given) == ClassLabels(2, ["dog", COMPOSED]).stem(COMPOSED)


def test_class_maps(tmp_path):
    (tmp_path / "map.toml").write_text(f'"{DECOMPOSED}" = 3\n', encoding="utf-8")
    assert read_pairs(tmp_path / "map.toml") == {COMPOSED: 3}
