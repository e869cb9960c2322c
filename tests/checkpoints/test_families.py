"""Published checkpoints of the families other than DiT, through the same commands."""

import argparse

import pytest
import torch
from helpers import relative
from rich.console import Console

import ditlab
from ditlab import cli
from ditlab.backbones import create
from ditlab.checkpoints import convert
from ditlab.checkpoints.native import load_folder
from ditlab.checkpoints.published import from_official
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, VP, ScaledLinear
from ditlab.inference.pipeline import Pipeline
from ditlab.training.init_from import continued

SKIP = {"size": 8, "channels": 4, "classes": 3, "width": 32, "depth": 4, "heads": 2, "patch": 2}
EARLY_EXIT = (1.0, 1.0, 0.857, 0.857, 0.714, 0.714, 0.571, 0.571, 0.429, 0.429)  # the published schedule


@pytest.fixture
def checkpoint(golden, tmp_path):
    """A golden model as its own training script would have saved it, and the vectors."""

    def make(name):
        vectors = golden(name)
        state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
        other = {key: torch.zeros_like(value) for key, value in state.items()}
        file = tmp_path / f"{name}.pt"
        torch.save({"model": other, "ema": state, "opt": {}, "args": argparse.Namespace(image_size=128)}, file)
        return file, vectors, state

    return make


@pytest.mark.parametrize(
    ("name", "key"),
    [("udit_tiny", "latent.0.attn1.logit_scale"), ("uvit_conv", "pos_embed"), ("dic", "final_layer.out_proj.weight")],
)
def test_a_variant_that_is_not_known_is_rejected_in_a_line(checkpoint, tmp_path, name, key):
    _, _, state = checkpoint(name)
    torch.save({other: value for other, value in state.items() if other != key}, tmp_path / "variant.pt")
    with pytest.raises(InputError, match="no known checkpoint"):
        ditlab.load(tmp_path / "variant.pt")


@pytest.mark.parametrize(
    ("name", "settings", "family", "process"),
    [
        ("udit_tiny", {"size": (16, 16)}, "U-DiT", DDPM()),
        ("dic", {"size": (16, 16)}, "DiC", DDPM()),
        ("uvit_conv", {"heads": 4, "classes": 9}, "U-ViT", ScaledLinear(clock_start=1.0)),
        ("dydit", {"heads": 4}, "DyDiT", DDPM()),
        ("ase_exit", {"heads": 2, "exits": EARLY_EXIT}, "DiT", DDPM()),
    ],
)
def test_published_numbers_through_every_layout(checkpoint, tmp_path, name, settings, family, process):
    file, vectors, state = checkpoint(name)
    pipe = ditlab.load(file, **settings)
    assert pipe.net.config["name"] == family
    assert (pipe.objective.process, pipe.objective.target) == (process, "eps")
    assert "note" not in pipe.config
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    convert(pipe, tmp_path / "official", "official")
    convert(pipe, tmp_path / "own", "ditlab")
    assert all(torch.equal(value, state[key]) for key, value in torch.load(tmp_path / "official").items())
    for each in (pipe, ditlab.load(tmp_path / "official", **settings), ditlab.load(tmp_path / "own")):
        with torch.no_grad():
            assert relative(each.net(x, t, y), vectors["out"]) < 1e-5
    with pytest.raises(
        InputError, match=r"has no diffusers layout; convert to ditlab instead$|^diffusers' DiT has exits = False only"
    ):
        convert(pipe, tmp_path / "theirs", "diffusers")


def test_variants_of_dydit_that_are_not_known_are_one_line(checkpoint, tmp_path):
    _, _, state = checkpoint("dydit")
    parts = {
        "missing blocks.0.token_selection": {key: value for key, value in state.items() if "token_sel" not in key},
        "unused blocks.0.lora.0.weight": state | {"blocks.0.lora.0.weight": torch.zeros(2, 2)},
    }
    for words, tensors in parts.items():
        torch.save(tensors, tmp_path / "variant.pt")
        with pytest.raises(InputError, match=f"does not fit its network: {words}"):
            ditlab.load(tmp_path / "variant.pt", heads=4)
    torch.save(state, tmp_path / "dydit.pt")
    with pytest.raises(InputError, match="holds a DyDiT and not SiT; leave sit out"):
        ditlab.load(tmp_path / "dydit.pt", heads=4, sit=True)


def test_other_schedules_of_early_exit_have_no_official_layout(checkpoint, tmp_path):
    pipe = ditlab.load(checkpoint("ase_exit")[0], heads=2, exits=(1.0, 0.5))
    with pytest.raises(InputError, match=r"has exits = False only, and this model \[1.0, 0.5\]; convert to ditlab"):
        convert(pipe, tmp_path / "out", "official")


@pytest.mark.slow
def test_a_missing_size_is_reported(checkpoint, tmp_path, monkeypatch, capsys):
    file, _, _ = checkpoint("udit_tiny")
    pipe = ditlab.load(file)
    assert pipe.net.size == (32, 32)
    assert "using 32x32" in pipe.config["note"]
    arguments = ["ditlab", "convert", str(file), str(tmp_path / "own"), "--to", "ditlab", "--size", "16x24"]
    monkeypatch.setattr("sys.argv", arguments)
    cli.main()
    assert ditlab.load(tmp_path / "own").net.size == (16, 24)
    assert "is taken" not in capsys.readouterr().err


