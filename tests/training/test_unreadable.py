"""Images that cannot be read: a check before training, and the state of the work is saved before it stops."""

import csv
import os
import re
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.autoencoders import create_autoencoder
from ditlab.config.autoencoder import AutoencoderTraining
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import check, open_dataset, training_order
from ditlab.data.images import Images
from ditlab.data.latents.encode import encode
from ditlab.data.preprocess import Preprocess
from ditlab.data.sources import open_source
from ditlab.training import train
from ditlab.training.autoencoder import train_autoencoder

COUNT, QUIET = 32, Console(quiet=True)
SIXTEEN = Preprocess((16, 16))


def make(folder, count=COUNT):
    """Images in a flat folder: 00.png, 01.png, ..."""
    folder.mkdir()
    torch.manual_seed(0)
    for i in range(count):
        pixels = torch.randint(0, 256, (16, 16), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def truncate(folder, i):
    """A good header, and half of the pixels."""
    file = folder / f"{i:02d}.png"
    file.write_bytes(file.read_bytes()[:200])


@pytest.fixture
def whole(tmp_path):
    return make(tmp_path / "whole")


@pytest.fixture
def broken(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "broken")


@pytest.fixture
def headers_only(monkeypatch):
    monkeypatch.setattr(check, "DECODED", 0)


def repair(whole, broken):
    shutil.copytree(whole, broken, dirs_exist_ok=True)


def recipe(source, max_skipped, images=64):
    model = {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}
    settings = {"images": images, "batch": 8, "precision": "float32", "compile": "never"}
    data = {"source": str(source), "max_skipped": max_skipped, "size": "16"}  # with a size, only headers are read first
    sampling = {"sampler": "euler", "steps": 1}
    return parse_recipe({"model": model, "data": data, "train": settings, "sample": sampling})


def listed(file):
    return sorted(row["name"] for row in csv.DictReader(file.open()))


def checkpoint_names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(value, second[key]) for key, value in first.items())


class TestBeforeTraining:
    @pytest.mark.slow
    def test_all_broken_files_are_listed_before_the_first_step(self, whole, broken, tmp_path):
        for i in (3, 11, 30):
            truncate(broken, i)
        (broken / "20.png").write_bytes(b"")
        run = tmp_path / "run"
        for _ in range(2):  # a second call finds the same, and takes the folder for its run
            with pytest.raises(InputError) as caught:
                train(recipe(broken, 0.1), run, console=QUIET)
            assert re.fullmatch(
                r"4 of 32 images cannot be read, the last one is \d\d\.png \(.*\); all are listed in "
                rf"{run / 'skipped.csv'}; repair them, or allow a greater share than 0\.1 \(max_skipped\); "
                r"it is 0\.125 so far",
                str(caught.value),
            )
            assert listed(run / "skipped.csv") == ["03.png", "11.png", "20.png", "30.png"]
            assert checkpoint_names(run) == []
        repair(whole, broken)
        pipe = train(recipe(broken, 0.1), run, console=QUIET)
        assert not (run / "skipped.csv").exists()
        assert same(pipe.net, train(recipe(whole, 0.1), tmp_path / "other", console=QUIET).net)

    def test_a_share_that_is_allowed_trains(self, broken, tmp_path):
        truncate(broken, 3)
        train(recipe(broken, 0.1), tmp_path / "run", console=QUIET)
        assert listed(tmp_path / "run" / "skipped.csv") == ["03.png"]

    def test_headers_of_all_files_are_read_beyond_the_sample(self, broken, headers_only):
        for i in range(4):
            (broken / f"{28 + i}.png").write_text("<html>not found</html>")
        truncate(broken, 0)  # has a good header
        data = Images(open_source(str(broken)), SIXTEEN, max_skipped=0.1)
        with pytest.raises(
            InputError, match=r"4 of 32 images cannot be read, the last one is \d+.png \(cannot identify"
        ):
            data.check(QUIET, resumed=False)
        assert sorted(data.skipped) == ["28.png", "29.png", "30.png", "31.png"]

    def test_the_share_in_the_sample_counts(self, tmp_path, monkeypatch):
        """200 of 300 files are truncated; a sample of 40 files has fewer than the 90 that are allowed."""
        monkeypatch.setattr(check, "DECODED", 40)
        folder = make(tmp_path / "many", 300)
        for i in range(200):
            truncate(folder, i)
        data = Images(open_source(str(folder)), SIXTEEN, max_skipped=0.3)
        words = r"2\d of 40 images that were decoded as a check cannot be read.*\(max_skipped\); it is 0\.\d+ so far"
        with pytest.raises(InputError, match=words):
            data.check(QUIET, resumed=False)
        assert 20 < len(data.skipped) <= 40
        Images(open_source(str(folder)), SIXTEEN, max_skipped=0.7).check(QUIET, resumed=False)

    def test_a_check_ends_in_time(self, broken, monkeypatch):
        monkeypatch.setattr(check, "DECODED", 8)
        monkeypatch.setattr(check, "SECONDS", -1.0)
        console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
        Images(open_source(str(broken)), SIXTEEN).check(console, resumed=False)
        assert "decoded 1 of 8 random images in -1 s to check them" in console.export_text()

    def test_a_resumed_run_reads_only_what_is_listed(self, whole, broken, tmp_path):
        truncate(broken, 3)
        train(recipe(broken, 0.1, images=16), tmp_path / "run", console=QUIET)
        reads = []

        class Counted(Images):
            def readable(self, index):
                reads.append(index)
                return super().readable(index)

        repair(whole, broken)
        truncate(broken, 5)
        report = tmp_path / "run" / "skipped.csv"
        data = Counted(open_source(str(broken)), SIXTEEN, report=report)
        data.check(QUIET, resumed=True)
        assert reads == [3]
        assert not report.exists()  # the only entry was repaired
        truncate(broken, 3)
        again = Counted(open_source(str(broken)), SIXTEEN, report=report, max_skipped=0.1)
        again.check(QUIET, resumed=False)
        assert listed(report) == ["03.png", "05.png"]
        last = Counted(open_source(str(broken)), SIXTEEN, report=report, max_skipped=0.05)
        with pytest.raises(InputError, match="2 of 32 images cannot be read"):
            last.check(QUIET, resumed=True)


