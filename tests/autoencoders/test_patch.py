import pytest
import torch
from helpers import perturbed, relative

from ditlab.autoencoders import Patch, create_autoencoder
from ditlab.autoencoders.io import fingerprint
from ditlab.checkpoints import load_autoencoder, save_autoencoder
from ditlab.core.errors import InputError


@pytest.fixture
def pictures():
    """Pictures whose 2x2 patches lie near a plane: each is a mix of two fixed patches and a little noise."""
    chance = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 12, generator=chance)
    mix = torch.randn(40, 2, 6, 8, generator=chance) * torch.tensor([3.0, 1.0]).reshape(2, 1, 1)
    values = torch.einsum("bkhw,kp->bphw", mix, patches) + 0.02 * torch.randn(40, 12, 6, 8, generator=chance)
    return (torch.nn.functional.pixel_shuffle(values, 2) * 12 + 128).round().clamp(0, 255).byte()


def make(**options):
    torch.manual_seed(0)
    return Patch(**{"picture_channels": 3, "latent_channels": 2, "stride": 2, "width": 16, "depth": 1} | options)


def test_it_starts_as_the_principal_components(pictures):
    autoencoder = make()
    autoencoder.start_from(pictures)
    mean, log_variance = autoencoder.encode(pictures).chunk(2, dim=1)
    assert mean.mean((0, 2, 3)).abs().max() < 1e-4
    assert torch.cov(mean.movedim(1, 0).flatten(1)).tolist() == [
        pytest.approx([1.0, 0.0], abs=1e-3),
        pytest.approx([0.0, 1.0], abs=1e-3),
    ]
    assert (log_variance == -6).all()
    patches = torch.nn.functional.pixel_unshuffle(pictures.double() / 127.5 - 1, 2).movedim(1, 0).flatten(1)
    lost = torch.linalg.eigvalsh(torch.cov(patches))[:-2].sum() / 12  # the best that two numbers can do
    error = autoencoder.pictures(mean) - (pictures / 127.5 - 1)
    assert error.square().mean().item() == pytest.approx(lost.item(), rel=0.01)


def test_the_network_adds_to_the_linear_part_and_every_weight_learns(pictures):
    autoencoder = perturbed(make(), 0.05)
    x = pictures[:4] / 127.5 - 1
    mean, log_variance = autoencoder.moments(x).chunk(2, dim=1)
    (autoencoder.pictures(mean + (log_variance / 2).exp()) - x).square().mean().backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    patches = torch.nn.functional.pixel_unshuffle(x, 2)
    assert torch.allclose(mean, autoencoder.analysis(patches) + autoencoder.encoder(patches)[:, :2], atol=1e-6)


def test_a_flat_image_keeps_its_color():
    """Nothing is normalised over places."""
    autoencoder = perturbed(make(latent_channels=4), 0.1)
    with torch.no_grad():
        grey, blue = (autoencoder.moments(torch.full((1, 3, 12, 12), value))[0, :, 3, 3] for value in (0.1, 0.2))
    assert relative(grey, blue) > 0.01


@pytest.mark.parametrize("side", [4, 6, 10])
def test_tiles_are_exact(pictures, side):
    autoencoder = perturbed(make(), 0.1).eval()
    images = pictures.repeat(1, 1, 3, 2)[:2]
    with torch.no_grad():
        whole = autoencoder.encode(images)
        drawn = autoencoder.pictures(whole[:, :2])
        autoencoder.tile(side)
        assert autoencoder.tiles == side // 2
        assert relative(autoencoder.encode(images), whole) < 1e-5
        assert relative(autoencoder.pictures(whole[:, :2]), drawn) < 1e-5
    with pytest.raises(InputError, match="tiles of 7 pixels; give a multiple of 2, at least 4"):
        autoencoder.tile(7)


def test_saved_and_read_again_it_is_the_same(pictures, tmp_path):
    autoencoder = perturbed(make(shift=[0.5, -0.25], scale=[2.0, 4.0]), 0.1).eval()
    save_autoencoder(autoencoder, tmp_path / "own")
    again = load_autoencoder(tmp_path / "own")
    assert again.config == autoencoder.config
    assert fingerprint(again) == fingerprint(autoencoder)
    moments = again.encode(pictures)
    assert torch.equal(moments, autoencoder.encode(pictures))
    x0 = again.latents(moments, torch.zeros_like)
    shift, scale = torch.tensor([0.5, -0.25]).reshape(2, 1, 1), torch.tensor([2.0, 4.0]).reshape(2, 1, 1)
    assert torch.allclose(x0, (moments[:, :2] - shift) * scale)
    assert torch.equal(again.decode(x0), autoencoder.decode(x0))
    assert load_autoencoder(tmp_path / "own", scale=3.0).config["scale"] == 3.0
    assert create_autoencoder(**autoencoder.config).config == autoencoder.config


def test_damaged_folders(tmp_path):
    save_autoencoder(make(), tmp_path / "own")
    file = tmp_path / "own" / "autoencoder.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(InputError, match=r"is damaged: autoencoder\.safetensors has [0-9,]+ bytes instead of"):
        load_autoencoder(tmp_path / "own")
    file.write_bytes(content)
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace("depth", "height"))
    with pytest.raises(InputError, match="is not a complete autoencoder"):
        load_autoencoder(tmp_path / "own")
