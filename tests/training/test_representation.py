import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import open_dataset
from ditlab.training import train
from ditlab.training.aids.representation import features_at
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
    features = features_at(aid.encoder, images.x, (4, 4))
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
    fine = features_at(run.aids[0].encoder, images, (4, 4)).mT.unflatten(2, (4, 4))
    coarse = features_at(run.aids[0].encoder, images, (1, 1))
    assert coarse.shape == (2, 1, 16)
    assert relative(coarse[:, 0], fine.mean((2, 3))) < 0.3


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


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ({}, {"repa_block": 9}, r"train\.repa_block 9: DiT has the blocks 0 to 1; give another"),
        ({}, {"repa_block": 0, "repa": "nowhere/at/all"}, "nowhere/at/all is neither a folder nor a hub id"),
        ({"name": "DiC", "width": 16, "depths": [1, 1, 1]}, {"repa_block": 0}, "with one token for each patch, which"),
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
