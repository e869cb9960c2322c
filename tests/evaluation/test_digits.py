import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.data.builtin.digits import digits
from ditlab.evaluation import score_digits


def test_score_tells_real_from_false():
    train = digits()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(5))[:1000]
    images, labels = train.images[order], train.labels[order]
    real = score_digits(images, labels)
    assert real.classifier_accuracy >= 0.98
    assert real.accuracy >= 0.98
    assert real.fd == pytest.approx(real.fd_floor, rel=0.25)  # other 1,000 of the same 1,437
    false = score_digits((images.float() + 60 * torch.randn(images.shape)).clamp(0, 255).byte(), labels.roll(1))
    assert false.accuracy < 0.3
    assert false.fd > 3 * real.fd_floor
    assert false.fd_floor == real.fd_floor


def test_wrong_images_are_rejected():
    with pytest.raises(InputError, match=r"\(3, 8, 8\)"):
        score_digits(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), torch.zeros(100))
    with pytest.raises(InputError, match="10 samples"):
        score_digits(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.zeros(10))
