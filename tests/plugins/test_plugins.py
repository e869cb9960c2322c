"""Parts from a folder outside the package, without a change in it: each kind is one file and one call."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import relative, tiny_pipeline

import ditlab
from ditlab import cli
from ditlab.core import registry
from ditlab.core.errors import InputError
from ditlab.core.plugins import import_plugin

HERE = Path(__file__).parent
RING = """
[model]
name = "Ring-S"
kernel = 5
padding = "zeros"
[data]
source = "digits"
[train]
images = 128
batch = 32
precision = "float32"
compile = "never"
[sample]
steps = 3
"""
TRAIN = {"images": 64, "batch": 32, "precision": "float32", "compile": "never", "log_every": 32}


@pytest.fixture
def plugin():
    """Imports a plug-in of this folder, and takes its parts out of the registries afterwards."""
    before = {kind: dict(registry.registry(kind)) for kind in registry.REGISTRIES}
    imported = []

    def load(name):
        import_plugin(str(HERE / f"{name}.py"))
        imported.append(name)
        return sys.modules[name]

    yield load
    for kind, entries in before.items():
        known = registry.registry(kind)
        for name in [name for name in known if name not in entries]:
            del known[name]
    for name in imported:
        del sys.modules[name]


@pytest.fixture
def ditlab_command(capsys, monkeypatch):
    """Runs a command in this process and returns its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ditlab", *map(str, arguments)])
        cli.main()
        return capsys.readouterr()

    return run


def elsewhere(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE)


