import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from ditlab.autoencoders import KL, Latent
from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.data import ahead, training_order
from ditlab.data.base import InMemory
from ditlab.data.latents.cache import Latents
from ditlab.data.latents.encode import encode
from ditlab.data.latents.shards import shard_stamps

ARCHITECTURE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 2,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}


def autoencoder(seed=0):
    torch.manual_seed(seed)
    return KL(ARCHITECTURE, shift=[0.3, -0.1], scale=[1.7, 0.3]).eval().requires_grad_(False)


def dataset(count=23):
    images = torch.randint(0, 256, (count, 3, 8, 12), generator=torch.Generator().manual_seed(1)).byte()
    return InMemory(images, torch.arange(count) % 3, ["a", "b", "great cat"])


def make(out, data=None, ae=None, **options):
    options = {"batch_size": 4, "shard": 10, "dtype": "fp32"} | options
    return encode(data or dataset(), "some images", ae or autoencoder(), out, Console(quiet=True), **options)


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_a_cache_holds_the_moments_of_every_image_in_order(tmp_path, dtype, error):
    data, ae = dataset(), autoencoder()
    done = make(tmp_path / "cache", data, ae, dtype=dtype)
    assert (done.images, done.entries) == (23, 23)
    cache = Latents(tmp_path / "cache")
    assert (len(cache), cache.channels, cache.size, cache.classes) == (23, 3, (8, 12), ["a", "b", "great cat"])
    order = torch.tensor([22, 0, 10, 9, 9])
    batch = cache.fetch(order)
    expected = torch.cat([ae.encode(data.images[i : i + 1]) for i in order])
    assert (batch.x - expected).abs().max() <= error * expected.abs().max() + 1e-6
    assert torch.equal(batch.labels, data.labels[order])
    assert torch.equal(cache.labels, data.labels)


def test_existing_shards_are_not_encoded_again(tmp_path):
    make(tmp_path / "cache")
    before = Latents(tmp_path / "cache").fetch(torch.arange(23)).x
    (tmp_path / "cache" / "shards" / "000001.safetensors").unlink()
    (tmp_path / "cache" / "index.json").unlink()
    again = make(tmp_path / "cache")
    assert (again.images, again.entries) == (10, 23)
    assert torch.equal(Latents(tmp_path / "cache").fetch(torch.arange(23)).x, before)
    assert make(tmp_path / "cache").images == 0


def test_processes_share_the_shards(tmp_path):
    first = make(tmp_path / "cache", rank=1, world=2)
    assert (first.images, first.entries) == (10, None)
    with pytest.raises(InputError, match="is not finished; encode again with the same settings"):
        Latents(tmp_path / "cache")
    assert make(tmp_path / "cache", rank=0, world=2).entries == 23
    make(tmp_path / "alone")
    a, b = (Latents(tmp_path / name).fetch(torch.arange(23)).x for name in ("cache", "alone"))
    assert torch.equal(a, b)


def test_another_autoencoder_or_precision_is_rejected_and_named(tmp_path):
    make(tmp_path / "cache")
    with pytest.raises(
        InputError, match=r"holds another cache \(autoencoder is \w{12} there, \w{12} here\); give another"
    ):
        make(tmp_path / "cache", ae=autoencoder(1))
    with pytest.raises(InputError, match=r"\(dtype is fp32 there, fp16 here\)"):
        make(tmp_path / "cache", dtype="fp16")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no cache"):
        make(tmp_path / "other")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tensors: tensors.pop("stamp.times"), "it lacks 'times'"),
        (lambda tensors: tensors["stamp.labels"].fill_(7), "labels 7 to 7 for 3 classes"),
        (lambda tensors: tensors.update({"stamp.sizes": torch.zeros(3)}), "10 names for other numbers of labels"),
    ],
)
def test_damaged_stamps_of_a_shard_are_named(damage, reason, tmp_path):
    make(tmp_path / "cache")
    file = tmp_path / "cache" / "shards" / "000001.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(
        InputError, match=rf"^shard .*000001.safetensors is damaged \({reason}.*\); remove it and encode"
    ):
        shard_stamps(file)


def test_a_flipped_bit_is_named(tmp_path):
    make(tmp_path / "cache")
    file = tmp_path / "cache" / "shards" / "000001.safetensors"
    content = bytearray(file.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    first, _ = header["moments"]["data_offsets"]
    entry = 2 * 2 * 4 * 6 * 4
    content[8 + int.from_bytes(content[:8], "little") + first + 3 * entry + 5] ^= 16
    file.write_bytes(content)
    cache = Latents(tmp_path / "cache")
    cache.fetch(torch.tensor([12, 14]))
    with pytest.raises(InputError, match=r"entry 13 of the cache, in .*000001.safetensors, is damaged; remove"):
        cache.fetch(torch.tensor([13]))
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"000001.safetensors is missing or damaged \(its size is wrong\)"):
        Latents(tmp_path / "cache")
    file.unlink()
    with pytest.raises(InputError, match=r"000001.safetensors is missing or damaged"):
        Latents(tmp_path / "cache")


