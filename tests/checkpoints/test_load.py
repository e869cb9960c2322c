import argparse
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import posix_only, relative, tiny_pipeline
from safetensors.torch import save_file

import ditlab
from ditlab.backbones import create
from ditlab.backbones.dit import SIZES
from ditlab.checkpoints import convert
from ditlab.checkpoints.native import read_network
from ditlab.checkpoints.published import to_official
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.core.weights import WEIGHTS
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Cosine, Linear
from ditlab.inference.pipeline import Pipeline

T = torch.tensor([3.0, 400.0, 999.0])
Y = torch.tensor([0, 1, 2])


@pytest.fixture
def dit():
    """A pipeline that the official code could have trained, with random weights and odd sizes."""

    def make(classes=3, **options):
        objective = Objective(DDPM(), "eps", learn_variance=True)
        return tiny_pipeline(classes=classes, channels=4, learn_variance=True, objective=objective, **options)

    return make


def output(pipe, x):
    with torch.no_grad():
        return pipe.net(x, T, Y)


def same_weights(a, b):
    first, second = a.net.state_dict(), b.net.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class TestOfficial:
    @pytest.mark.parametrize(("file", "heads"), [("dit_p2", 4), ("dit_p4_rgb_nosigma", 2)])
    @pytest.mark.parametrize("kind", ["pt", "safetensors", "training", "compiled"])
    def test_published_numbers_through_every_layout(self, golden, tmp_path, file, heads, kind):
        vectors = golden(file)
        state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
        path = tmp_path / "whatever.bin"
        if kind == "safetensors":
            save_file(state, path)
        elif kind == "training":
            wrong = {key: torch.zeros_like(value) for key, value in state.items()}
            torch.save(
                {"model": wrong, "ema": state, "opt": {"lr": 1}, "args": argparse.Namespace(model="DiT-S/2")}, path
            )
        else:
            torch.save({("module._orig_mod." if kind == "compiled" else "") + k: v for k, v in state.items()}, path)
        pipe = ditlab.load(path, heads=heads)
        x, t, y = vectors["x"], vectors["t"], vectors["y"]
        with torch.no_grad():
            assert relative(pipe.net(x, t, y), vectors["out"]) < 1e-5
            assert relative(pipe.net(x, t, pipe.null(len(y))), vectors["out_null"]) < 1e-5
        for layout in ("official", "ditlab", "diffusers"):
            convert(pipe, tmp_path / layout, layout)
            again = ditlab.load(
                tmp_path / layout, **{} if layout == "ditlab" else {"heads": heads, "frequency_shift": 0}
            )
            assert same_weights(pipe, again)
            assert again.objective == pipe.objective
            with torch.no_grad():
                assert relative(again.net(x, t, y), vectors["out"]) < 1e-5

    def test_raw_weights_on_request(self, dit, tmp_path):
        state = dit().net.state_dict()
        other = {key: value + 1 if key.endswith("bias") else value for key, value in state.items()}
        torch.save({"model": other, "ema": state}, tmp_path / "a.pt")
        ema, raw = (ditlab.load(tmp_path / "a.pt", heads=2, weights=name) for name in ("ema", "model"))
        key = "final_layer.linear.bias"
        assert torch.equal(raw.net.state_dict()[key], ema.net.state_dict()[key] + 1)

    @pytest.mark.parametrize("classes", [10, 1000, 1001])
    def test_null_label_is_the_class_count(self, dit, tmp_path, classes):
        convert(dit(classes=classes), tmp_path / "a.pt", "official")
        pipe = ditlab.load(tmp_path / "a.pt", heads=2)
        assert pipe.net.classes == classes
        assert pipe.null(1).label.item() == classes
        pipe(classes - 1, guidance_scale=2.0, num_inference_steps=1, output_type="latent")

    def test_heads_come_from_the_size_table_or_the_caller(self, dit, tmp_path):
        with torch.device("meta"):
            net = create("DiT-S/8", size=8, classes=1)
        save_file({k: torch.zeros(v.shape) for k, v in net.state_dict().items()}, tmp_path / "s8.safetensors")
        pipe = ditlab.load(tmp_path / "s8.safetensors")
        assert pipe.net.config["name"] == "DiT-S/8"
        assert pipe.net.blocks[0].attn.heads == SIZES["S"].heads
        convert(dit(), tmp_path / "odd.pt", "official")
        with pytest.raises(InputError, match="no published size; give heads="):
            ditlab.load(tmp_path / "odd.pt")

    def test_half_precision_files_load(self, dit, tmp_path):
        save_file({k: v.half() for k, v in dit().net.state_dict().items()}, tmp_path / "half.safetensors")
        assert ditlab.load(tmp_path / "half.safetensors", heads=2).net.dtype is torch.float32


