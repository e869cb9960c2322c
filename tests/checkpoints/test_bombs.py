"""Files that ask for far more memory than they have bytes; each is refused before the memory is allocated."""

import json
import pickle
import shutil
import tracemalloc
import zipfile
from argparse import Namespace

import pytest
import torch
from helpers import tiny_pipeline
from safetensors.torch import load_file, save_file

from ditlab.autoencoders import Patch
from ditlab.backbones import create
from ditlab.checkpoints import load, load_autoencoder, save_autoencoder
from ditlab.checkpoints.published import to_official
from ditlab.core import sizes
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init
from ditlab.core.weights import pick_weights, read_file, write_tensors
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.inference.pipeline import Pipeline

WEIGHTS = "50,148 numbers in 32 tensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_pipeline().save(tmp_path_factory.mktemp("bombs") / "model")


@pytest.fixture
def model(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def change(folder, section="backbone", **values):
    config = json.loads((folder / "config.json").read_text())
    config[section] |= values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("option", "value"), [("depth", 10**9), ("classes", 10**15), ("width", 2**40), ("channels", 2**19)]
)
def test_a_configuration_is_compared_with_the_weights_first(model, option, value):
    change(model, **{option: value})
    values = {"size": "8x8", "channels": 1, "classes": 3, "depth": 2, "width": 32, "heads": 2, "patch": 2}
    values[option] = value
    with pytest.raises(InputError) as error:
        load(model)
    text, expected = str(error.value), ", ".join(f"{key} {number}" for key, number in values.items())
    assert text == (
        f"{model}/config.json with {expected} describes a much larger network than its weights, which are {WEIGHTS}; "
        "restore the file from a copy, or save the model again"
    )


def test_the_input_of_a_network_is_bounded(model):
    change(model, size=[100_000, 100_000])
    with pytest.raises(InputError, match=r"an input of 10,000,000,000 numbers; at most 67,108,864 are supported$"):
        load(model)
    change(model, size=[8000, 8000])  # within the bound, but not its positions
    with pytest.raises(InputError, match=r"size 8000x8000, .* describes a much larger network than its weights"):
        load(model)


def test_lists_of_a_configuration_are_bounded(model):
    change(model, size=[8] * 100_000)
    with pytest.raises(InputError, match=r"config.json has 100,000 entries in size, and 32 weights; restore it$"):
        load(model)


@pytest.mark.slow
def test_levels_are_bounded_too(tmp_path):
    net = create("U-DiT", size=8, channels=1, classes=2, learn_variance=False, width=16, heads=2, depths=[1, 1, 1])
    Pipeline(net.eval(), Objective()).save(tmp_path / "model")
    change(tmp_path / "model", depths=[1, 10**9, 1])
    with pytest.raises(InputError, match=r"depths 1x1000000000x1 describes a much larger network than its weights"):
        load(tmp_path / "model")


def test_networks_of_any_size_are_created_while_their_weights_are_there():
    weights = {"w": torch.zeros(10, 10)}
    with skip_init(weights, "here"):
        assert torch.empty(10, 10).numel() == 100
        assert len(torch.arange(5)) == 5
        with pytest.raises(InputError, match=r"^here describes a much larger network than its weights, which are 100 "):
            torch.arange(0, 2**25)
    with skip_init(weights, "here"), pytest.raises(InputError, match="100 numbers in 1 tensors"):
        torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2000))
    with skip_init(weights, "here"), pytest.raises(InputError, match="100 numbers in 1 tensors"):
        torch.zeros(2**40, 2**40)


def test_autoencoders_are_compared_with_their_weights(tmp_path):
    small = Patch(picture_channels=1, latent_channels=2, stride=2, width=8, depth=1)
    folder = save_autoencoder(small, tmp_path / "autoencoder")
    config = json.loads((folder / "config.json").read_text())
    for key, value in (("depth", 10**9), ("width", 2**40)):
        (folder / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match=rf"config.json with .*{key} {value}.* describes a much larger network"):
            load_autoencoder(folder)


def test_published_weights_with_the_name_of_a_distant_block(tmp_path):
    tensors = to_official(tiny_pipeline(objective=Objective(DDPM(), "eps")))
    tensors["blocks.999999999.attn.qkv.weight"] = tensors["blocks.0.attn.qkv.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors with .*depth 1000000000.* describes a much larger"):
        load(tmp_path / "model.safetensors", heads=2)