def test_broken_images_are_left_out(tmp_path):
    class Holed(InMemory):
        def fetch_readable(self, indices):
            return self.fetch(indices[(indices % 10 != 3) & (indices < 20)])

    whole = dataset()
    done = make(tmp_path / "cache", Holed(whole.images, whole.labels, whole.classes))
    assert (done.images, done.entries) == (18, 18)
    labels = [i % 3 for i in range(20) if i % 10 != 3]
    assert Latents(tmp_path / "cache").labels.tolist() == labels


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cache import InMemory, dataset, make, torch
torch.set_num_threads(1)  # as in this process: the last bits depend on it
class Slow(InMemory):
    def fetch(self, indices):
        time.sleep(0.02)
        return super().fetch(indices)
whole = dataset(200)
make(Path({out!r}), Slow(whole.images, whole.labels, whole.classes), shard=8)
"""


@pytest.mark.slow
def test_a_kill_loses_at_most_the_shard_in_work(tmp_path):
    out = tmp_path / "cache"
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code])
    while len(list((out / "shards").glob("*.safetensors"))) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = {file.name: file.stat().st_mtime_ns for file in (out / "shards").glob("*.safetensors")}
    done = make(out, dataset(200), shard=8)
    assert done.entries == 200
    assert done.images == 200 - 8 * len(there)
    assert all((out / "shards" / name).stat().st_mtime_ns == stamp for name, stamp in there.items())
    make(tmp_path / "alone", dataset(200), shard=8)
    a, b = (Latents(path).fetch(torch.arange(200)).x for path in (out, tmp_path / "alone"))
    assert torch.equal(a, b)


class VideoAutoencoder(Latent):
    """Means over cells of 2x4x4 pixels as the moments' mean, and a variance of 1."""

    def __init__(self):
        super().__init__(3, 3, 4, 0.0, 1.0)
        self.config |= {"kind": "video"}
        self.scale = torch.nn.Parameter(torch.ones(1))

    def latent_shape(self, channels, size):
        frames, height, width = size
        return 3, (frames // 2, height // 4, width // 4)

    def encode(self, images):
        mean = torch.nn.functional.avg_pool3d(images.float(), (2, 4, 4)) * self.scale
        return torch.cat([mean, torch.zeros_like(mean)], 1)

    def moments(self, x):
        raise NotImplementedError

    def pictures(self, z):
        raise NotImplementedError


class Captioned(InMemory):
    """Videos with the states of a text encoder and a frame rate."""

    def __init__(self, count=11):
        videos = torch.randint(0, 256, (count, 3, 4, 8, 12)).byte()  # (N, C, T, H, W)
        super().__init__(videos, torch.zeros(count, dtype=torch.long), [])
        self.tokens, self.mask = torch.randn(count, 5, 6).half(), torch.rand(count, 5) > 0.5
        self.rate = torch.arange(count)

    def condition(self, indices):
        return Condition(tokens=self.tokens[indices], mask=self.mask[indices])

    def fetch(self, indices):
        return Batch(self.images[indices], self.condition(indices), {"rate": self.rate[indices]})


def test_videos_with_conditions_pass_through_order_reading_and_cache(tmp_path):
    data, ae = Captioned(), VideoAutoencoder()
    batches = ahead(training_order(len(data), 4, seed=0, seen=0), data.fetch)
    first = next(batches)
    assert tuple(first.x.shape) == (4, 3, 4, 8, 12)
    assert not first.encoded
    batches.close()
    make(tmp_path / "cache", data, ae, shard=4, batch_size=3)
    cache = Latents(tmp_path / "cache")
    assert (len(cache), cache.size, cache.shape, cache.classes) == (11, (4, 8, 12), (6, 2, 2, 3), [])
    order = torch.tensor([10, 0, 3, 4])
    batch = cache.fetch(order)
    assert batch.encoded
    torch.testing.assert_close(batch.x, ae.encode(data.images[order]).detach())
    assert torch.equal(batch.condition.tokens, data.tokens[order])
    assert torch.equal(batch.condition.mask, data.mask[order])
    assert batch.condition.label is None
    assert batch.extra["rate"].tolist() == order.tolist()


def test_a_cache_of_an_earlier_version_is_read_and_continued(tmp_path):
    make(tmp_path / "cache")
    before = Latents(tmp_path / "cache").fetch(torch.arange(23)).x
    for name in ("description.json", "index.json"):
        file = tmp_path / "cache" / name
        content = json.loads(file.read_text())
        content["pictures"] = content.pop("images")
        file.write_text(json.dumps(content))
    assert torch.equal(Latents(tmp_path / "cache").fetch(torch.arange(23)).x, before)
    assert make(tmp_path / "cache").images == 0