class TestSiT:
    @staticmethod
    def checkpoint(pipe, path, **args):
        torch.save({"ema": dict(pipe.net.state_dict()), "model": {}, "args": argparse.Namespace(**args)}, path)

    def test_time_and_sign_are_turned_at_the_border(self, dit, tmp_path):
        theirs = dit()
        self.checkpoint(theirs, tmp_path / "sit.pt", path_type="Linear", prediction="velocity")
        pipe = ditlab.load(tmp_path / "sit.pt", heads=2)
        assert pipe.config["guidance_origin"] == "facebookresearch/SiT's sample.py"
        assert pipe.config["sample"] == {"guidance": 4.0, "guidance_channels": 3}
        assert not pipe.net.learn_variance
        x, t = torch.randn(1, 4, 8, 8), torch.tensor(0.3, dtype=torch.float64)
        prediction = pipe.objective.denoiser(pipe.net)(x, t, t, Condition(label=torch.tensor([1])))
        with torch.no_grad():  # SiT is fed its own time, 1 - t, and answers data - noise and a half that is thrown away
            velocity = theirs.net(x, torch.tensor([0.7]), torch.tensor([1]))[:, :4]
        assert relative(prediction.x0 - prediction.eps, velocity) < 1e-5
        assert relative(0.7 * prediction.x0 + 0.3 * prediction.eps, x) < 1e-5

    def test_a_bare_state_dict_is_read_as_dit_and_says_so(self, dit, tmp_path):
        convert(dit(), tmp_path / "bare.pt", "official")
        pipe = ditlab.load(tmp_path / "bare.pt", heads=2)
        assert isinstance(pipe.objective.process, DDPM)
        words = "read as DiT; a state dict does not show whether it is a DiT's or a SiT's: give sit=True for SiT"
        assert words in pipe.config["note"]
        assert ditlab.load(tmp_path / "bare.pt", heads=2, sit=True).objective.target == "velocity"
        for told in (True, False):
            assert "read as DiT" not in ditlab.load(tmp_path / "bare.pt", heads=2, sit=told).config.get("note", "")
        args = argparse.Namespace(model="DiT-S/2")  # as DiT's own training saves them
        torch.save({"ema": dict(dit().net.state_dict()), "args": args}, tmp_path / "trained.pt")
        assert "read as DiT" not in ditlab.load(tmp_path / "trained.pt", heads=2).config.get("note", "")

    def test_folders_state_it(self, dit, tmp_path):
        convert(dit(), tmp_path / "theirs", "diffusers")
        for folder in (dit().save(tmp_path / "ours"), tmp_path / "theirs"):
            with pytest.raises(InputError, match="is a folder, which states the objective of its model; leave sit out"):
                ditlab.load(folder, sit=True)

    def test_the_variance_preserving_path(self, dit, tmp_path):
        theirs = dit()
        self.checkpoint(theirs, tmp_path / "sit.pt", path_type="GVP", prediction="velocity")
        pipe = ditlab.load(tmp_path / "sit.pt", heads=2)
        assert pipe.objective.process == Cosine(clock_rate=-1.0, clock_start=1.0)
        x, t = torch.randn(1, 4, 8, 8), torch.tensor(0.3, dtype=torch.float64)
        prediction = pipe.objective.denoiser(pipe.net)(x, t, t, Condition(label=torch.tensor([1])))
        with torch.no_grad():  # SiT: x = sin(pi s / 2) data + cos(pi s / 2) noise at its time s = 1 - t
            velocity = theirs.net(x, torch.tensor([0.7]), torch.tensor([1]))[:, :4]
        angle = torch.tensor(0.7 * torch.pi / 2)
        expected = torch.pi / 2 * (angle.cos() * prediction.x0 - angle.sin() * prediction.eps)
        assert relative(expected, velocity) < 1e-5

    def test_the_variance_preserving_path_is_written_back(self, dit, tmp_path):
        theirs = dit()
        self.checkpoint(theirs, tmp_path / "sit.pt", path_type="GVP", prediction="velocity")
        convert(ditlab.load(tmp_path / "sit.pt", heads=2), tmp_path / "back.pt", "official")
        head, back = theirs.net.final_layer.linear.weight, torch.load(tmp_path / "back.pt")
        assert torch.equal(back["final_layer.linear.weight"], head.view(4, 8, -1)[:, :4].flatten(0, 1))

    @pytest.mark.parametrize(
        "args", [{"path_type": "VP", "prediction": "velocity"}, {"path_type": "Linear", "prediction": "score"}]
    )
    def test_other_paths_and_targets_are_rejected(self, dit, tmp_path, args):
        self.checkpoint(dit(), tmp_path / "sit.pt", **args)
        with pytest.raises(InputError) as caught:
            ditlab.load(tmp_path / "sit.pt", heads=2)
        assert str(caught.value) == (
            f"{tmp_path / 'sit.pt'} was trained with path_type {args['path_type']} and prediction "
            f"{args['prediction']}; ditlab reads SiT with the paths Linear and GVP and the prediction velocity"
        )

    def test_round_trip(self, dit, tmp_path):
        self.checkpoint(dit(), tmp_path / "sit.pt", path_type="Linear")
        pipe = ditlab.load(tmp_path / "sit.pt", heads=2)
        pipe.save(tmp_path / "ours")
        again = ditlab.load(tmp_path / "ours")
        assert again.objective == pipe.objective
        convert(again, tmp_path / "back.pt", "official")
        back = ditlab.load(tmp_path / "back.pt", heads=2, sit=True)
        assert same_weights(back, pipe)


