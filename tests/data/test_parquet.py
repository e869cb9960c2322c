"""Parquet files with images in columns of bytes."""

import pytest
from fake_store import png, put

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, open_source

pytest.importorskip("datasets", reason="Parquet files need the datasets library")
arrow = pytest.importorskip("pyarrow")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of the parts train and val, with images as bytes and as the hub stores them."""
    import datasets
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home")
    for name, first in (("train-00000", 0), ("train-00001", 3), ("val-00000", 6)):
        images = [png(i) for i in range(first, first + 3)]
        values = {"image": [{"bytes": image, "path": None} for image in images], "thumbnail": images}
        values |= {"label": ["cat", "dog", "cat"], "caption": [f"number {first + i}" for i in range(3)]}
        parquet.write_table(arrow.table(values), tmp_path / f"{name}.parquet")
    return tmp_path


def first_pixels(dataset, *indices):
    return dataset.fetch(dataset.labels.new_tensor(indices)).x[:, 0, 0, 0].tolist()


def test_a_folder_and_its_parts(folder):
    dataset = open_dataset(str(folder))
    assert (len(dataset), dataset.classes, dataset.captions(4)) == (6, ["cat", "dog"], ("number 4",))
    assert first_pixels(dataset, 5, 0) == [5, 0]
    assert first_pixels(open_dataset(f"{folder}/*.parquet:val"), 0) == [6]
    assert first_pixels(open_dataset(str(folder / "val-00000.parquet"), Preparation(image_column="thumbnail")), 1) == [
        7
    ]
    assert open_source(str(folder)).fingerprint == open_source(f"{folder}/train-*.parquet").fingerprint


def test_files_in_a_store(folder, store):
    for file in folder.glob("train-*.parquet"):
        put(f"{store}/{file.name}", file.read_bytes())
    dataset = open_dataset(f"{store}/train-*.parquet")
    assert first_pixels(dataset, 5, 0) == [5, 0]


def test_missing_and_damaged_files(folder):
    with pytest.raises(InputError, match=r"no Parquet file .*x.parquet; give an existing file or pattern"):
        open_source(str(folder / "nothing" / "x.parquet"))
    (folder / "train-00000.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(InputError, match=r"cannot read .*; copy the files again"):
        open_source(str(folder))
