import pytest
import torch
from helpers import smooth, tiny_pipeline

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.inference.optimize.reuse import Reuse
from ditlab.inference.optimize.reuse_error import ErrorReuse

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
    with pytest.raises(InputError, match="ADM does not support feature caching; leave reuse_error out"):
        ErrorReuse(0.1).on(net)


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


def wanted(residual, times, error):
    """At which times a row is computed, as the rule says it: one row, in plain numbers."""
    nodes, bend, chosen = [], None, []
    for t in times:
        far = [abs(t - node) for node in nodes]
        skipped = bend is not None and bend * far[0] * far[1] <= error and far[0] <= 2 * abs(nodes[0] - nodes[1])
        chosen.append(not skipped)
        if not skipped:
            value = residual(t)
            if len(nodes) == 2:
                first, second = (residual(node) for node in nodes)
                line = first + (first - second) * (t - nodes[0]) / (nodes[0] - nodes[1])
                bend = float((value - line).norm() / value.norm()) / (far[0] * far[1])
            nodes = [t, *nodes[:1]]
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DiT-S/4", "U-DiT-S"])
def test_each_row_is_computed_where_its_error_would_be_larger(name):
    torch.manual_seed(0)
    net = create(name, size=16, channels=2, classes=5, learn_variance=False, **SIZES[name]).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, label = torch.randn(3, 2, 16, 16), torch.tensor([0, 1, 5])
    times = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3]
    factors, computed = torch.tensor([0.5, 1.0, 2.0]), [[], [], []]

    class Curved(type(net)):
        """Adds a sine of the time to all values, of another frequency in each row."""

        def inner(self, x, *context):
            for row in cache.rows.tolist():
                computed[row].append(cache.time)
            curve = torch.sin(6 * factors[cache.rows] * cache.time) + 2
            return x + curve.reshape(-1, *[1] * (x.ndim - 1))

    net.__class__ = Curved
    cache = ErrorReuse(0.05)
    own = cache.on(net)
    denoise = cache.timed(lambda x, t, s: own(x, t.expand(3), label))
    with torch.no_grad():
        for t in times:
            denoise(x, torch.tensor(t, dtype=torch.float64), None)
    for row, factor in enumerate(factors):
        rule = wanted(lambda t, factor=factor: torch.sin(6 * factor * torch.tensor(t)) + 2, times, 0.05)
        assert computed[row] == [t for t, chosen in zip(times, rule, strict=True) if chosen]
        assert rule[:3] == [True] * 3
        assert 4 <= sum(rule) < len(times)
    assert (cache.computed, cache.asked) == (sum(map(len, computed)), 3 * len(times))


@pytest.mark.slow
def test_caching_by_error_does_not_depend_on_the_batch_and_follows_its_bound():
    pipe = smooth(tiny_pipeline())
    options = {
        "steps": 24,
        "sampler": "ddim",
        "guidance": 2.0,
        "guidance_interval": (0.0, 0.7),
    }
    labels, seeds = [0, 1, 2], [0, 1, 2]
    exact = pipe(labels, seeds=seeds, output_type="latent", **options).images
    shares, errors = [], []
    for bound in (0.003, 0.03):
        cache, single = ErrorReuse(bound), ErrorReuse(bound)
        images = pipe(labels, seeds=seeds, reuse=cache, output_type="latent", **options).images
        assert torch.allclose(
            pipe(labels, seeds=seeds, reuse=single, batch_size=1, output_type="latent", **options).images,
            images,
            atol=1e-4,
        )
        assert (cache.computed, cache.asked) == (single.computed, single.asked)
        assert cache.asked == 3 * pipe.resolve(**options).evaluations
        shares.append(cache.computed / cache.asked)
        errors.append(float((images - exact).norm() / exact.norm()))
    assert 0.2 < shares[1] < shares[0] < 1
    assert 0 < errors[0] < errors[1] < 0.05
    plan = pipe.resolve(reuse_error=0.03, steps=24)
    assert plan.settings()["reuse_error"] == 0.03
    assert torch.equal(pipe(labels, seeds=seeds, reuse_error=0.03, output_type="latent", **options).images, images)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"reuse_error": 0.02, "reuse": 2},
            "reuse and reuse_error are two forms of feature caching; leave one of them out",
        ),
        ({"reuse_error": 0}, "reuse_error 0; give a number above 0 and below 1, such as 0.1"),
        ({"reuse_error": 1.5}, "reuse_error 1.5; give a number above 0 and below 1, such as 0.1"),
        ({"reuse_error": "low"}, "reuse_error 'low'; give a number"),
        (
            {"reuse_error": 0.02, "skip_layers": (0,), "steps": 20},
            "reuse_error does not work with skip_layers; leave one of them out",
        ),
    ],
)
def test_bad_input_of_caching_by_error(options, line):
    with pytest.raises(InputError) as error:
        tiny_pipeline().resolve(**options)
    assert str(error.value) == line