def adapter(folder, source):
    """Turn a model folder into low-rank updates of another one."""
    config = json.loads((folder / "config.json").read_text())
    config["lora"] = {"source": str(source)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")


def test_low_rank_updates_of_themselves(model):
    adapter(model, model)
    with pytest.raises(InputError) as error:
        load(model)
    assert str(error.value) == (
        f"{model} holds low-rank updates of a model that is made from {model} itself; give the model from which it was "
        "trained (base=)"
    )


def test_low_rank_updates_of_each_other(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    adapter(model, other)
    adapter(other, tmp_path / "." / "model")
    with pytest.raises(InputError, match=rf"^{model} holds low-rank updates of a model that is made from {model} itse"):
        load(model)


def test_a_long_chain_of_low_rank_updates(model, tmp_path):
    for i in range(20):
        adapter(shutil.copytree(model, tmp_path / str(i)), tmp_path / str(i + 1))
    with pytest.raises(InputError, match=rf"^{tmp_path}/0 is made of more than 16 models with low-rank updates"):
        load(tmp_path / "0")
    assert load(tmp_path / "12" if shutil.copytree(model, tmp_path / "20") else "").net.config["depth"] == 2


class TestPickles:
    def test_a_tensor_that_repeats_its_numbers(self, tmp_path):
        file = tmp_path / "bomb.pt"
        tensors = {"a": torch.ones(3), "b": torch.zeros(1, 1, dtype=torch.float16).expand(2_000_000_000, 32)}
        for content in (tensors, {"ema": tensors}, {"optimizer": {"state": [tensors]}}):
            torch.save(content, file)
            size = file.stat().st_size
            with pytest.raises(InputError) as error:
                read_file(file)
            assert str(error.value) == (
                f"{file} has {size:,} bytes, and its tensors would take 128,000,000,012 (b is 2000000000x32); at most "
                f"{16 * size + 2**28:,} are read: save contiguous tensors"
            )

    def test_many_views_of_one_storage(self, tmp_path):
        shared = torch.zeros(2**20)
        torch.save({str(i): shared for i in range(2000)}, tmp_path / "bomb.pt")
        assert len(read_file(tmp_path / "bomb.pt")) == 2000  # the same tensor
        torch.save({str(i): shared[: 2**20 - i] for i in range(2000)}, tmp_path / "bomb.pt")
        with pytest.raises(InputError, match=r"its tensors would take 8,380,612,000 \(0 is 1048576\); at most "):
            read_file(tmp_path / "bomb.pt")

    def test_views_of_one_storage_become_weights_of_their_own(self, tmp_path):
        shared = torch.arange(6.0)
        torch.save({"a": shared[:4], "b": shared[2:], "c": shared.view(2, 3).T, "d": torch.ones(1)}, tmp_path / "a.pt")
        tensors = pick_weights(read_file(tmp_path / "a.pt"), "ema", tmp_path / "a.pt")
        write_tensors(tensors, tmp_path / "a.safetensors")
        read = load_file(tmp_path / "a.safetensors")
        assert {name: value.tolist() for name, value in read.items()} == {
            "a": [0, 1, 2, 3], "b": [2, 3, 4, 5], "c": [[0, 3], [1, 4], [2, 5]], "d": [1]
        }  # fmt: skip

    def test_small_repetitions_are_read(self, tmp_path):
        torch.save({"a": torch.ones(1).expand(1000), "args": Namespace(depth=1)}, tmp_path / "a.pt")
        assert torch.equal(read_file(tmp_path / "a.pt")["a"], torch.ones(1000))

    def test_compressed_zeros(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sizes, "SPARE", 2**20)
        file = tmp_path / "bomb.pt"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb/data.pkl", "w") as member:
            for _ in range(20):
                member.write(bytes(2**20))
        size = file.stat().st_size
        with pytest.raises(InputError) as error:
            read_file(file)
        assert str(error.value) == (
            f"{file} has {size:,} bytes, which become 20,971,520 when they are decompressed; at most "
            f"{16 * size + 2**20:,} are read: write it again without compression"
        )

    def test_sparse_and_meta_tensors(self, tmp_path):
        file = tmp_path / "a.pt"
        for value, what in (
            (torch.sparse_coo_tensor(torch.zeros(2, 0), [], (10**9, 10**9)), "torch.sparse_coo on cpu"),
            (torch.empty(10**9, 10**9, device="meta"), "torch.strided on meta"),
        ):
            torch.save({"w": value}, file)
            with pytest.raises(InputError, match=rf"a.pt: w is no plain tensor \({what}\); save plain tensors$"):
                read_file(file)

    @pytest.mark.parametrize("part", [0, 10, 30, 60, 100, 200, -50, -1])
    def test_damaged_files_of_the_old_format(self, tmp_path, part):
        file = tmp_path / "old.pt"
        torch.save({"w": torch.ones(2, 3), "n": [1, 2]}, file, _use_new_zipfile_serialization=False)
        assert torch.equal(read_file(file)["w"], torch.ones(2, 3))
        content = bytearray(file.read_bytes())
        for byte in (0, 46, 82, 255):
            content[part] = byte
            file.write_bytes(content)
            try:
                read_file(file)
            except InputError as error:
                assert str(file) in str(error)  # noqa: PT017 - other bytes change values only

    def test_pickles_that_are_no_checkpoints(self, tmp_path):
        file = tmp_path / "a.pt"
        for content, reason in (
            (pickle.dumps(7), "Invalid magic number; corrupt file?"),
            (b"\x80\x02" + b"\x8b" + (10**9).to_bytes(4, "little"), ""),
            (b"\x80\x02.", ""),
        ):
            file.write_bytes(content)
            with pytest.raises(InputError, match=f"^{file} .*{reason}"):
                read_file(file)


def test_a_header_of_a_quadrillion_bytes(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes((10**15).to_bytes(8, "little") + b"{}" * 10)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"is truncated or damaged .*header too large"):
        read_file(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_configuration_of_many_bytes(model, monkeypatch):
    monkeypatch.setattr(sizes, "TEXT", 500)
    (model / "config.json").write_text(" " * 600)
    with pytest.raises(InputError) as error:
        load(model)
    assert str(error.value) == (
        f"cannot read {model}/config.json: it has 600 bytes, and at most 500 are read; restore it from a copy"
    )


def test_weights_that_are_a_half_of_those_of_the_configuration(model):
    save_file({"only": torch.zeros(3)}, model / "model.safetensors")
    (model / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"does not fit its network: missing "):
        load(model)
    assert [*load_file(model / "model.safetensors")] == ["only"]
