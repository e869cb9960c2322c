import pytest
import torch

from ditlab.autoencoders import Absent, Pixel
from ditlab.diffusion.process import Linear


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 3, 5, 4, 6)])
def test_images_and_videos_are_scaled_and_keep_their_shape(shape):
    x = torch.randint(0, 256, shape).byte()
    autoencoder = Pixel()
    x0 = autoencoder.latents(autoencoder.encode(x), torch.zeros_like)
    assert x0.abs().max() <= 1
    assert torch.equal(autoencoder.decode(x0), x)
    for each in (autoencoder, Absent()):
        assert each.latent_shape(3, shape[2:]) == (3, shape[2:])


def test_each_video_has_its_own_noise_level():
    x0, t = torch.ones(2, 3, 5, 4, 6), torch.tensor([0.25, 0.5], dtype=torch.float64)
    x = Linear().add_noise(x0, torch.zeros_like(x0), t)
    assert torch.allclose(x, 1 - t.float().reshape(2, 1, 1, 1, 1).expand_as(x))