class TestREPA:
    """SiT with projectors, which only training needs; t = 1 is noise, and the velocity is noise - data."""

    def test_guidance_of_its_own_script(self, golden, tmp_path):
        vectors = golden("repa_sit")
        save_file({k.removeprefix("state."): v for k, v in vectors.items() if "state." in k}, tmp_path / "a")
        config = ditlab.load(tmp_path / "a", heads=3).config
        assert config["sample"] == {"guidance": 1.5}
        assert config["guidance_origin"] == "sihyun-yu/REPA's generate.py"
        assert config["note"] == "read as REPA on the path Linear; a state dict does not show its path"

    @pytest.mark.parametrize("kind", ["bare", "training"])
    def test_published_numbers(self, golden, tmp_path, kind):
        vectors = golden("repa_sit")
        state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
        args = argparse.Namespace(path_type="linear", prediction="v")
        torch.save(state if kind == "bare" else {"ema": state, "model": {}, "args": args}, tmp_path / "repa.pt")
        pipe = ditlab.load(tmp_path / "repa.pt", heads=3)
        assert (pipe.objective.process, pipe.objective.target) == (Linear(clock_rate=1.0), "velocity")
        assert "read as DiT" not in pipe.config.get("note", "")
        x, t, y = vectors["x"], vectors["t"], vectors["y"]
        for i in range(len(x)):
            time = t[i].double()
            prediction = pipe.objective.denoiser(pipe.net)(x[i : i + 1], time, time, Condition(label=y[i : i + 1]))
            assert relative(prediction.eps - prediction.x0, vectors["out"][i : i + 1]) < 1e-5

    def test_its_projectors_are_kept_for_the_way_back(self, golden, tmp_path):
        vectors = golden("repa_sit")
        state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
        torch.save(state, tmp_path / "repa.pt")
        pipe = ditlab.load(tmp_path / "repa.pt", heads=3)
        assert pipe.net.config["projectors"] == [32, 20]
        trace = Trace(["blocks.1"])  # REPA aligns the output of its second block
        with torch.no_grad():
            pipe.net(vectors["x"], vectors["t"], vectors["y"], trace=trace)
            assert relative(pipe.net.projectors[0](trace.taps["blocks.1"]), vectors["z0"]) < 1e-5
        convert(pipe, tmp_path / "official", "official")
        back = torch.load(tmp_path / "official")
        assert back.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in back.items())
        assert not any(parameter.requires_grad for parameter in pipe.net.projectors.parameters())

    def test_without_projectors_it_has_no_published_layout(self):
        net = create("DiT", size=8, channels=4, classes=3, learn_variance=False, width=32, depth=1, heads=2, patch=2)
        objective = Objective(process=Linear(clock_rate=1.0), target="velocity")
        with pytest.raises(InputError, match=r"for eps on ddpm, or for SiT; this model has another objective"):
            to_official(Pipeline(net, objective))

    def test_it_is_neither_dit_nor_sit(self, golden, tmp_path):
        vectors = golden("repa_sit")
        save_file({k.removeprefix("state."): v for k, v in vectors.items() if "state." in k}, tmp_path / "a")
        for sit in (True, False):
            with pytest.raises(InputError, match="holds a SiT of REPA; leave sit out"):
                ditlab.load(tmp_path / "a", heads=3, sit=sit)

    def test_its_cosine_path(self, golden, tmp_path):
        vectors = golden("repa_sit")
        state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
        args = argparse.Namespace(path_type="cosine", prediction="v")
        torch.save({"ema": state, "args": args}, tmp_path / "repa.pt")
        assert ditlab.load(tmp_path / "repa.pt", heads=3).objective.process == Cosine(clock_rate=1.0)