class TestBackbone:
    """`dim` and `layers` instead of width and depth, and options that no family of the package has."""

    @pytest.fixture
    def run(self, plugin, ditlab_command, tmp_path):
        (tmp_path / "ring.toml").write_text(RING)
        ditlab_command("train", tmp_path / "ring.toml", "--import", HERE / "ring.py", "--out", tmp_path / "run",
                       "--model.layers", "3")  # fmt: skip
        plugin("ring")
        return tmp_path / "run"

    @pytest.mark.slow
    def test_it_trains_with_its_own_options(self, run):
        net = ditlab.load(run).net
        assert (net.config["dim"], net.config["layers"], net.config["kernel"]) == (16, 3, 5)
        assert net.config["padding"] == net.first.padding_mode == "zeros"
        assert "layers = 3" in (run / "recipe.toml").read_text()
        assert net.last.weight.abs().max() > 0  # it was zero before training

    @pytest.mark.slow
    def test_it_samples_plans_and_exports(self, run, ditlab_command, tmp_path):
        ditlab_command("sample", run, "--labels", "3", "--seeds", "0-1", "--out", tmp_path / "out")
        assert len(list((tmp_path / "out").glob("3-seed*.png"))) == 2
        planned = json.loads(ditlab_command("plan", tmp_path / "ring.toml", "--json").out)
        assert planned["parameters"] == sum(p.numel() for p in ditlab.create("Ring-S", size=8, channels=1, classes=10,
                                            learn_variance=False, kernel=5).parameters())  # fmt: skip
        graph = tmp_path / "ring"
        ditlab_command("export", run, graph, "--to", "torch")
        assert graph.stat().st_size > 10_000 or list(graph.glob("*"))

    @pytest.mark.slow
    def test_another_process_loads_the_same_model(self, run, tmp_path):
        pipe = ditlab.load(run)
        expected = pipe([3], seeds=[0], output_type="latent").images
        pipe.save(tmp_path / "saved")
        for folder in (run, tmp_path / "saved"):
            without = elsewhere(f"import ditlab; ditlab.load({str(folder)!r})")
            assert without.returncode == 1
            last = without.stderr.strip().splitlines()[-1]
            assert 'the network "Ring-S" is ring:Ring, which is not part of ditlab; import ring first' in last
            code = f"""
import ring, ditlab, torch
torch.set_num_threads(1)
print(ditlab.load({str(folder)!r})([3], seeds=[0], output_type="latent").images.flatten().tolist())
"""
            found = torch.tensor(json.loads(elsewhere(code).stdout)).reshape(expected.shape)
            assert relative(found, expected) < 1e-5

    @pytest.mark.slow
    def test_a_class_is_named_in_a_recipe(self, plugin, monkeypatch, tmp_path):
        monkeypatch.syspath_prepend(str(HERE))
        plugin("ring")
        recipe = {"model": {"name": "ring:Ring", "dim": 8, "layers": 1}, "data": {"source": "digits"}, "train": TRAIN}
        pipe = ditlab.train(recipe, tmp_path / "run")
        assert pipe.net.config["name"] == "ring:Ring"
        assert ditlab.load(tmp_path / "run").net.config["dim"] == 8
        with pytest.raises(InputError, match=r"model.dimm from .*did you mean|dimm"):
            ditlab.train({"model": {"name": "ring:Ring", "dimm": 8}}, tmp_path / "other")

    @pytest.mark.slow
    def test_loading_a_folder_imports_nothing_by_itself(self, plugin, tmp_path):
        plugin("ring")
        net = ditlab.create("ring:Ring", size=8, channels=1, classes=2, learn_variance=False, dim=8, layers=1)
        ditlab.Pipeline(net, ditlab.diffusion.objective.Objective()).save(tmp_path / "saved")
        without = elsewhere(f"import ditlab; ditlab.load({str(tmp_path / 'saved')!r})")
        assert "import ring first" in without.stderr

    @pytest.mark.parametrize(
        "change",
        [
            lambda config: config["objective"].update(target="outside:part"),
            lambda config: config["objective"]["process"].update(name="outside:part"),
            lambda config: config.update(conditioner={"kind": "outside:part"}),
            lambda config: config["autoencoder"].update(kind="outside:part"),
            lambda config: config["backbone"].update(name="outside:part"),
        ],
        ids=["target", "process", "conditioner", "autoencoder", "backbone"],
    )
    def test_no_part_of_a_folder_is_imported(self, monkeypatch, tmp_path, change):
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "outside.py").write_text("raise SystemExit('this code must not run')\n")
        tiny_pipeline().save(tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        change(config)
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"outside:part.* not part of ditlab; import outside first"):
            ditlab.load(tmp_path / "model")

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("class Bare(Backbone):\n    pass\n", 'the model "Bare" has no forward, tokens, variants'),
            ("class Bare:\n    pass\n", 'the model "Bare" is no subclass of ditlab.backbones.Backbone'),
        ],
    )
    def test_what_is_no_network_is_rejected(self, plugin, tmp_path, text, line):
        file = tmp_path / "bare.py"
        file.write_text(
            f"import ditlab\nfrom ditlab.backbones import Backbone\n{text}ditlab.register_backbone('Bare', Bare)\n"
        )
        with pytest.raises(InputError, match=line):
            import_plugin(str(file))

    def test_a_shape_that_it_cannot_take_is_rejected(self, plugin):
        plugin("ring")
        with pytest.raises(InputError, match="Ring"):
            ditlab.create("Ring-S", size=(4, 8, 8), channels=1, classes=2)


