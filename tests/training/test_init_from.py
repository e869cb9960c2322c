import json
import os
import re
import shutil

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.backbones import create
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, training_order
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Linear, ScaledLinear
from ditlab.inference.pipeline import Pipeline
from ditlab.training import train
from ditlab.training.init_from import Change, continued, match_classes, report, summary, transfer
from ditlab.training.losses import batch_losses, make_context

TABLE = "y_embedder.embedding_table.weight"
HEAD = "final_layer.linear.weight"


def state(pipe):
    return {key: value.clone() for key, value in pipe.net.state_dict().items()}


def test_equal_models_are_copied_whole():
    source, fresh = tiny_pipeline(), tiny_pipeline()
    with torch.no_grad():
        for parameter in fresh.net.parameters():
            parameter.zero_()
    changes = transfer(fresh.net, fresh.classes, source)
    assert summary(changes) == {"kept": len(source.net.state_dict())}
    assert all(torch.equal(value, state(source)[key]) for key, value in state(fresh).items())


def test_classes_are_matched_by_name_and_the_null_row_is_kept():
    source, fresh = tiny_pipeline(classes=3), tiny_pipeline(classes=4)
    before, known = state(fresh)[TABLE], state(source)[TABLE]
    before[:] = torch.randn_like(before)
    fresh.net.state_dict()[TABLE].copy_(before)
    changes = transfer(fresh.net, ["class 2", "otter", "class 0", "cat"], source)
    table = state(fresh)[TABLE]
    assert torch.equal(table[[0, 2, 4]], known[[2, 0, 3]])
    assert torch.equal(table[[1, 3]], before[[1, 3]])
    (change,) = [change for change in changes if change.name == TABLE]
    assert change.fate == "adapted"
    assert "2 of them matched" in change.detail


def test_without_names_only_the_null_row_is_kept():
    source, fresh = tiny_pipeline(classes=3), tiny_pipeline(classes=3)
    fresh.net.state_dict()[TABLE].copy_(before := torch.randn(4, 32))
    source.classes = []
    transfer(fresh.net, ["a", "b", "c"], source)
    assert torch.equal(state(fresh)[TABLE][:3], before[:3])
    assert torch.equal(state(fresh)[TABLE][3], state(source)[TABLE][3])


@pytest.mark.parametrize("adds", [True, False])
def test_the_variance_half_is_added_or_dropped(adds):
    def make(learn_variance):
        objective = Objective(DDPM(), "eps", learn_variance=learn_variance)
        return tiny_pipeline(channels=2, learn_variance=learn_variance, objective=objective)

    source, fresh = make(not adds), make(adds)
    x, t, y = torch.randn(2, 2, 8, 8), torch.tensor([5.0, 700.0]), torch.tensor([0, 1])
    changes = transfer(fresh.net, fresh.classes, source)
    assert summary(changes)["adapted"] == 2
    with torch.no_grad():
        assert torch.allclose(fresh.net(x, t, y)[:, :2], source.net(x, t, y)[:, :2], atol=1e-6)


def test_another_size_gets_its_own_positions():
    source, fresh = tiny_pipeline(size=8), tiny_pipeline(size=(8, 16))
    positions = state(fresh)["pos_embed"]
    changes = {change.name: change for change in transfer(fresh.net, fresh.classes, source)}
    assert torch.equal(state(fresh)["pos_embed"], positions)
    assert changes["pos_embed"].fate == "adapted"
    assert torch.equal(state(fresh)["blocks.1.attn.qkv.weight"], state(source)["blocks.1.attn.qkv.weight"])


def test_depths_that_differ_are_named():
    changes = transfer(tiny_pipeline(depth=3).net, [], tiny_pipeline(depth=2))
    assert {change.name.split(".")[1] for change in changes if change.fate == "new"} == {"2"}
    changes = transfer(tiny_pipeline(depth=1).net, [], tiny_pipeline(depth=2))
    assert {change.name.split(".")[1] for change in changes if change.fate == "dropped"} == {"1"}


