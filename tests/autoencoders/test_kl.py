import re

import pytest
import torch
from helpers import relative

from ditlab.autoencoders import KL, create_autoencoder, latent
from ditlab.core.errors import InputError
from ditlab.core.values import PixelValues

TINY = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 4,
    "sample_size": 32,
}


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    return KL(TINY, shift=[0.1, -0.2, 0.3, 0.0], scale=[2.0, 0.5, 1.0, 4.0]).eval().requires_grad_(False)


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (3, 3, 32, 24), generator=torch.Generator().manual_seed(1)).byte()


def test_moments_and_images_are_those_of_diffusers(autoencoder, pictures):
    moments = autoencoder.encode(pictures)
    posterior = autoencoder.net.encode(pictures.float() / 127.5 - 1).latent_dist
    assert relative(moments[:, :4], posterior.mean) < 1e-6
    assert relative(moments[:, 4:], posterior.logvar) < 1e-6
    eps = torch.randn(3, 4, 8, 6)
    z = posterior.mean + posterior.std * eps
    x0 = autoencoder.latents(moments, lambda like: eps)
    shift, scale = (torch.tensor(autoencoder.config[name]).reshape(1, 4, 1, 1) for name in ("shift", "scale"))
    assert relative(x0, (z - shift) * scale) < 1e-6
    theirs = (autoencoder.net.decode(z).sample.clamp(-1, 1) * 127.5 + 127.5).round()
    assert (autoencoder.decode(x0).float() - theirs).abs().max() <= 1


def test_latent_shape_is_what_encode_gives(autoencoder, pictures):
    channels, size = autoencoder.latent_shape(3, (32, 24))
    assert autoencoder.encode(pictures).shape == (3, 2 * channels, *size) == (3, 8, 8, 6)
    with pytest.raises(InputError, match=r"30x24 with an autoencoder of stride 4; give .* multiples of 4"):
        autoencoder.latent_shape(3, (30, 24))


def test_gray_images_are_converted_to_rgb(autoencoder, pictures):
    grey = pictures[:, :1]
    assert torch.equal(autoencoder.encode(grey), autoencoder.encode(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(InputError, match="images with 2 channels; this autoencoder takes 3"):
        autoencoder.encode(pictures[:, :2])


def test_slices_do_not_change_the_result(autoencoder, pictures, monkeypatch):
    moments = autoencoder.encode(pictures)
    whole = autoencoder.decode(moments[:, :4])
    monkeypatch.setattr(latent, "SLICE", 1)
    assert relative(autoencoder.encode(pictures), moments) < 1e-6
    assert (autoencoder.decode(moments[:, :4]).int() - whole.int()).abs().max() <= 1


def test_tiles_are_near_the_whole(autoencoder):
    # A pattern that repeats, so that normalisation over a tile sees what it sees over the whole.
    repeats = torch.randint(0, 256, (1, 3, 8, 8)).byte().repeat(1, 1, 16, 16)
    whole = autoencoder.encode(repeats)[:, :4]
    autoencoder.tile(64)
    tiled = autoencoder.encode(repeats)[:, :4]
    assert tiled.shape == whole.shape
    assert 0 < relative(tiled, whole) < 0.2  # the borders of tiles are padded
    with pytest.raises(InputError, match="tiles of 30 pixels; give a multiple of 4, at least 8"):
        autoencoder.tile(30)


@pytest.mark.parametrize("side", [16, 32])
def test_tiles_keep_the_size_of_the_image(autoencoder, side):
    autoencoder.tile(side)
    images = torch.randint(0, 256, (1, 3, 48, 64), dtype=torch.uint8)
    moments = autoencoder.encode(images)
    assert moments.shape[-2:] == (12, 16)
    assert autoencoder.pictures(moments[:, :4]).shape[-2:] == (48, 64)
    with pytest.raises(InputError, match="tiles of 24 pixels; give a multiple of 16 for this autoencoder"):
        autoencoder.tile(24)


def test_config_builds_it_again(autoencoder, pictures):
    again = create_autoencoder(**autoencoder.config).eval()
    again.load_state_dict(autoencoder.state_dict())
    assert torch.equal(again.encode(pictures), autoencoder.encode(pictures))
    assert again.config == autoencoder.config


def test_videos_are_cut_into_slices_by_all_their_sides_and_keep_their_frames(monkeypatch):
    class Frames(latent.Latent):
        """An autoencoder of videos that encodes nothing."""

        def __init__(self):
            super().__init__(1, 1, 1, 0.5, [2.0])
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.counts = []

        def moments(self, x):
            self.counts.append(len(x))
            return torch.cat([x, torch.zeros_like(x)], dim=1)

        def pictures(self, z):
            return z

    autoencoder = Frames()
    videos = torch.randint(0, 256, (4, 1, 3, 8, 4)).byte()
    monkeypatch.setattr(latent, "SLICE", 2 * 3 * 8 * 4)
    assert autoencoder.latent_shape(1, (3, 8, 4)) == (1, (3, 8, 4))
    x0 = autoencoder.latents(autoencoder.encode(videos), torch.zeros_like)
    assert autoencoder.counts == [6, 6]  # frames
    assert torch.equal(autoencoder.decode(x0), videos)


def test_other_numbers_than_8_bits_are_refused(autoencoder):
    thirteen = PixelValues("uint16", (0.0,), (4095.0,))
    line = (
        "images with 13 channels of uint16, 0..4095; this autoencoder encodes 3 channels of 8 bits; train one on these "
        "images, or use pixels"
    )
    with pytest.raises(InputError, match=re.escape(line)):
        autoencoder.check_images(13, thirteen)
    with pytest.raises(InputError, match="images with 4 channels of uint8"):
        autoencoder.check_images(4, PixelValues())
    autoencoder.check_images(1, PixelValues())  # gray images become RGB
    with pytest.raises(InputError, match=r"images of torch.float32; this autoencoder takes 8 bits"):
        autoencoder.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="an autoencoder of the kind kl decodes to 8 bits only"):
        autoencoder.decode_as(torch.zeros(1, 4, 8, 8), thirteen)
