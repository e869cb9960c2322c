import pytest
import torch

from ditlab.evaluation.reconstruction import psnr, ssim


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 20, 24), generator=torch.Generator().manual_seed(0)).byte()


def test_psnr_of_a_known_error(images):
    other = torch.where(images > 127, images - 10, images + 10)
    assert psnr(images, other).tolist() == pytest.approx([28.1308] * 3, abs=1e-3)
    assert psnr(images, images).isinf().all()


def test_ssim_is_one_for_equal_images_and_near_zero_for_unrelated(images):
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3)
    assert (ssim(images, images.flip(3)).abs() < 0.15).all()


def test_ssim_of_flat_images_is_the_luminance_term():
    a, b = torch.full((1, 1, 16, 16), 100).byte(), torch.full((1, 1, 16, 16), 150).byte()
    c1 = 2.55**2
    assert ssim(a, b).item() == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1))


def test_ssim_against_a_window_by_hand(images):
    # One place only: 11x11 images.
    a, b = images[:1, :1, :11, :11].double(), images[1:2, :1, :11, :11].double()
    x = torch.arange(11).double() - 5
    w = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / 4.5)
    w = w / w.sum()
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb, cab = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * ma * mb + c1) * (2 * cab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(a.byte(), b.byte()).item() == pytest.approx(expected.item())


def test_small_images_have_a_smaller_window(images):
    small = images[:, :, :8, :8]
    assert ssim(small, small).tolist() == pytest.approx([1.0] * 3)