class TestDiffusers:
    @staticmethod
    def theirs(**options):
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(0)
        model = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
            patch_size=2, num_embeds_ada_norm=3, norm_eps=1e-6, **options,
        ).eval()  # fmt: skip
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            first = model.transformer_blocks[0].norm1.emb
            for block in model.transformer_blocks:  # published weights have one embedder, copied
                block.norm1.emb.load_state_dict(first.state_dict())
        return model

    def test_parity_with_their_transformer(self, tmp_path):
        model = self.theirs()
        model.save_pretrained(tmp_path / "transformer")
        pipe = ditlab.load(tmp_path / "transformer")
        x = torch.randn(3, 4, 8, 8)
        with torch.no_grad():
            for y in (Y, torch.full((3,), 3)):
                assert relative(pipe.net(x, T, y), model(x, T, y).sample) < 1e-5

    def test_written_transformer_loads_there(self, dit, tmp_path):
        from diffusers import DiTTransformer2DModel

        pipe = dit(frequency_shift=1)
        convert(pipe, tmp_path / "out", "diffusers")
        model = DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer").eval()
        x = torch.randn(3, 4, 8, 8)
        with torch.no_grad():
            assert relative(output(pipe, x), model(x, T, Y).sample) < 1e-5

    def test_shards(self, tmp_path):
        self.theirs().save_pretrained(tmp_path / "a", max_shard_size="100KB")
        shards = sorted((tmp_path / "a").glob("*-of-*.safetensors"))
        assert len(shards) > 1
        ditlab.load(tmp_path / "a")
        shards[0].unlink()
        with pytest.raises(InputError, match=f"{shards[0].name} is missing"):
            ditlab.load(tmp_path / "a")

    def test_embedders_tuned_apart_are_rejected(self, tmp_path):
        model = self.theirs()
        with torch.no_grad():
            model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.add_(1)
        model.save_pretrained(tmp_path / "a")
        with pytest.raises(InputError, match="differs from its copy in block 0"):
            ditlab.load(tmp_path / "a")

    def test_class_names_come_along(self, tmp_path):
        self.theirs().save_pretrained(tmp_path / "transformer")
        names = {"id2label": {"0": "tench", "1": "goldfish", "2": "great white"}, "_class_name": "DiTPipeline"}
        (tmp_path / "model_index.json").write_text(json.dumps(names))
        assert ditlab.load(tmp_path).classes == ["tench", "goldfish", "great white"]

    def test_another_model_is_rejected(self, tmp_path):
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(InputError, match="holds a UNet2DModel"):
            ditlab.load(tmp_path)


