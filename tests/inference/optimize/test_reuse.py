import pytest
import torch
from helpers import tiny_pipeline

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.inference.optimize.reuse import Reuse

SIZES = {
    "DiT-S/4": {"width": 32, "depth": 2, "heads": 2},
    "Skip-DiT-S/4": {"width": 32, "depth": 5, "heads": 2},
    "U-ViT-S/2": {"width": 32, "depth": 5, "heads": 2},
    "U-DiT-S": {"width": 16, "heads": 2, "depths": [1, 1, 1, 1, 1]},
}


def counting(reuse):
    """The inner part as it is, with a list of the times at which it was computed."""
    inner, times = reuse.inner, []

    def counted(*args):
        times.append(reuse.time)
        return inner(*args)

    reuse.inner = counted
    return times


@pytest.mark.parametrize("name", SIZES)
def test_every_family_can_leave_its_inner_part_out(name):
    torch.manual_seed(0)
    net = create(name, size=16, channels=2, classes=5, learn_variance=False, **SIZES[name]).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    reuse = Reuse(3)
    own = reuse.on(net)
    times = counting(reuse)
    x, y = torch.randn(2, 2, 16, 16), torch.tensor([0, 5])
    denoise = reuse.timed(lambda x, t, s: own(x, t.expand(2), y))
    with torch.no_grad():
        outputs = [denoise(x, torch.tensor(t), None) for t in (9.0, 8.0, 7.0, 6.0)]
        assert times == [9.0, 6.0]
        assert torch.equal(outputs[0], net(x, torch.full((2,), 9.0), y))
        assert torch.equal(outputs[3], net(x, torch.full((2,), 6.0), y))
        assert not torch.equal(outputs[1], outputs[0])  # its first and last layers see the new time
    assert net.inner.__self__ is net  # the network itself is as before


def test_what_is_continued_is_a_polynomial_in_time():
    reuse = Reuse(4, order=2)

    def added(t):
        return torch.tensor([1.0, -2.0]) * t**2 + torch.tensor([3.0, 0.5]) * t

    reuse.inner = lambda x: x + added(reuse.time)
    for time in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1):
        reuse.time = time
        out = reuse(torch.ones(2))
    assert reuse.times == [0.2, 0.6, 1.0]
    assert torch.allclose(out, 1 + added(0.1), atol=1e-6)


def test_another_shape_is_computed():
    reuse = Reuse(5)
    reuse.inner = lambda x: 2 * x
    times = counting(reuse)
    for time, batch in ((1.0, 2), (0.9, 2), (0.8, 4), (0.7, 4), (0.6, 2)):
        reuse.time = time
        reuse(torch.ones(batch, 3))
    assert times == [1.0, 0.8, 0.6]


def test_images_with_feature_caching_are_near_those_without():
    pipe = tiny_pipeline()
    options = {"seeds": [0, 1], "num_inference_steps": 40, "sampler": "ddim", "output_type": "latent"}
    exact, near, rough = (pipe([0, 1], reuse=reuse, **options).images for reuse in (None, 2, 8))
    errors = [float((each - exact).norm() / exact.norm()) for each in (near, rough)]
    assert 0 < errors[0] < 0.02
    assert errors[0] < errors[1] < 0.2


def test_bad_input():
    with pytest.raises(InputError, match="reuse 1; give 2 or more"):
        tiny_pipeline()([0], reuse=1)
    net = create(
        "ADM", size=8, channels=3, classes=2, width=32, multiples=[1, 2], depth=1, attention_at=[2], head_width=16
    )
    with pytest.raises(InputError, match="ADM does not support feature caching; leave reuse out"):
        Reuse(2).on(net)


def test_what_was_compiled_stays_compiled():
    net = create("DiT-S/4", size=16, channels=2, classes=5, width=32, depth=2, heads=2)
    for block in net.repeated:
        block.compile(backend="eager")
    assert is_compiled(Reuse(2).on(net))


def test_a_cache_that_is_used_for_several_batches_forgets_earlier_images():
    pipe = tiny_pipeline()
    options = {"seeds": [0, 1, 2], "num_inference_steps": 7, "sampler": "euler", "output_type": "latent"}
    whole = pipe([0, 1, 2], reuse=3, **options).images
    parts = pipe([0, 1, 2], reuse=Reuse(3), batch_size=1, **options).images
    assert torch.allclose(whole, parts, atol=1e-5)
