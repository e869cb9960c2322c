import json

import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console

from ditlab.autoencoders.patch import Patch
from ditlab.backbones import create
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import Latents, open_dataset
from ditlab.data.base import InMemory
from ditlab.data.latents.encode import encode
from ditlab.diffusion.objective import Objective
from ditlab.evaluation.features.dinov2 import DinoV2
from ditlab.inference.pipeline import Pipeline
from ditlab.training import train
from ditlab.training.aids.representation import manifold_distance, resized
from ditlab.training.losses import batch_losses, make_context

transformers = pytest.importorskip("transformers")


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=56, image_size=224
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return str(tmp_path / "dino")


def settings(encoder, **more):
    return parse_recipe({"train": {"batch": 4, "repa": encoder, "repa_block": 1, "repa_weight": 0.25} | more})


def test_its_loss_is_the_distance_to_the_features_of_the_clean_image(encoder):
    pipe, data = tiny_pipeline(classes=10), open_dataset("digits")
    run, images = make_context(pipe, settings(encoder)), data.fetch(torch.arange(4))
    (aid,) = run.aids
    tokens = []
    hook = pipe.net.blocks[1].register_forward_hook(lambda block, args, output: tokens.append(output))
    losses = batch_losses(run, images, 0, 0, torch.float32)
    hook.remove()
    assert list(losses.named) == ["regression", "repa"]
    features = resized(aid.encoder.maps(images.x), (4, 4))
    assert features.shape == (4, 16, 16)
    states = aid.encoder.net(pixel_values=torch.zeros(1, 3, 224, 224)).last_hidden_state
    assert states.shape == (1, 17, 16)  # as many patches as tokens
    projected = run.trained["repa"](tokens[0])
    expected = 0.25 * (1 - torch.nn.functional.cosine_similarity(projected, features, dim=-1)).mean(1)
    assert relative(losses.named["repa"], expected) < 1e-4
    losses.named["repa"].sum().backward()
    assert all(parameter.grad is not None for parameter in run.trained["repa"].parameters())
    assert all(parameter.grad is None for parameter in aid.encoder.net.parameters())
    assert pipe.net.blocks[1].mlp.fc2.weight.grad.abs().sum() > 0


def test_features_are_resized_to_the_grid_of_the_tokens(encoder):
    run = make_context(tiny_pipeline(classes=10), settings(encoder))
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    fine = resized(run.aids[0].encoder.maps(images), (4, 4)).mT.unflatten(2, (4, 4))
    coarse = resized(run.aids[0].encoder.maps(images), (1, 1))
    assert coarse.shape == (2, 1, 16)
    assert relative(coarse[:, 0], fine.mean((2, 3))) < 0.3


@pytest.mark.slow
def test_a_run_trains_the_projector_and_leaves_it_out_of_the_model(encoder, tmp_path):
    more = {"images": 16, "batch": 8, "device": "cpu", "precision": "float32", "compile": "never"}
    recipe = parse_recipe(
        {
            "model": {"name": "DiT", "width": 32, "depth": 2, "heads": 2, "patch": 2},
            "data": {"source": "digits"},
            "train": {"repa": encoder, "repa_block": 0} | more,
        }
    )
    pipe = train(recipe, tmp_path / "run", console=Console(quiet=True))
    assert not any("repa" in name or "projector" in name for name in pipe.net.state_dict())


U_SHAPED = [
    {"name": "U-DiT", "width": 16, "heads": 2, "depths": [1, 1, 1]},
    {"name": "DiC", "width": 16, "depths": [1, 1, 1]},
]


