"""Data that ask for far more memory than they have bytes."""

import io
import json
import os
import re
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch
from helpers import Items
from PIL import Image
from rich.console import Console

from ditlab.autoencoders import Patch
from ditlab.config.sections import Preparation
from ditlab.core import sizes
from ditlab.core.errors import InputError
from ditlab.data import SampleFile, open_dataset
from ditlab.data.base import InMemory
from ditlab.data.budget import DECODING, PixelBudget
from ditlab.data.decode import open_image
from ditlab.data.images import Images
from ditlab.data.latents.cache import Latents
from ditlab.data.latents.encode import encode
from ditlab.data.npz import map_array
from ditlab.data.preprocess import Preprocess, to_rgb
from ditlab.data.sources import Unreadable, open_source
from ditlab.data.survey import survey
from ditlab.diffusion.samplers.grids import ScheduleFile

QUIET = Console(quiet=True)


def png(width, height):
    """A PNG file of black gray pixels, which is small for its size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + width) * height), 9))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def header(shape, dtype="|u1"):
    """The start of a `.npy` file."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npz(file, member, compression=zipfile.ZIP_STORED, name="arr_0"):
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{name}.npy", member)
    return file


class TestImages:
    def test_large_images_are_left_out_on_request(self, tmp_path):
        for name, sides in (("a", (20, 10)), ("b", (20, 11)), ("c", (20, 10))):
            Image.new("L", sides).save(tmp_path / f"{name}.png")
        np.save(tmp_path / "d.npy", np.zeros((20, 11), np.uint8))
        report = tmp_path / "skipped.csv"
        data = open_dataset(str(tmp_path), Preparation(size="8", max_pixels=200, max_skipped=1), report)
        assert len(data.fetch_readable(torch.arange(4)).x) == 2
        assert sorted(report.read_text().splitlines()[1:]) == [
            "b.png,20x11 pixels; max_pixels is 200",
            "d.npy,11x20 pixels; max_pixels is 200",
        ]
        with pytest.raises(InputError, match="max_pixels"):
            open_dataset(str(tmp_path), Preparation(size="8", max_pixels=0))

    def test_images_of_one_row(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(1_000_000, 1))
        with pytest.raises(Unreadable, match=r"^only 1000000x1 pixels; min_side is 8$"):
            open_source(str(tmp_path)).read(0)
        image = open_source(str(tmp_path), Preparation(min_side=1)).read(0)
        with pytest.raises(Unreadable, match=r"^would have 1,024,000,000 pixels when it is resized to cover 32x32$"):
            Preprocess((32, 32))(image)
        assert Preprocess((32, 32), fit="letterbox")(image).shape == (32, 32, 1)
        assert Preprocess((32, 32), fit="stretch")(image).max() == 0

    def test_the_images_that_are_decoded_at_once_are_bounded(self, tmp_path, monkeypatch):
        budget, inside, most, lock = PixelBudget(250), [], [], threading.Lock()
        monkeypatch.setattr("ditlab.data.sources.base.DECODING", budget)
        for i in range(12):
            Image.new("L", (10, 10), i).save(tmp_path / f"{i}.png")
        preprocess = Preprocess.__call__

        def watched(self, image):
            with lock:
                most.append(budget.used)
            return preprocess(self, image)

        monkeypatch.setattr(Preprocess, "__call__", watched)
        data = open_dataset(str(tmp_path), Preparation(size="8"))
        assert data.fetch(torch.arange(12)).x[:, 0, 0, 0].tolist() == [*range(12)]
        assert max(most) <= 200
        assert budget.used == 0 == len(inside)

    def test_blending_in_strips_changes_nothing(self, monkeypatch):
        generator = np.random.default_rng(0)
        image = Image.fromarray(generator.integers(0, 256, (37, 23, 4), np.uint8))
        palette = image.convert("RGB").quantize(16)
        palette.info["transparency"] = 3
        paper = Image.new("RGBA", image.size, (255, 0, 0))
        for picture in (image, palette, image.convert("LA")):
            expected = Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
            monkeypatch.setattr("ditlab.data.preprocess.STRIP", 100)
            assert np.array_equal(to_rgb(picture, "red"), expected)
        numbers = generator.integers(0, 65536, (37, 23, 2)).astype(np.uint16)
        expected = (numbers.astype(np.float64) * (255 / 65535)).round().astype(np.uint8)
        assert np.array_equal(Preprocess(None)(numbers), expected)

    def test_animations_are_recognized_by_their_second_frame(self, tmp_path):
        frames = [Image.new("L", (8, 8), i) for i in range(3)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        content = (tmp_path / "a.gif").read_bytes()
        body = content[content.rindex(b"\x21\xf9") : -1]
        (tmp_path / "a.gif").write_bytes(content[:-1] + body * 50_000 + b";")
        with pytest.raises(Unreadable, match=r"^animated$"):
            open_source(str(tmp_path)).read(0)

    def test_pages_of_tiff_files_are_bounded(self, tmp_path, monkeypatch):
        monkeypatch.setattr("ditlab.data.decode.MOST_PAGES", 10)
        pages = [Image.new("L", (8, 8), i) for i in range(12)]
        for count, reason in (
            (10, "has 10 pages; give channels = 10 if they are channels"),
            (11, "has more than 10 pages"),
        ):
            pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:count])
            with pytest.raises(Unreadable, match=f"^{reason}$"):
                open_source(str(tmp_path)).read(0)
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:10])
        assert open_source(str(tmp_path)).read(0, pages=10)[0, 0].tolist() == [*range(10)]

    def test_tiff_files_of_many_channels_are_bounded(self, tmp_path, monkeypatch):
        tifffile = pytest.importorskip("tifffile")
        monkeypatch.setattr(sizes, "SPARE", 2**16)
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.zeros((100, 100, 100), np.uint8),
            photometric="minisblack",
            planarconfig="contig",
            compression="zlib",
        )
        size = (tmp_path / "a.tif").stat().st_size
        expected = f"has {size:,} bytes, which become 1,000,000; at most {16 * size + 2**16:,} are read"
        for file in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
            with pytest.raises(ValueError, match=f"^{expected}$"):
                open_image(file)

    @pytest.mark.parametrize("shape", [(10**12, 10**12), (-1, 8), (2**62, 2**62), (9, 8)])
    def test_arrays_that_are_shorter_than_they_say(self, tmp_path, shape):
        content = header(shape) + bytes(64)
        reason = f"an array of shape {shape} and type uint8, but the file has 64 bytes for it"
        (tmp_path / "a.npy").write_bytes(content)
        for file in (tmp_path / "a.npy", content):
            with pytest.raises(
                ValueError,
                match=re.escape(reason),
            ):
                open_image(file)
        with pytest.raises(Unreadable, match=r"^an array of shape .* but the file has 64 bytes for it$"):
            open_source(str(tmp_path)).read(0)


