import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ditlab.core.errors import InputError
from ditlab.evaluation.features.dinov2 import DinoV2, positions

transformers = pytest.importorskip("transformers")


def tiny(folder, image_size=224):
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=image_size
    )
    net = transformers.Dinov2Model(config)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.2 * torch.randn_like(value))
    net.save_pretrained(folder)
    return net.eval()


@pytest.fixture
def folder(tmp_path):
    tiny(tmp_path / "dino")
    return tmp_path / "dino"


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@torch.no_grad()
def test_the_class_token_of_preprocessed_images(tmp_path):
    net = tiny(tmp_path / "dino")
    features = DinoV2.load(str(tmp_path / "dino"))
    images = random_images(2, 3, 224, 224)
    pixels = images / 255
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        pixels[:, channel] = (pixels[:, channel] - mean) / deviation
    found = features(images)
    torch.testing.assert_close(found.features, net(pixel_values=pixels).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    assert (features.name, features.dimension, features.device.type) == ("dinov2", 16, "cpu")
    assert (found.spatial, found.probabilities, features.channels) == (None, None, None)
    assert found.features[0].sub(found.features[1]).abs().max() > 1e-3


def test_resizes_as_pil_does(folder):
    features = DinoV2.load(str(folder))
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for size in ((64, 48), (300, 400)):  # larger and smaller than the network's; both with an overshoot to clip
        image = Image.fromarray(small).resize(size, Image.Resampling.NEAREST)
        resized = image.resize((224, 224), Image.Resampling.BICUBIC)
        ours, theirs = (features(torch.from_numpy(np.array(each)).permute(2, 0, 1)[None]) for each in (image, resized))
        torch.testing.assert_close(ours.features, theirs.features, rtol=0, atol=5e-3)


def test_an_image_alone_and_gray_gives_the_same(folder):
    features = DinoV2.load(str(folder))
    images = random_images(3, 1, 32, 32)
    both = features(images.expand(-1, 3, -1, -1)).features
    torch.testing.assert_close(features(images[1:2]).features, both[1:2], rtol=1e-4, atol=1e-5)


def cubic(distance):
    """Keys' kernel with a = -3/4, torch's."""
    d = abs(distance)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_positions_are_resampled_as_published():
    """At i the published network reads (i + 1/2) 37/16.1 - 1/2, not (i + 1/2) 37/16 - 1/2."""
    table = torch.randn(1, 1 + 37 * 37, 5)
    found = positions(table, 16)
    assert found.shape == (1, 257, 5)
    assert torch.equal(found[:, 0], table[:, 0])
    grid = table[0, 1:].reshape(37, 37, 5)
    for i, j in ((3, 7), (0, 15)):
        y, x = ((k + 0.5) * 37 / 16.1 - 0.5 for k in (i, j))
        expected = sum(
            cubic(y - r) * cubic(x - c) * grid[min(max(r, 0), 36), min(max(c, 0), 36)]
            for r in range(int(y) - 1, int(y) + 3)
            for c in range(int(x) - 1, int(x) + 3)
        )
        torch.testing.assert_close(found[0, 1 + 16 * i + j], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(positions(found, 16), found)


@torch.no_grad()
def test_the_network_uses_these_positions(tmp_path):
    net = tiny(tmp_path / "dino", image_size=518)
    features = DinoV2.load(str(tmp_path / "dino"))
    images = random_images(1, 3, 224, 224)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    pixels = (images / 255 - mean) / deviation
    found, size_wise = features(images).features, net(pixel_values=pixels).last_hidden_state[:, 0]
    net.embeddings.interpolate_pos_encoding = lambda x, height, width: positions(net.embeddings.position_embeddings, 16)
    torch.testing.assert_close(found, net(pixel_values=pixels).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, size_wise, rtol=1e-4, atol=1e-5)


def test_identity_is_that_of_the_weights(folder, tmp_path):
    first = DinoV2.load(str(folder)).weights
    assert len(first) == 16
    assert DinoV2.load(str(folder)).weights == first
    state = load_file(folder / "model.safetensors")
    state["layernorm.bias"][0] += 1
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert DinoV2.load(str(folder)).weights != first


class TestRefusals:
    def refused(self, source, match):
        with pytest.raises(InputError, match=match) as caught:
            DinoV2.load(str(source))
        assert "\n" not in str(caught.value)
        assert "as feature weights" in str(caught.value)

    def test_another_network(self, tmp_path):
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        transformers.ViTModel(transformers.ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
        self.refused(tmp_path / "vit", r"vit is not a DINOv2 model \(model_type: vit\)")

    def test_a_folder_without_a_model(self, tmp_path):
        self.refused(tmp_path, "is not a DINOv2 model")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
        self.refused(tmp_path, "cannot be loaded .*model.safetensors")
        self.refused(tmp_path / "nowhere", "nowhere is neither a folder nor a hub id")

    def test_weights_that_are_missing_external_or_incomplete(self, folder):
        file = folder / "model.safetensors"
        state = load_file(file)
        whole = file.read_bytes()
        save_file({name: value for name, value in state.items() if name != "layernorm.bias"}, file, {"format": "pt"})
        self.refused(folder, r"does not hold layernorm\.bias")
        save_file(state | {"layernorm.bias": torch.zeros(3)}, file, {"format": "pt"})
        self.refused(folder, r"does not hold layernorm\.bias")
        file.write_bytes(whole[:100])
        self.refused(folder, "cannot be loaded")

    def test_an_unreachable_hub(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.refused("nobody/has-this", "nobody/has-this cannot be loaded")

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(InputError, match=r"pip install 'ditlab\[dino\]'"):
            DinoV2.load()
