"""Every error ends in one line; files are written completely or not at all."""

import json
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image

from ditlab.checkpoints import convert, load
from ditlab.core.errors import InputError
from ditlab.core.io import replace_text, replacing
from ditlab.core.weights import write_pickle, write_tensors
from ditlab.inference.output import save_item

SMALL = 4096  # bytes


@contextmanager
def full_disk():
    """No file may be longer than `SMALL`, as if the disk were full."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_pipeline(classes=3).save(folder)
    return folder


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(ditlab, monkeypatch, model):
    def broken(*_, **__):
        raise ZeroDivisionError("here")

    monkeypatch.setattr("ditlab.checkpoints.load", broken)
    printed = ditlab("sample", model, code=1).err
    assert printed.startswith("ditlab: internal error: ZeroDivisionError: here (test_one_line.py, line ")
    assert printed.endswith("); please open an issue with the command and with what it prints with --debug\n")
    assert printed.count("\n") == 1
    printed = ditlab("sample", model, "--debug", code=1).err
    assert printed.startswith("Traceback (most recent call last)")
    assert "ditlab: internal error" in printed


def test_too_little_memory_is_one_line(ditlab, monkeypatch, model):
    def broken(*_, **__):
        raise MemoryError("2 TiB")

    monkeypatch.setattr("ditlab.checkpoints.load", broken)
    line = "ditlab: not enough memory (2 TiB); give a smaller batch or smaller images\n"
    assert ditlab("sample", model, code=1).err == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--max-requests", 0), "--max-requests is 0; give 1 or more"),
        (("--max-images", -1), "--max-images is -1; give 1 or more"),
        (("--max-steps", 0), "--max-steps is 0; give 1 or more"),
        (("--max-rows", 0), "--max-rows is 0; give 1 or more"),
        (("--max-pixels", 0), "--max-pixels is 0; give 1 or more"),
        (("--max-connections", 0), "--max-connections is 0; give 1 or more"),
        (("--max-seconds", "nan"), "--max-seconds is nan; give a number from 0.01 to 1e+06"),
        (("--client-seconds", -3), "--client-seconds is -3.0; give a number from 0.01 to 1e+06"),
        (("--port", 65_536), "--port is 65536; give 0 to 65535"),
    ],
)
def test_numbers_of_the_service(ditlab, model, options, line):
    assert ditlab("serve", model, *options, code=2).err == f"ditlab: {line}\n"


def test_too_many_seeds(ditlab, model):
    line = "100,000,000,000 seeds; give at most 100,000 at a time, or use --npz --count"
    assert ditlab("sample", model, "--seeds", "0-99999999999", code=2).err == f"ditlab: {line}\n"
    line = f'seeds "{"9" * 40}"; give numbers or rising ranges such as 0-15'
    assert ditlab("sample", model, "--seeds", "9" * 5000, code=2).err == f"ditlab: {line}\n"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"grids":' * 100_000, "[]", "null", '{"process": 1}', b"\xff", ""])
def test_damaged_schedules(ditlab, model, tmp_path, text):
    file = tmp_path / "schedules.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    printed = ditlab("sample", model, "--schedule", file, "--steps", 2, code=2).err
    assert printed.startswith(f"ditlab: {file} is not a file of timestep schedules (")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "a = " + "[" * 100_000, "a = 1\na = 2"])
def test_damaged_recipes(ditlab, tmp_path, text):
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    printed = ditlab("plan", file, code=2).err
    assert printed.startswith(f"ditlab: recipe {file} is not valid TOML: ")
    assert printed.count("\n") == 1


def test_a_csv_field_that_is_too_long(ditlab, tmp_path):
    for i in range(2):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n0.png,a\n1.png,{'b' * 200_000}\n")
    line = f"labels {tmp_path / 'metadata.csv'} are not CSV (field larger than field limit (131072)); correct the table"
    assert ditlab("data", tmp_path, code=2).err == f"ditlab: {line}\n"


@pytest.mark.parametrize("note", ["null", "[]", "[" * 100_000, '{"features"'])
def test_a_reference_with_a_wrong_description(note, tmp_path):
    from ditlab.data.npz import read_about

    file = tmp_path / "reference.npz"
    np.savez(file, ditlab=np.array(note), mu=np.zeros(2), sigma=np.eye(2))
    with pytest.raises(InputError, match=r"reference.npz has a damaged description \(.*\); make it again$"):
        read_about(file)


def test_a_negative_shape(tmp_path):
    from ditlab.data.npz import map_array

    file = tmp_path / "samples.npz"
    np.savez(file, arr_0=np.zeros((4, 8, 8, 1), np.uint8))
    file.write_bytes(file.read_bytes().replace(b"(4, 8, 8, 1)", b"(-4,8, 8, 1)"))
    with pytest.raises(InputError, match=r"samples.npz cannot be read \(.*\); write it again"):
        map_array(file, "arr_0")


def test_a_legacy_checkpoint_that_is_damaged(tmp_path):
    from ditlab.core.weights import read_file

    file = tmp_path / "legacy.pt"
    torch.save({"a": torch.zeros(3)}, file, _use_new_zipfile_serialization=False)
    content, messages = file.read_bytes(), []
    for start in range(0, len(content), 7):
        file.write_bytes(content[:start] + b"7" + content[start + 1 :])
        try:
            read_file(file)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(f"{file} ") for message in messages)


@pytest.mark.parametrize("key", ["sample_size", "num_attention_heads"])
def test_a_diffusers_config_without_a_key(tmp_path, key):
    from ditlab.diffusion.objective import Objective
    from ditlab.diffusion.process import DDPM

    chain = Objective(DDPM(), "eps", learn_variance=True)
    pipe = tiny_pipeline(channels=4, learn_variance=True, objective=chain)
    convert(pipe, tmp_path / "model", "diffusers")
    file = tmp_path / "model/transformer/config.json"
    config = json.loads(file.read_text())
    del config[key]
    file.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "model")
    assert str(caught.value) == f"{file} is damaged (it lacks '{key}'); download the whole folder again"


@pytest.mark.parametrize("settings", ["[]", "{", "[" * 100_000])
def test_damaged_settings_of_an_autoencoder(tmp_path, settings):
    from ditlab.config.autoencoder import AutoencoderTraining
    from ditlab.data import InMemory
    from ditlab.training.autoencoder import claim

    file = tmp_path / "settings.json"
    file.write_text(settings)
    images = InMemory(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), [])
    with pytest.raises(InputError) as caught:
        claim(tmp_path, AutoencoderTraining(), images)
    assert str(caught.value).startswith(f"{file} is damaged (")
    assert str(caught.value).endswith("); remove the folder to train from the start")


def test_a_bad_byte_in_the_metrics_does_not_stop_a_run_from_resuming(tmp_path):
    from ditlab.report.run import read_metrics
    from ditlab.training.log import forget_after

    file = tmp_path / "metrics.jsonl"
    lines = [
        b'{"images": 16, "loss": 1.0}',
        b'{"images": 32, "l\xffss": 1.0}',
        b"[]",
        b'{"images": 48}',
        b'{"images": 64}',
    ]
    file.write_bytes(b"\n".join(lines))
    assert [line["images"] for line in read_metrics(tmp_path)] == [16, 48, 64]
    forget_after(file, 48)
    assert file.read_bytes() == lines[0] + b"\n" + lines[3] + b"\n"


@pytest.mark.parametrize("name", ["description.json", "index.json"])
@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', "[" * 100_000])
def test_a_damaged_description_of_a_cache(tmp_path, name, content):
    from ditlab.data.latents.cache import Latents
    from ditlab.data.latents.description import read_description

    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_description(tmp_path) if name == "description.json" else Latents(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_of_a_shard(tmp_path):
    from ditlab.data.latents.cache import read_header

    file = tmp_path / "000000.safetensors"
    tensors = {"moments": torch.zeros(2, 4, 1, 1), "labels": torch.zeros(2).long(), "checksums": torch.zeros(2).long()}
    write_tensors(tensors, file)
    content = file.read_bytes()
    assert read_header(file)["moments"]["shape"] == [2, 4, 1, 1]
    for wrong in (b"[2,4,1,9]", b"[2,-4,1]", b'"2,4,1,1"', b"[2,4,1,{]"):
        file.write_bytes(content.replace(b"[2,4,1,1]", wrong.ljust(9)))
        with pytest.raises(InputError, match=r"is missing or damaged \(.*\); remove it and encode again$"):
            read_header(file)


@pytest.mark.parametrize(
    ("write", "size"),
    [
        (lambda file: replace_text(file, "x" * 9000), 9000),
        (lambda file: write_tensors({"a": torch.zeros(9000)}, file), 36_000),
        (lambda file: save_item(Image.effect_noise((128, 128), 90), file, None), 16_384),
        (lambda file: save_item(np.zeros((100, 100, 1), np.float32), file, None), 40_000),
        (lambda file: save_item(np.random.default_rng(0).integers(0, 255, (4, 99, 99, 3), np.uint8), file, None), 9999),
    ],
    ids=["text", "tensors", "png", "npy", "gif"],
)
def test_a_full_disk_leaves_no_file(tmp_path, write, size, request):
    name = request.node.callspec.id
    file = tmp_path / f"new.{name}"
    with full_disk(), pytest.raises(OSError, match=r"File too large|requested and"):
        write(file)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_while_a_pickle_is_written(tmp_path):
    with full_disk(), pytest.raises(OSError, match="File too large"), replacing(tmp_path / "a.pt") as draft:
        write_pickle({"a": torch.zeros(9000)}, draft)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("layout", ["ditlab", "official", "diffusers"])
def test_a_full_disk_while_a_model_is_converted(tmp_path, layout):
    from ditlab.diffusion.objective import Objective
    from ditlab.diffusion.process import DDPM

    chain = Objective(DDPM(), "eps", learn_variance=True)
    pipe, target = tiny_pipeline(channels=4, learn_variance=True, objective=chain), tmp_path / "target"
    with full_disk(), pytest.raises(InputError) as caught:
        convert(pipe, target, layout)
    assert str(caught.value) == f"cannot write {target}: File too large; free some space or give another path"
    assert os.listdir(tmp_path) == []


def test_a_path_that_is_not_utf_8(ditlab, model, tmp_path):
    out = tmp_path / os.fsdecode(b"t\xff")
    options = ("--labels", 0, "--seeds", 0, "--steps", 1, "--sampler", "euler", "--guidance", 1)
    ditlab("convert", model, out, "--to", "ditlab")
    ditlab("sample", out, *options, "--compile", "never", "--out", out.with_name(out.name + "s"))
    record = json.loads((out.with_name(out.name + "s") / "samples.json").read_bytes())
    assert os.fsencode(record["source"]) == os.fsencode(out)


def test_a_recipe_cannot_hold_a_path_that_is_not_utf_8():
    from ditlab.config.reader import to_toml

    with pytest.raises(InputError) as caught:
        to_toml({"data": {"source": os.fsdecode(b"a\xff")}})
    assert str(caught.value) == "a\\xff is not UTF-8, so a recipe cannot hold it; rename the file or folder"


def test_an_index_with_a_damaged_key(tmp_path):
    from ditlab.data.latents.cache import indexed_entries
    from ditlab.data.latents.description import Description

    description = Description("", 4, 1, (8, 8), {}, "a", (2, 4, 4), "fp32", [], 8)
    content = {"format": "ditlab latents", "entries": 4, "shards": [], **description.content()}
    (tmp_path / "index.json").write_text(json.dumps(content))
    assert indexed_entries(tmp_path, description) == 4
    (tmp_path / "index.json").write_text(json.dumps(content).replace('"dtype"', '"dttype"'))
    with pytest.raises(InputError, match=r"index\.json is damaged \(.*dttype.*\); remove it and encode again$"):
        indexed_entries(tmp_path, description)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"size": [8]}, "latents of shape [2, 4, 4] of images of size [8]"),
        ({"shape": [2, 4]}, "latents of shape [2, 4] of images of size [8, 8]"),
        ({"size": [8, 0]}, "latents of shape [2, 4, 4] of images of size [8, 0]"),
        ({"shape": [2, 4, 4, 4]}, "latents of shape [2, 4, 4, 4] of images of size [8, 8]"),
        ({"shape": [], "size": []}, "latents of shape [] of images of size []"),
    ],
)
def test_an_index_with_other_sides(tmp_path, change, what):
    from ditlab.data.latents.cache import indexed_entries
    from ditlab.data.latents.description import Description

    description = Description("", 4, 1, (8, 8), {}, "a", (2, 4, 4), "fp32", [], 8)
    content = {"format": "ditlab latents", "entries": 4, "shards": [], **description.content(), **change}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        indexed_entries(tmp_path, description)
    assert str(caught.value) == f"{tmp_path}/index.json is damaged ({what}); remove it and encode again"


def test_keys_of_a_published_checkpoint_that_are_damaged(model):
    from ditlab.checkpoints.published import from_official

    tensors = load(model).net.state_dict()
    damaged = {key.replace("blocks.1.", "blocks.-."): value for key, value in tensors.items()}
    with pytest.raises(InputError, match=r"^x\.pt does not have the tensors of a DiT \(.*\); download it again$"):
        from_official(damaged, "x.pt", heads=2)


def test_numbers_in_names_of_any_length():
    from ditlab.data.sources.base import natural

    names = ["a" + "9" * 5000, "a10", "a2", "b"]
    assert sorted(names, key=natural) == [names[0], "a2", "a10", "b"]


def test_damaged_averages(ditlab, tmp_path):
    run = tmp_path / "run"
    pipe = tiny_pipeline(classes=3)
    pipe.save(run)
    (run / "averages").mkdir()
    for steps, changes in ((8, {}), (16, {"blocks.0.attn.proj.bias": "bl-cks.0.attn.proj.bias"})):
        tensors = {f"0.1/{changes.get(name, name)}": value.detach() for name, value in pipe.net.named_parameters()}
        write_tensors(tensors, run / "averages" / f"{steps:012d}.safetensors", {"steps": str(steps)})
    err = ditlab("average", run, tmp_path / "out", "--width", 0.1, code=2).err
    assert err.startswith(f"ditlab: {run / 'averages'} does not fit its network: ")
    assert not (tmp_path / "out").exists()