class TestHub:
    def test_an_id_is_fetched(self, dit, tmp_path, monkeypatch):
        import huggingface_hub

        asked = []
        dit().save(tmp_path / "snapshot")

        def download(name, allow_patterns):
            asked.append((name, allow_patterns))
            return str(tmp_path / "snapshot")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert same_weights(ditlab.load("somebody/otters-64"), dit())
        assert asked == [("somebody/otters-64", ["*.json", "*.safetensors", "*merges.txt", "*.model"])]

    def test_offline_it_says_what_to_do(self):
        with pytest.raises(
            InputError, match="there is no local path somebody/otters, and no such hub repository"
        ) as caught:
            ditlab.load("somebody/otters")
        assert "give their folder" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_missing_path_is_no_hub_id(self, tmp_path):
        for path in (tmp_path / "nothing", "./nothing", "a/b/c", "nothing"):
            with pytest.raises(InputError, match="no model at"):
                ditlab.load(path)

    def test_pushing_uploads_the_model_folder(self, dit, monkeypatch):
        import huggingface_hub

        uploaded = {}

        class Api:
            def create_repo(self, name, private, exist_ok):
                return f"hub/{name}"

            def upload_folder(self, repo_id, folder_path, delete_patterns):
                assert "autoencoder.safetensors" in delete_patterns
                uploaded[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        assert dit().push_to_hub("me/otters", licence="apache-2.0") == "hub/me/otters"
        names = ["README.md", "config.json", "manifest.json", "model.safetensors", "model_index.json", "pipeline.py"]
        assert sorted(uploaded["me/otters"]) == names
        card = uploaded["me/otters"]["README.md"].decode()
        for words in (
            "license: apache-2.0",
            "# otters",
            "3 classes (class 0, class 1, class 2)",
            "eps on the ddpm process",
        ):
            assert words in card


@pytest.mark.slow
def test_published_preset_is_the_reference_step_by_step(dit):
    """Against improved DDPM written out with the respaced betas: learned variance, guidance 1.5 on three channels."""
    pipe, y, null = dit(), torch.tensor([1]), torch.tensor([3])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = [round(i * 999 / 249) for i in range(250)]
    bars = torch.cumprod(1 - betas, 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    betas = 1 - bars / before
    low = betas * (1 - before) / (1 - bars)
    low[0] = low[1]
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    ours = pipe.steps(1, seeds=5, preset="dit-published")
    for i, step in zip(reversed(range(250)), ours, strict=True):
        if step.i == 0:
            x = x * (1 - bars[i]).sqrt()
        t = torch.tensor([float(kept[i])])
        with torch.no_grad():
            (good, v), (bad, _) = (pipe.net(x, t, label).chunk(2, 1) for label in (y, null))
        eps = torch.cat([(bad + 1.5 * (good - bad))[:, :3], good[:, 3:]], 1)
        x0 = (x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()
        mean = (
            before[i].sqrt() * betas[i] / (1 - bars[i]) * x0
            + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - bars[i]) * x
        )
        mix = (v + 1) / 2
        log_variance = mix * betas[i].log() + (1 - mix) * low[i].log()
        x = mean
        if i > 0:
            x = x + (0.5 * log_variance).exp() * torch.randn(1, 4, 8, 8, generator=generator)
        x = x.float()
        assert relative(step.x, x) < 1e-4
    assert step.i == 249
    with pytest.raises(InputError, match='did you mean "dit-published"'):
        pipe.steps(1, preset="dit-publishd")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


class TestBadFiles:
    def test_a_malicious_pickle_is_rejected_and_not_executed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"model": Evil()}, "zip.pt")
        (tmp_path / "raw.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
        for name in ("zip.pt", "raw.pt"):
            with pytest.raises(InputError, match=r"would run code of .*system; it was rejected") as caught:
                ditlab.load(name)
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("kind", ["pt", "safetensors"])
    def test_truncated_and_empty_files(self, dit, tmp_path, kind):
        path = tmp_path / "a"
        if kind == "pt":
            torch.save(dit().net.state_dict(), path)
        else:
            save_file(dit().net.state_dict(), path)
        whole = path.read_bytes()
        for part, words in (
            (whole[: len(whole) // 2], "truncated or damaged"),
            (b"", "0 bytes"),
            (b"hello, I am text", "neither"),
        ):
            path.write_bytes(part)
            with pytest.raises(InputError, match=words) as caught:
                ditlab.load(path, heads=2)
            assert "\n" not in str(caught.value)

    def test_missing_extra_and_misshapen_tensors(self, dit, tmp_path):
        state = dict(dit().net.state_dict())
        for change, words in (
            ({"blocks.1.attn.qkv.bias": None}, r"missing blocks\.1\.attn\.qkv\.bias"),
            ({"extra.weight": torch.zeros(3)}, r"unused extra\.weight"),
            ({"blocks.0.mlp.fc1.bias": torch.zeros(5)}, r"fc1\.bias is \[5\], not \[128\]"),
        ):
            save_file({k: v for k, v in (state | change).items() if v is not None}, tmp_path / "a.safetensors")
            with pytest.raises(InputError, match=words):
                ditlab.load(tmp_path / "a.safetensors", heads=2)

    def test_other_models_and_nothing(self, tmp_path):
        save_file({"down_blocks.0.weight": torch.zeros(2)}, tmp_path / "unet.safetensors")
        with pytest.raises(InputError, match=r"no known checkpoint \(it has down_blocks"):
            ditlab.load(tmp_path / "unet.safetensors")
        with pytest.raises(InputError, match="no model at"):
            ditlab.load(tmp_path / "nothing")

    def test_conversion_never_overwrites_or_leaves_halves(self, dit, tmp_path, monkeypatch):
        convert(dit(), tmp_path / "a.pt", "official")
        with pytest.raises(InputError, match="exists; give another path"):
            convert(dit(), tmp_path / "a.pt", "official")
        with pytest.raises(InputError, match=r"official code of .* has (condition = adaln-zero|qk_norm = False) only"):
            convert(dit(qk_norm=True), tmp_path / "b.pt", "official")
        with pytest.raises(InputError, match='did you mean "official"'):
            convert(dit(), tmp_path / "b.pt", "oficial")

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(InputError, match="No space left on device"):
            convert(dit(), tmp_path / "b.pt", "official")
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_flow_models_have_no_official_layout(self, tmp_path):
        with pytest.raises(InputError, match="this model has another objective"):
            convert(tiny_pipeline(), tmp_path / "a.pt", "official")


CONVERSION = """
import resource, sys
from ditlab.checkpoints import convert, load
convert(load(sys.argv[1]), sys.argv[2], sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@posix_only
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_largest_model_converts_both_ways_in_little_memory(tmp_path):
    torch.manual_seed(0)
    net = create("DiT-XL/2")
    for parameter in net.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.01)
    state = net.state_dict()
    torch.save(state, tmp_path / "official.pt")
    size = (tmp_path / "official.pt").stat().st_size
    names = {"official.pt": "diffusers", "theirs": "ditlab", "ours": "official"}
    for (source, layout), target in zip(names.items(), ["theirs", "ours", "back.pt"], strict=True):
        arguments = [sys.executable, "-c", CONVERSION, str(tmp_path / source), str(tmp_path / target), layout]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 1.5 * size
    again = torch.load(tmp_path / "back.pt", mmap=True, weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    shutil.rmtree(tmp_path)


def test_incomplete_low_rank_updates(tmp_path):
    save_file({"qkv.weight": torch.zeros(4, 4), "qkv.lora_A.weight": torch.zeros(1, 4)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError) as error:
        read_network(tmp_path, {}, "ema", ditlab.load, None)
    assert str(error.value) == (
        f"{tmp_path} holds incomplete low-rank updates (it lacks 'qkv.lora_B.weight'); save the model again"
    )