class TestDuringTheWork:
    """With `max_skipped=0` the work resumes, after a repair, as if no file had ever been broken."""

    @pytest.mark.slow
    def test_a_run_is_saved_before_it_stops(self, whole, broken, headers_only, tmp_path):
        third = next(training_order(COUNT, 8, 0, 16))
        truncate(broken, int(third[-1]))
        run = tmp_path / "run"
        for _ in range(2):
            with pytest.raises(InputError) as caught:
                train(recipe(broken, 0.0), run, console=QUIET)
            assert f"1 of 32 images cannot be read, the last one is {int(third[-1]):02d}.png" in str(caught.value)
            assert f"; all are listed in {run / 'skipped.csv'}; " in str(caught.value)
        repair(whole, broken)
        assert checkpoint_names(run) == ["000000000016"]
        assert ditlab.load(run).config["images_seen"] == 16
        pipe = train(recipe(broken, 0.0), run, console=QUIET)
        undisturbed = train(recipe(whole, 0.0), tmp_path / "undisturbed", console=QUIET)
        assert same(pipe.net, undisturbed.net)
        raw = [ditlab.load(folder, weights="model").net for folder in (run, tmp_path / "undisturbed")]
        assert same(*raw)

    def test_the_message_names_what_is_saved(self, broken, headers_only, tmp_path):
        truncate(broken, int(next(training_order(COUNT, 8, 0, 16))[0]))
        with pytest.raises(InputError, match=r"run is saved at 16 images, and the same command resumes$"):
            train(recipe(broken, 0.0), tmp_path / "run", console=QUIET)

    def test_finished_shards_of_a_cache_stay(self, whole, broken, headers_only, tmp_path):
        autoencoder = create_autoencoder(
            kind="patch", picture_channels=1, latent_channels=2, stride=2, width=8, depth=1
        )

        def run(source, out):
            report = tmp_path / f"{out}.csv"
            data = open_dataset(str(source), Preparation(size="16", max_skipped=0.0), report)
            return encode(data, "images", autoencoder, tmp_path / out, QUIET, shard=8, batch_size=4)

        truncate(broken, 25)
        with pytest.raises(InputError, match=r"the last one is 25.png .* listed in .*cache.csv"):
            run(broken, "cache")
        shards = tmp_path / "cache" / "shards"
        assert sorted(path.name for path in shards.iterdir()) == [f"{i:06d}.safetensors" for i in range(3)]
        repair(whole, broken)
        assert run(broken, "cache").images == 8
        run(whole, "undisturbed")
        for file in shards.iterdir():
            assert file.read_bytes() == (tmp_path / "undisturbed" / "shards" / file.name).read_bytes()

    def test_an_autoencoder_is_saved_before_it_stops(self, whole, broken, monkeypatch, tmp_path):
        def run(source, out):
            data = open_dataset(str(source), Preparation(size="16", max_skipped=0.0), tmp_path / out / "skipped.csv")
            settings = AutoencoderTraining(
                images=64,
                batch=8,
                stride=2,
                latent_channels=2,
                width=8,
                depth=1,
                precision="float32",
                device="cpu",
                log_every=64,
            )
            train_autoencoder(data, settings, tmp_path / out, QUIET)
            return ditlab.checkpoints.load_autoencoder(tmp_path / out)

        monkeypatch.setattr(check, "DECODED", 0)
        monkeypatch.setattr("ditlab.training.autoencoder.START", 1)
        truncate(broken, 17)
        with pytest.raises(InputError, match=r"run is saved at \d+ images, and the same command resumes$"):
            run(broken, "run")
        with pytest.raises(InputError, match=r"1 of 32 images cannot be read, the last one is 17.png"):
            run(broken, "run")
        repair(whole, broken)
        assert same(run(broken, "run"), run(whole, "undisturbed"))