class TestParts:
    """Every other kind of part, in one run."""

    def test_all_of_them_train_together(self, plugin, tmp_path):
        parts = plugin("parts")
        recipe = {
            "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
            "diffusion": {"target": "noisier", "time": "early", "weight": "squared"},
            "data": {"source": "stripes", "conditioner": "signs"},
            "train": TRAIN | {"aids": ["smooth"], "report": ["listener"]},
            "sample": {"sampler": "half", "steps": 4},
        }
        pipe = ditlab.train(recipe, tmp_path / "run")
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["loss_smooth"] > 0
        assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss_smooth"] + lines[-1]["loss_regression"], rel=1e-5)
        assert parts.LINES[-1] == "closed"
        assert [line[0] for line in parts.LINES[:-1]] == [32, 64, 64]  # two lines of numbers, and a preview
        assert pipe.conditioner.encode([-1, 1, None]).label.tolist() == [0, 1, 2]
        loaded = ditlab.load(tmp_path / "run")
        assert loaded.conditioner.config == {"kind": "signs"}
        assert loaded.objective.target == "noisier"
        images = loaded([-1, 1], seeds=[0, 1], output_type="latent").images
        assert images.isfinite().all()
        with pytest.raises(InputError, match="cat is no sign; give -1 or 1"):
            loaded(["cat"])

    def test_a_text_encoder_reads_captions(self, plugin, tmp_path):
        plugin("parts")
        recipe = {
            "model": {"name": "text_net:TextNet"},
            "data": {
                "source": "stripes", "conditioner": "text", "encoder": "vowels", "caption_template": "lines {class}",
            },
            "train": TRAIN | {"images": 32},
            "sample": {"steps": 1, "sampler": "euler"},
        }  # fmt: skip
        assert ditlab.train(recipe, tmp_path / "run").examples == ["lines across", "lines along"]
        tokens = ditlab.load(tmp_path / "run").conditioner.encode(["lines across", None]).tokens
        assert tokens.tolist() == [[6, 3, 2, 1, 4, 0, 0, 0, 0], [6, *8 * [0]]]

    @pytest.mark.slow
    def test_an_objective_of_its_own_is_trained_and_logged(self, plugin, tmp_path):
        plugin("parts")
        recipe = {
            "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
            "data": {"source": "stripes"},
            "train": TRAIN | {"images": 1280, "objective": "absolute"},
            "optim": {"lr": 3e-3},
        }
        ditlab.train(recipe, tmp_path / "run")
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert np.mean([line["loss"] for line in lines[-4:]]) < 0.9 * lines[0]["loss"]
        loaded = ditlab.load(tmp_path / "run")
        assert type(loaded.objective).__name__ == "Timid"
        usual = ditlab.diffusion.objective.Objective()
        read = {
            "steps": 1,
            "seeds": [0],
            "sampler": "euler",
            "output_type": "latent",
        }  # one step: the estimate of the data
        half, whole = loaded([0], **read).images, replace(loaded, objective=usual)([0], **read).images
        assert relative(2 * half, whole) < 1e-6

    def test_a_metric_is_computed(self, plugin, tmp_path):
        plugin("parts")
        result = ditlab.evaluate("digits", reference="digits-held-out", metrics=["brightness"], features="digits",
                                 out=tmp_path)  # fmt: skip
        assert 0 <= result.metrics["brightness"] < 5

    def test_a_sampler_function_is_taken_as_it_is(self, plugin, tmp_path):
        parts = plugin("parts")
        pipe = tiny_pipeline()
        by_name = pipe([1], seeds=[3], sampler="half", steps=4, output_type="latent").images
        by_function = pipe([1], seeds=[3], sampler=parts.half, steps=4, output_type="latent").images
        assert torch.equal(by_name, by_function)


class TestVideo:
    """A toy backbone of (C, T, H, W): trained, sampled, saved."""

    @pytest.mark.slow
    def test_it_trains_and_samples_end_to_end(self, plugin, ditlab_command, tmp_path):
        plugin("cube")
        recipe = {
            "model": {"name": "Cube", "features": 16},
            "data": {"source": "moving"},
            "train": TRAIN | {"images": 2560, "log_every": 640},
            "optim": {"lr": 5e-3},
            "sample": {"sampler": "euler", "steps": 8},
        }
        ditlab.train(recipe, tmp_path / "run")
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
        assert (tmp_path / "run" / "previews").glob("*.png")
        pipe = ditlab.load(tmp_path / "run")
        assert pipe.net.shape == (1, 4, 8, 8)
        out = pipe(["down", "up"], seeds=[0, 1], guidance=1.5)
        assert [video.shape for video in out.videos] == [(4, 8, 8, 1)] * 2
        assert out.videos[0].dtype == np.uint8
        alone = pipe(["up"], seeds=[1], guidance=1.5).videos[0].astype(int)
        assert np.abs(alone - out.videos[1]).max() <= 1
        ditlab_command("sample", tmp_path / "run", "--labels", "up", "--seeds", "0-1", "--out", tmp_path / "out")
        assert list((tmp_path / "out").iterdir())