class TestLabelTables:
    """A row for each class, and in most files a last one for no condition."""

    @staticmethod
    def read(family, rows, **settings):
        options = {"size": 8, "channels": 4, "learn_variance": False, "width": 32, "depth": 3, "heads": 2, "patch": 2}
        state = create(family, classes=rows - 1, **options).state_dict()
        with torch.no_grad():
            (table,) = (value for key, value in state.items() if len(value) == rows)
            table.copy_(torch.randn(rows, 32))
        return from_official(dict(state), "here", heads=2, **settings), table

    @pytest.mark.parametrize("family", ["U-ViT", "DiT"])
    def test_of_imagenet_with_and_without_the_last_row(self, family):
        pipe, table = self.read(family, 1001)
        assert pipe.net.classes == 1000
        assert "note" not in pipe.config
        pipe, table = self.read(family, 1000)
        assert pipe.net.classes == 1000
        (found,) = (pipe.net.state_dict()[key] for key in pipe.net.label_tables)
        assert torch.equal(found[:1000], table)
        torch.testing.assert_close(found[1000], table.mean(0))
        assert "no null-class embedding" in pipe.config["note"]

    def test_of_other_sizes_are_rejected(self, checkpoint):
        file, vectors, state = checkpoint("uvit_conv")
        pipe = ditlab.load(file, heads=4)
        assert pipe.net.classes == 9
        assert "of 10 rows is read as 9 classes" in pipe.config["note"]
        assert "give classes=10 if it has no null class" in pipe.config["note"]
        pipe = ditlab.load(file, heads=4, classes=10)
        assert pipe.net.classes == 10
        with torch.no_grad():  # all ten rows are classes, and mean what they meant
            assert relative(pipe.net(vectors["x"], vectors["t"], vectors["y"]), vectors["out"]) < 1e-5
        assert torch.equal(pipe.net.label_emb.weight[:10], state["label_emb.weight"])
        with pytest.raises(InputError, match=r"has a class-embedding table of 10 rows; give classes=9 or classes=10"):
            ditlab.load(file, heads=4, classes=3)

    def test_through_the_command_line(self, checkpoint, tmp_path, monkeypatch, capsys):
        arguments = ["--to", "ditlab", "--heads", "4", "--classes", "10"]
        monkeypatch.setattr(
            "sys.argv", ["ditlab", "convert", str(checkpoint("uvit_conv")[0]), str(tmp_path / "own"), *arguments]
        )
        cli.main()
        assert ditlab.load(tmp_path / "own").net.classes == 10
        assert "no null-class embedding" in capsys.readouterr().err

    def test_of_a_dit_without_the_last_row(self):
        pipe, table = self.read("DiT", 6, classes=6)
        assert torch.equal(pipe.net.y_embedder.embedding_table.weight[:6], table)
        assert self.read("DiT", 6)[0].net.classes == 5


def test_skip_dit_is_distinguished_from_dit():
    net = create("Skip-DiT", **SKIP)
    pipe = from_official(dict(net.state_dict()), "here", heads=2)
    assert pipe.net.config["name"] == "Skip-DiT"
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # shared with the pipeline's network
        label = torch.tensor([1])
        assert torch.equal(pipe.net(x, label * 7.0, label), net(x, label * 7.0, label))


@pytest.mark.slow
def test_pixels_of_u_vit_are_on_the_continuous_process():
    net = create("U-ViT-M/4", size=8, channels=3, learn_variance=False, depth=3, width=768)
    pipe = from_official(dict(net.state_dict()), "here", heads=12)
    assert pipe.objective.process == VP()


def test_sit_is_a_dit(checkpoint):
    with pytest.raises(InputError, match="holds a U-DiT and not SiT"):
        ditlab.load(checkpoint("udit_tiny")[0], sit=True)


def test_other_training_has_no_official_layout(tmp_path):
    net = create("U-ViT", size=8, channels=4, learn_variance=False, depth=3, width=32, heads=2, patch=2)
    with pytest.raises(InputError, match=r"for eps on scaled-linear.*another objective"):
        convert(Pipeline(net, Objective()), tmp_path / "a.pt", "official")


class TestFineTuning:
    """The architecture is the source's, but for families that extend it."""

    @staticmethod
    def source(**options):
        return Pipeline(create("DiT", **SKIP | {"learn_variance": False} | options), Objective())

    def test_skip_dit_continues_a_dit(self):
        recipe = parse_recipe({"model": {"name": "Skip-DiT-XL/2"}})
        model = continued(recipe.model, self.source(qk_norm=True))
        assert (model.name, model.depth, model.width, model.heads, model.qk_norm) == ("Skip-DiT", 4, 32, 2, True)

    @pytest.mark.parametrize("name", ["DiT-B/4", "U-DiT-S", "U-ViT-S/2"])
    def test_other_families_are_replaced(self, name):
        model = continued(parse_recipe({"model": {"name": name}}).model, self.source())
        assert (model.name, model.depth, model.width) == ("DiT", 4, 32)

    @pytest.mark.slow
    def test_through_the_trainer(self, tmp_path):
        source = Pipeline(
            create("DiT", size=8, channels=1, classes=10, learn_variance=False, width=32, depth=2, heads=2, patch=2),
            Objective(),
        )
        source.save(tmp_path / "dit")
        recipe = parse_recipe(
            {
                "model": {"name": "Skip-DiT-S/2"},
                "data": {"source": "digits"},
                "train": {"images": 16, "batch": 8, "init_from": str(tmp_path / "dit"), "preview_every": 1000},
            }
        )
        console = Console(record=True, width=120)
        pipe = ditlab.train(recipe, tmp_path / "run", console=console)
        assert pipe.net.config["name"] == "Skip-DiT"
        assert "skip_linears.0.linear.weight" in console.export_text()
        assert load_folder(tmp_path / "run").net.config["name"] == "Skip-DiT"