@pytest.mark.parametrize("model", U_SHAPED, ids=lambda model: model["name"])
def test_a_u_shaped_network_is_aligned_at_its_middle(encoder, model):
    net = create(**model, size=8, channels=1, classes=10, learn_variance=False)
    pipe, data = Pipeline(net, Objective()), open_dataset("digits")
    run, images = make_context(pipe, settings(encoder, repa_block=None, repa_manifold=3.0)), data.fetch(torch.arange(4))
    assert net.middle_block == {"U-DiT": 3, "DiC": 1}[model["name"]]
    maps = []
    hook = net.repeated[net.middle_block].register_forward_hook(lambda block, args, output: maps.append(output))
    loss = batch_losses(run, images, 0, 0, torch.float32).named["repa"]
    hook.remove()
    grid = maps[0] if model["name"] == "U-DiT" else maps[0].permute(0, 2, 3, 1)
    assert grid.shape == (4, 4, 4, 32)
    features = run.aids[0].encoder.maps(images.x)  # (4, 16, 4, 4)
    projected = run.trained["repa"](grid).permute(0, 3, 1, 2)
    similarity = torch.nn.functional.cosine_similarity(projected, features, dim=1).flatten(1)
    tokens = [x.flatten(2).mT for x in (projected, features)]
    expected = 0.25 * (1 - similarity.mean(1) + 3 * manifold_distance(*tokens))
    assert relative(loss, expected) < 1e-4


def test_the_manifold_distance_compares_similarities_of_images():
    a = torch.eye(2)[:, None]  # two images with one position, at right angles
    b = torch.ones(2, 1, 3)  # with the same features
    assert manifold_distance(a, a).tolist() == [0, 0]
    assert manifold_distance(a, b).tolist() == pytest.approx([0.5, 0.5])  # 0 for itself, 1 for the other image


@pytest.mark.slow
def test_cached_features_replace_the_encoder(encoder, tmp_path, monkeypatch):
    data, out = open_dataset("digits"), tmp_path / "cache"
    small = Subset(data, 12)
    features = DinoV2.load(encoder).image_features(encoder)
    patch = Patch(1, 4, 2, 8, 1)
    encode(small, "twelve", patch, out, Console(quiet=True), dtype="fp32", features=features)
    cache = Latents.open(str(out))
    assert cache.image_features["width"] == 16
    batch = cache.fetch(torch.tensor([5]))
    assert relative(batch.extra["features"], features.compute(small.fetch(torch.tensor([5])).x)) < 1e-5
    monkeypatch.setattr(DinoV2, "load", None)  # it is not needed any more
    recipe = parse_recipe(
        {
            "model": {"name": "DiT", "width": 32, "depth": 2, "heads": 2, "patch": 2},
            "data": {"source": str(out)},
            "train": {"images": 8, "batch": 4, "repa": "cache", "repa_block": 0, "device": "cpu", "compile": "never"}
            | {"precision": "float32"},
        }
    )
    train(recipe, tmp_path / "run", console=Console(quiet=True))
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < line["loss_repa"] < 1
    with pytest.raises(InputError, match="features is"):  # a cache without features is another one
        encode(small, "twelve", patch, out, Console(quiet=True), dtype="fp32")


class Subset(InMemory):
    """The first images of a data set."""

    def __init__(self, data, count):
        super().__init__(data.images[:count], data.labels[:count], data.classes)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({}, {"repa_block": 9}, r"train\.repa_block 9: DiT has the blocks 0 to 1; give another"),
        ({}, {"repa_block": 0, "repa": "nowhere/at/all"}, "nowhere/at/all is neither a folder nor a hub id"),
        (
            {"name": "Hourglass", "width": 32, "depth": 1, "heads": 2},
            {"repa_block": 0},
            "with one token for each patch",
        ),
        ({}, {"repa_block": 0, "repa": "cache"}, 'train.repa is "cache", but the data hold no features; encode'),
    ],
)
def test_networks_that_cannot_be_aligned_are_rejected(encoder, tmp_path, model, more, message):
    model = model or {"name": "DiT", "width": 32, "depth": 2, "heads": 2, "patch": 2}
    recipe = parse_recipe(
        {
            "model": model,
            "data": {"source": "digits"},
            "train": {"images": 8, "batch": 8, "repa": encoder, "compile": "never"} | more,
        }
    )
    with pytest.raises(InputError, match=message):
        train(recipe, tmp_path / "run", console=Console(quiet=True))