@pytest.fixture
def pictures(tmp_path):
    for name in ("class 1", "otter"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.effect_noise((8, 8), 60 + 20 * i).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_fine_tuning_to_own_classes_starts_from_the_source_and_resumes(tmp_path, pictures):
    source = tiny_pipeline()
    source.save(tmp_path / "source")

    def tune(images):
        recipe = parse_recipe(
            {"data": {"source": str(pictures)}, "optim": {"lr": 0.0}, "sample": {"sampler": "euler", "steps": 2}}
            | {"train": {"images": images, "batch": 4, "init_from": str(tmp_path / "source"), "precision": "float32"}}
        )
        console = Console(record=True, width=120, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
        pipe = train(recipe, tmp_path / "run", console=console)
        return pipe, console.export_text()

    pipe, said = tune(8)
    assert "3 -> 2 classes, 1 of them matched, null class kept" in said
    assert pipe.classes == ["class 1", "otter"]
    assert pipe.net.config["depth"] == 2
    for key, value in state(source).items():  # the learning rate is zero
        if key != TABLE:
            assert torch.allclose(pipe.net.state_dict()[key], value, atol=1e-6)
    assert torch.allclose(pipe.net.state_dict()[TABLE][[0, 2]], state(source)[TABLE][[1, 3]], atol=1e-6)
    recorded = json.loads((next((tmp_path / "run" / "checkpoints").iterdir()) / "config.json").read_text())
    assert recorded["recipe"]["train"]["init_from"] == str(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")  # a resumed run does not need it any more
    again, said = tune(16)
    assert "resuming" in said
    assert "matched" not in said
    assert ditlab.load(tmp_path / "run").config["images_seen"] == again.config["images_seen"] == 16


def tuned(source, pictures, folder, **sections):
    """What `train` said, and the first loss, of a step on a saved model."""
    source.save(folder / "source")
    settings = {"images": 8, "batch": 8, "log_every": 8, "init_from": str(folder / "source"), "precision": "float32"}
    recipe = parse_recipe(
        {"data": {"source": str(pictures)}, "train": settings, "sample": {"sampler": "euler", "steps": 2}} | sections
    )
    console = Console(record=True, width=500, file=open(os.devnull, "w"))  # noqa: SIM115
    pipe = train(recipe, folder / "run", console=console)
    line = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    return pipe, console.export_text(), line["loss"], recipe


class TestTheProcessOfTheSource:
    """A recipe that sets neither process nor target fine-tunes a model as it was trained."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("objective", "words"),
        [
            (Objective(Linear(-1.0, 1.0)), "velocity on linear, clock_rate = -1.0, clock_start = 1.0"),
            (Objective(ScaledLinear(clock_start=1.0), "eps"), "eps on scaled-linear, clock_start = 1.0"),
            (Objective(ScaledLinear(1000, 0.0015, 0.0195), "eps"), "beta_start = 0.0015, beta_end = 0.0195"),
        ],
        ids=["SiT", "U-ViT", "LDM"],
    )
    def test_the_first_loss_is_that_on_the_own_process(self, tmp_path, pictures, objective, words):
        source = tiny_pipeline(classes=2, objective=objective)
        source.classes = ["class 1", "otter"]
        pipe, said, loss, recipe = tuned(source, pictures, tmp_path)
        assert "process, target and timestep input are those of" in said
        assert words in said
        assert (pipe.objective.process, pipe.objective.target) == (objective.process, objective.target)
        data = open_dataset(str(pictures))
        batch = data.fetch(next(training_order(len(data), 8, 0, 0)))
        expected = batch_losses(make_context(source, recipe), batch, 0, 0, torch.float32).total.mean()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        again = ditlab.Recipe.load(tmp_path / "run" / "recipe.toml")  # the resolved recipe resumes the run
        longer = again.override({"train": {"images": 16}})
        assert train(longer, tmp_path / "run", console=Console(quiet=True)).objective == pipe.objective

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"process": "linear"}, "another timestep input; its time embedding must adapt"),
            ({"process": "cosine", "target": "velocity"}, "timestep input and process; its time embedding and blocks"),
            ({"process": "linear", "process_options": {"clock_rate": -1, "clock_start": 1}, "target": "x0"},
             "another target; its head must adapt"),
            ({"target": "x0"}, "another timestep input and target; its time embedding and head must adapt"),
            ({"process_options": {"clock_rate": -1, "clock_start": 1}}, "as the recipe sets them"),
        ],
    )  # fmt: skip
    def test_what_differs_is_named(self, tmp_path, pictures, settings, words):
        source = tiny_pipeline(classes=2, objective=Objective(Linear(-1.0, 1.0)))
        _, said, *_ = tuned(source, pictures, tmp_path, diffusion=settings)
        assert words in said

    def test_a_learned_variance_is_kept(self, tmp_path, pictures):
        objective = Objective(DDPM(), "eps", learn_variance=True)
        source = tiny_pipeline(classes=2, learn_variance=True, objective=objective)
        pipe, *_ = tuned(source, pictures, tmp_path)
        assert pipe.net.learn_variance
        assert pipe.objective.process == DDPM()


def test_a_source_with_weights_that_are_not_finite(tmp_path, pictures):
    source = tiny_pipeline()
    with torch.no_grad():
        source.net.final_layer.linear.bias[0] = torch.nan
    source.save(tmp_path / "source")
    recipe = parse_recipe({"data": {"source": str(pictures)}, "train": {"init_from": str(tmp_path / "source")}})
    message = "DiT-S/2: its weights final_layer.linear.bias are not finite: use another checkpoint"
    with pytest.raises(InputError, match=f"^{message}$"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_not_there(tmp_path, pictures):
    recipe = parse_recipe({"data": {"source": str(pictures)}, "train": {"init_from": str(tmp_path / "nothing")}})
    with pytest.raises(InputError, match="no model at"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_map_matches_classes(tmp_path):
    source, fresh = tiny_pipeline(classes=3), tiny_pipeline(classes=4)
    before, known = state(fresh)[TABLE], state(source)[TABLE]
    for name, text in {
        "map.toml": 'otter = "class 2"\n"great cat" = 0\n',
        "map.json": '{"otter": 2, "great cat": "0"}',
    }.items():
        (tmp_path / name).write_text(text)
        fresh.net.state_dict()[TABLE].copy_(before)
        transfer(fresh.net, ["class 0", "otter", "great cat", "dog"], source, str(tmp_path / name))
        table = state(fresh)[TABLE]
        assert torch.equal(table[[1, 2, 4]], known[[2, 0, 3]])
        assert torch.equal(table[[0, 3]], before[[0, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oter = 1", r'map, classes of the data: unknown class "oter"; did you mean "otter"'),
        ('otter = "clas 2"', r'unknown class "clas 2"; did you mean "class 2"'),
        ("otter = 7", r"label 7 is out of range"),
        ("otter = [1]", r"gives otter the value \[1\]; give a class name or index"),
        ("otter", r"neither TOML nor JSON"),
        ('otter = 1\n"index:0" = 2', r'map maps the class "otter" twice; leave one of the lines out'),
    ],
)
def test_mistakes_in_a_class_map(tmp_path, text, message):
    (tmp_path / "map").write_text(text)
    with pytest.raises(InputError, match=message):
        transfer(tiny_pipeline(classes=2).net, ["otter", "cat"], tiny_pipeline(classes=3), str(tmp_path / "map"))


def test_a_class_map_between_classes_that_are_numbers(tmp_path):
    source = tiny_pipeline(classes=3)
    source.classes, classes = ["001", "002", "003"], ["1", "2", "3"]
    pairs = tmp_path / "map.toml"
    pairs.write_text('1 = "003"\n2 = "index:0"\n"index:2" = "002"\n')
    assert match_classes(classes, source, str(pairs)) == {0: 2, 1: 0, 2: 1}
    pairs.write_text("1 = 1\n")
    with pytest.raises(InputError, match=r'label 1 is ambiguous: .* give "001" or index:1'):
        match_classes(classes, source, str(pairs))
    pairs.write_text('0 = "001"\n')
    with pytest.raises(InputError, match=r"map\.toml, classes of the data: label 0 is no class name"):
        match_classes(classes, source, str(pairs))


def test_room_for_more_classes(tmp_path, pictures):
    tables = {"data": {"source": str(pictures), "classes": 5}, "model": {"width": 32, "depth": 1, "heads": 2}}
    tables |= {"train": {"images": 4, "batch": 4, "precision": "float32"}, "sample": {"sampler": "euler", "steps": 1}}
    pipe = train(parse_recipe(tables), tmp_path / "run")
    assert (pipe.net.classes, pipe.classes) == (5, ["class 1", "otter"])
    assert pipe.conditioner.encode(["otter", 4, None]).label.tolist() == [1, 4, 5]
    tables["data"]["classes"] = 1
    with pytest.raises(InputError, match=r"data.classes is 1, but the data has 2 classes; leave it out"):
        train(parse_recipe(tables), tmp_path / "other")


def low_rank_recipe(source, pictures, images, **train):
    return parse_recipe(
        {"data": {"source": str(pictures)}, "optim": {"lr": 0.01}, "sample": {"sampler": "euler", "steps": 2}}
        | {"train": {"images": images, "batch": 4, "init_from": str(source), "precision": "float32", "lora": 2} | train}
    )


@pytest.mark.parametrize("apart", [False, True])
def test_low_rank_updates_train_save_and_resume(tmp_path, pictures, apart):
    source = tiny_pipeline()
    source.save(tmp_path / "source")
    whole = train(low_rank_recipe(tmp_path / "source", pictures, 16, lora_apart=apart), tmp_path / "whole")
    train(low_rank_recipe(tmp_path / "source", pictures, 8, lora_apart=apart), tmp_path / "run")
    pipe = train(low_rank_recipe(tmp_path / "source", pictures, 16, lora_apart=apart), tmp_path / "run")
    loaded = ditlab.load(tmp_path / "run")
    trained, before = state(loaded), state(source)
    for each in (whole, pipe):  # resumed, uninterrupted, and read from disk
        assert all(torch.equal(value, trained[key]) for key, value in state(each).items())
    changed = {
        key for key, value in trained.items() if value.shape != before[key].shape or not torch.equal(value, before[key])
    }
    assert {key for key in changed if "mlp" in key or "x_embedder" in key} == set()
    assert {"blocks.0.attn.qkv.weight", "blocks.1.adaLN_modulation.1.weight", TABLE, HEAD} <= changed
    update = trained["blocks.0.attn.qkv.weight"] - before["blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(update, rtol=1e-3) == 2
    files = {file.name for file in (tmp_path / "run" / "checkpoints" / f"{16:012d}").iterdir()}
    assert ("adapter.safetensors" in files, "model.safetensors" in files) == (apart, not apart)
    assert ditlab.load(tmp_path / "run", weights="model").net.state_dict().keys() == trained.keys()


class TestSeparateUpdates:
    """Checkpoints with `lora_apart` hold what is trained and nothing else."""

    @pytest.mark.slow
    def test_their_size(self, tmp_path, pictures):
        source = tiny_pipeline(width=64, depth=4)
        source.save(tmp_path / "source")
        sizes = {}
        for apart in (False, True):
            pipe = train(low_rank_recipe(tmp_path / "source", pictures, 4, lora_apart=apart), tmp_path / str(apart))
            folder = next((tmp_path / str(apart) / "checkpoints").iterdir())
            sizes[apart] = {file.name: file.stat().st_size for file in folder.iterdir()}
        # Rank 2 on qkv (64 -> 192), proj (64 -> 64) and modulation (64 -> 384) of 4 blocks, on the modulation of the
        # head (64 -> 128), table (3 x 64), head (64 -> 4, with bias).
        values = 4 * 2 * (64 + 192 + 64 + 64 + 64 + 384) + 2 * (64 + 128) + 3 * 64 + 4 * 64 + 4
        header = 8_000  # bytes at most, of the names in a file
        assert 4 * values < sizes[True]["adapter.safetensors"] < 4 * values + header
        assert 4 * values < sizes[True]["raw.safetensors"] < 4 * values + header
        assert 8 * values < sizes[True]["state.pt"] < 8 * values + 4 * header  # two moments
        assert sizes[True].keys() == {
            "adapter.safetensors", "raw.safetensors", "state.pt", "config.json", "manifest.json", "README.md"
        }  # fmt: skip
        weights = 4 * sum(value.numel() for value in state(pipe).values())
        assert sum(sizes[False].values()) > 3 * weights  # merged, raw, averaged
        assert sum(sizes[True].values()) < 0.15 * sum(sizes[False].values())

    @pytest.mark.slow
    def test_a_run_of_an_earlier_version_resumes(self, tmp_path, pictures):
        """Such a checkpoint also holds the frozen weights, in raw.safetensors and ema.safetensors, and no hash."""
        tiny_pipeline().save(tmp_path / "source")
        whole = train(low_rank_recipe(tmp_path / "source", pictures, 16, lora_apart=True), tmp_path / "whole")
        for apart in (True, False):
            train(low_rank_recipe(tmp_path / "source", pictures, 8, lora_apart=apart), tmp_path / f"run-{apart}")
        now, earlier = (tmp_path / f"run-{apart}" / "checkpoints" / f"{8:012d}" for apart in (True, False))
        for name in ("raw.safetensors", "ema.safetensors"):
            shutil.copy(earlier / name, now / name)
        config = json.loads((now / "config.json").read_text())
        del config["init_from_hash"]
        (now / "config.json").write_text(json.dumps(config))
        (now / "manifest.json").unlink()
        raw = ditlab.load(tmp_path / "run-True", weights="model")
        pipe = train(low_rank_recipe(tmp_path / "source", pictures, 16, lora_apart=True), tmp_path / "run-True")
        assert all(torch.equal(value, state(whole)[key]) for key, value in state(pipe).items())
        assert raw.config["images_seen"] == 8

    @pytest.mark.slow
    @pytest.mark.parametrize("weights", ["ema", "model"])
    def test_raw_and_averaged_weights_are_those_of_merged_checkpoints(self, tmp_path, pictures, weights):
        tiny_pipeline().save(tmp_path / "source")
        loaded = []
        for apart in (False, True):
            recipe = low_rank_recipe(tmp_path / "source", pictures, 8, lora_apart=apart)
            train(recipe, tmp_path / str(apart))
            loaded.append(state(ditlab.load(tmp_path / str(apart), weights=weights)))
        assert all(torch.equal(value, loaded[1][key]) for key, value in loaded[0].items())

    def test_a_source_that_has_changed_or_is_gone(self, tmp_path, pictures):
        source = tiny_pipeline()
        source.save(tmp_path / "source")
        train(low_rank_recipe(tmp_path / "source", pictures, 4, lora_apart=True), tmp_path / "run")
        folder = tmp_path / "run" / "checkpoints" / f"{4:012d}"
        with torch.no_grad():
            next(source.net.parameters()).add_(1)
        source.save(tmp_path / "source", overwrite=True)
        with pytest.raises(InputError) as caught:
            ditlab.load(tmp_path / "run")
        assert re.fullmatch(
            f"{tmp_path / 'source'} is not the model from which {folder} was trained: its weights have the hash "
            "[0-9a-f]{16}, not [0-9a-f]{16}; give that model",
            str(caught.value),
        )
        (tmp_path / "source" / "config.json").unlink()
        with pytest.raises(
            InputError, match=rf"^{folder} holds low-rank updates of .*, which cannot be loaded: no model"
        ):
            ditlab.load(tmp_path / "run")
        shutil.rmtree(tmp_path / "source")
        with pytest.raises(InputError, match="which does not exist; give its present place: base="):
            ditlab.load(tmp_path / "run")


def test_low_rank_needs_a_source():
    with pytest.raises(InputError, match=r"train.lora is 4, but train.init_from is not set; remove it or"):
        train(parse_recipe({"train": {"lora": 4}}), "nowhere")


def test_learned_positions_are_interpolated():
    def make(size):
        options = {
            "width": 32,
            "depth": 3,
            "heads": 2,
            "patch": 2,
            "channels": 1,
            "classes": 2,
            "learn_variance": False,
        }
        return Pipeline(create("U-ViT", size=size, **options), Objective(), classes=["a", "b"])

    source, fresh = make(8), make((8, 16))
    rows = torch.arange(4.0)[:, None].expand(4, 4).flatten()  # each patch knows its row
    extra = source.net.pos_embed.shape[1] - 16
    with torch.no_grad():
        source.net.pos_embed[:, extra:] = rows[:, None]
    changes = {change.name: change for change in transfer(fresh.net, fresh.classes, source)}
    assert changes["pos_embed"].detail.endswith("interpolated")
    positions = fresh.net.pos_embed
    assert torch.equal(positions[:, :extra], source.net.pos_embed[:, :extra])
    expected = torch.arange(4.0)[:, None].expand(4, 8).flatten()
    assert torch.allclose(positions[0, extra:], expected[:, None].expand(-1, 32), atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0)])
def test_positions_of_a_uvit_keep_their_meaning_with_and_without_classes(before, after):
    def make(classes):
        sizes = {"width": 16, "depth": 3, "heads": 2, "patch": 2}
        net = create("U-ViT", size=8, channels=1, classes=classes, learn_variance=False, **sizes)
        return Pipeline(net, Objective(), classes=[str(i) for i in range(classes)])

    source, fresh = make(before), make(after)
    transfer(fresh.net, fresh.classes, source)
    mine, theirs = state(fresh)["pos_embed"], state(source)["pos_embed"]
    assert torch.allclose(mine[:, -17:], theirs[:, -17:], atol=1e-6)  # of time and 16 patches


def test_a_model_that_fits_is_reported_in_a_line():
    kept, new = Change("a", "kept", "1"), Change("b", "new", "2")
    assert report([kept, kept]) == "all 2 tensors kept"
    assert report([kept, new]).row_count == 1


SMALL = {"size": 8, "channels": 3, "width": 32, "depth": 2, "heads": 2, "patch": 2}


class TestPixArtFromDiT:
    """The published way to start: the network of a DiT at timestep 500 without a class."""

    def dit(self, **options):
        torch.manual_seed(0)
        net = create("DiT", classes=4, learn_variance=True, **SMALL | options)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return Pipeline(net.eval(), Objective(DDPM(), "eps", learn_variance=True))

    def test_it_equals_the_dit_at_this_timestep(self):
        source = self.dit()
        net = create("PixArt", learn_variance=True, text_length=3, text_width=5, **SMALL).eval()
        changes = {change.name: change for change in transfer(net, [], source)}
        assert changes["blocks.1.scale_shift_table"][1:] == ("adapted", "adaLN modulation at timestep 500")
        assert changes["blocks.0.attn.qkv.weight"].fate == "kept"
        assert changes["blocks.0.cross_attn.q_linear.weight"].fate == "new"
        assert changes["y_embedder.embedding_table.weight"].fate == "dropped"
        x, _, text = net.example(2, torch.Generator().manual_seed(0))
        t, null = torch.full((2,), 500.0), torch.full((2,), 4)
        with torch.no_grad():
            out, expected = net(x, t, text), source.net(x, t, null)
            assert torch.allclose(out, expected, atol=1e-5)
            assert not torch.allclose(net(x, t + 100, text), source.net(x, t + 100, null), atol=1e-3)

    def test_the_recipe_takes_the_sizes_of_the_dit(self):
        recipe = parse_recipe({"model": {"name": "PixArt-S/2", "condition_grid": True}})
        model = continued(recipe.model, self.dit(rope=True))
        assert (model.name, model.width, model.depth, model.condition_grid) == ("PixArt", 32, 2, True)
        assert model.rope is None
        assert continued(parse_recipe({"model": {"name": "U-ViT-S/2"}}).model, self.dit()).name == "DiT"