class TestSampleFiles:
    @pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    @pytest.mark.parametrize("shape", [(10**6, 1000, 1000, 4), (-4, 4, 4, 1), (5, 4, 4, 1)])
    def test_shapes_are_compared_with_the_bytes(self, tmp_path, shape, compression):
        file = npz(tmp_path / "a.npz", header(shape) + bytes(64), compression)
        with pytest.raises(InputError) as error:
            SampleFile(file)
        assert str(error.value) == (
            f"{file} cannot be read (an array of shape {shape} and type uint8, but arr_0 has 64 bytes for it); "
            "write it again"
        )

    def test_compressed_zeros(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sizes, "SPARE", 2**20)
        file = npz(tmp_path / "a.npz", header((5, 2**20, 4, 1)) + bytes(5 * 2**22), zipfile.ZIP_DEFLATED)
        size, content = file.stat().st_size, 5 * 2**22 + 128
        tracemalloc.start()
        with pytest.raises(InputError) as error:
            SampleFile(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()
        assert str(error.value) == (
            f"{file} has {size:,} bytes, which become {content:,} when they are decompressed; at most "
            f"{16 * size + 2**20:,} are read: write it again without compression"
        )

    def test_compressed_images_are_read(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
        np.savez_compressed(tmp_path / "a.npz", arr_0=images)
        assert np.array_equal(map_array(tmp_path / "a.npz", "arr_0"), images)

    def test_pipes_are_refused(self, tmp_path):
        os.mkfifo(tmp_path / "a.npz")
        with pytest.raises(InputError, match=r"a.npz is not a regular file, such as a pipe or a device; give a file$"):
            SampleFile(tmp_path / "a.npz")


class TestShards:
    def member(self, name, size, kind=tarfile.REGTYPE):
        info = tarfile.TarInfo(name)
        info.size, info.type = size, kind
        return info.tobuf(tarfile.GNU_FORMAT)

    @pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
    def test_members_that_are_longer_than_the_shard(self, tmp_path, kind):
        shard = tmp_path / "a.tar"
        shard.write_bytes(self.member("a.png", 10**15, kind) + bytes(4096))
        with pytest.raises(InputError, match=rf"^shard {shard} is truncated, damaged or compressed \("):
            open_source(str(shard))

    def test_sparse_members_are_left_out(self, tmp_path):
        content = io.BytesIO()
        Image.new("L", (8, 8)).save(content, "PNG")
        info = tarfile.TarInfo("b.png")
        info.size = len(content.getvalue())
        sparse = bytearray(self.member("a.png", 0, tarfile.GNUTYPE_SPARSE))
        sparse[483:495] = b"\x80\0\0\0" + (10**15).to_bytes(8, "big")  # the real size
        sparse[148:156] = b" " * 8
        sparse[148:156] = b"%06o\0 " % sum(sparse)
        with tarfile.open(tmp_path / "b.tar", "w") as tar:
            tar.addfile(info, io.BytesIO(content.getvalue()))
        (tmp_path / "a.tar").write_bytes(bytes(sparse) + (tmp_path / "b.tar").read_bytes())
        source = open_source(str(tmp_path / "a.tar"))
        assert len(source) == 1
        assert {reason: left.example for reason, left in source.reading.left_out.items()} == {
            "sparse member": "a.tar:a.png"
        }


class TestCaches:
    @pytest.fixture
    def cache(self, tmp_path):
        torch.manual_seed(0)
        small = Patch(picture_channels=1, latent_channels=2, stride=2, width=8, depth=1).eval().requires_grad_(False)
        data = InMemory(torch.zeros(5, 1, 8, 8).byte(), torch.zeros(5).long(), ["a"])
        encode(data, "images", small, tmp_path / "c", QUIET, batch_size=4, shard=4, dtype="fp32")
        return tmp_path / "c"

    def change(self, cache, change):
        content = json.loads((cache / "index.json").read_text())
        change(content)
        (cache / "index.json").write_text(json.dumps(content))

    def test_an_index_that_claims_more_than_the_shards_hold(self, cache):
        self.change(cache, lambda index: index["shards"][0].update(entries=10**12))
        with pytest.raises(InputError) as error:
            Latents(cache)
        assert str(error.value) == (
            f"{cache}/index.json records 1,000,000,000,000 entries of 000000.safetensors, but it has 4; remove "
            "index.json and encode again"
        )
        self.change(cache, lambda index: index["shards"][0].update(entries=4))
        self.change(cache, lambda index: index.update(entries=10**12))
        with pytest.raises(
            InputError, match=r"records 1,000,000,000,000 entries of the cache, but its shards have 5; "
        ):
            Latents(cache)

    @pytest.mark.parametrize(
        ("name", "values", "reason"),
        [
            ("moments", {"shape": [4, 10**12, 4, 4]}, "moments of shape [4, 1000000000000, 4, 4] has 1,024 bytes"),
            ("moments", {"shape": [-4, -4, 4, 4]}, "moments of shape [-4, -4, 4, 4] has 1,024 bytes"),
            ("labels", {"data_offsets": [-32, 0]}, "labels of shape [4] has 32 bytes"),
            ("labels", {"shape": None}, ""),
        ],
    )  # fmt: skip
    def test_shapes_of_a_shard_are_compared_with_its_bytes(self, cache, name, values, reason):
        shard = cache / "shards" / "000000.safetensors"
        content = shard.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        entries[name] |= values
        text = json.dumps(entries).encode()
        shard.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        self.change(cache, lambda index: index["shards"][0].update(bytes=shard.stat().st_size))
        with pytest.raises(InputError) as error:
            Latents(cache)
        assert str(error.value).startswith(f"shard {shard} is missing or damaged ({reason}")

    def test_a_header_that_is_longer_than_its_shard(self, cache):
        shard = cache / "shards" / "000000.safetensors"
        shard.write_bytes((10**15).to_bytes(8, "little") + b"{}")
        with pytest.raises(InputError, match=r"\(its header of 1,000,000,000,000,000 bytes is larger than the file\)"):
            Latents(cache)


def test_pipes_as_tables(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    os.mkfifo(tmp_path / "labels.csv")
    for labels in (tmp_path / "labels.csv", "/dev/zero"):
        with pytest.raises(InputError) as error:
            open_source(str(tmp_path), Preparation(labels=str(labels)))
        assert str(error.value) == f"{labels} is not a regular file, such as a pipe or a device; give a file"
    (tmp_path / "labels.csv").rename(tmp_path / "metadata.csv")
    os.mkfifo(tmp_path / "1.png")
    source = open_source(str(tmp_path))
    assert len(source) == 1
    assert survey(source, QUIET).images == 1


@pytest.mark.slow
def test_many_schedules(tmp_path):
    file = tmp_path / "schedules.json"
    grids = {str(i): [] for i in range(2, 20_000)}
    file.write_text(json.dumps({"process": {"name": "linear"}, "sampler": "heun", "grids": grids}))
    with pytest.raises(InputError) as error:
        ScheduleFile.read(str(file)).times(1)
    listed = ", ".join(str(i) for i in range(2, 102))
    assert str(error.value) == f"{file} has no schedule of 1 step; it has {listed}, ... (19,998 in all)"


def test_unreadable_images_are_not_counted_as_pixels():
    data = Images(Items(np.zeros((8, 8, 1), np.uint8)))
    assert data.fetch(torch.zeros(1, dtype=torch.long)).x.shape == (1, 1, 8, 8)
    assert DECODING.used == 0
