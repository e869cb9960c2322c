import threading
import time
from contextlib import contextmanager

import pytest
import torch
from helpers import relative, smooth, tiny_pipeline

from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.server.batching import Call, Canceled, Engine, filled_rows


@pytest.fixture
def pipe():
    return smooth(tiny_pipeline())


@pytest.fixture
def engine(pipe):
    calls = []
    made = Engine(pipe, rows=16, on_call=lambda rows, seconds: calls.append(rows))
    made.seen = calls
    yield made
    made.close()
    assert not made.thread.is_alive()


def last(steps):
    for step in steps:  # noqa: B007
        pass
    return step.x


def together(*works):
    """The results of functions that run in threads at the same time."""
    found, ready = [None] * len(works), threading.Barrier(len(works))

    def run(i):
        ready.wait()
        try:
            found[i] = works[i]()
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return found


REQUESTS = [
    {"labels": [0, 1], "seeds": [1, 2], "num_inference_steps": 6, "sampler": "ab4", "guidance_scale": 2.0},
    {"labels": [2], "seeds": [3], "num_inference_steps": 11, "sampler": "heun", "guidance_scale": 1.0},
    {"labels": [None], "seeds": [4], "num_inference_steps": 4, "sampler": "dpmpp"},
    {"labels": [1] * 3, "seeds": [5, 6, 7], "num_inference_steps": 9, "sampler": "sde", "guidance_scale": 3.0}
    | {"guidance_interval": (0.2, 0.6)},
]


def test_images_do_not_depend_on_other_requests(pipe, engine):
    never = threading.Event()
    found = together(*[lambda request=request: last(engine.steps(stop=never, **request)) for request in REQUESTS])
    for request, latents in zip(REQUESTS, found, strict=True):
        assert relative(latents, last(pipe.steps(**request))) < 1e-5
    assert max(engine.seen) > 6  # rows of several generations in one call
    assert len(engine.seen) < 6 + 21 + 4 + 9


def test_a_network_call_has_at_most_the_allowed_rows(engine):
    never = threading.Event()
    order = {"labels": [0] * 6, "seeds": list(range(6)), "num_inference_steps": 5, "guidance_scale": 1.0}
    together(*[lambda: last(engine.steps(stop=never, **order)) for _ in range(5)])
    assert max(engine.seen) == 12  # two of the six; a third would be 18
    large = {"labels": [0] * 40, "seeds": list(range(40)), "num_inference_steps": 2, "guidance_scale": 1.0}
    assert last(engine.steps(stop=never, **large)).shape[0] == 40
    assert engine.seen[-1] == 40


def test_joint_batches_have_few_numbers_of_rows(engine):
    numbers = sorted({filled_rows(rows) for rows in range(1, 65)})
    assert numbers == [*range(1, 9), 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
    computed, whole = [], engine.pipe.net.forward
    engine.pipe.net.forward = lambda x, t, y: computed.append(len(x)) or whole(x, t, y)
    x, t, label = torch.randn(15, 1, 8, 8), torch.rand(15), torch.arange(15) % 3

    def outputs(*counts):
        parts = zip(*(value[: sum(counts)].split(counts) for value in (x, t, label)), strict=True)
        calls = [Call(*given, Condition(label=labels)) for *given, labels in parts]
        engine._compute(calls)
        return torch.cat([call.output for call in calls])

    alone = outputs(15)
    assert relative(outputs(4, 5), alone[:9]) < 1e-5
    assert relative(outputs(7, 8), alone) < 1e-5
    engine.rows = 15
    assert relative(outputs(7, 8), alone) < 1e-5
    assert computed == [15, 10, 16, 15]  # a single call is not filled up, nor are there more rows than the limit


def test_a_canceled_generation_ends_before_its_next_network_call(engine):
    stop = threading.Event()
    steps = engine.steps([0], [0], stop, num_inference_steps=50, guidance_scale=1.0)
    next(steps)
    calls = len(engine.seen)
    stop.set()
    with pytest.raises(Canceled):
        next(steps)
    assert len(engine.seen) == calls
    assert engine.active == 0


def test_calls_in_a_context_are_not_batched(pipe, engine):
    never, watched = threading.Event(), []

    @contextmanager
    def around():
        before = len(engine.seen)
        yield
        watched.append(before)

    works = [lambda: last(engine.steps(stop=never, context=around, **REQUESTS[0]))]
    works += [lambda: last(engine.steps(stop=never, **REQUESTS[0]))] * 2
    one, other, _ = together(*works)
    assert relative(one, other) < 1e-5
    assert len(watched) == 7  # ab4 makes one call more than it has steps
    assert [engine.seen[i] for i in watched] == [4] * 7  # two images, conditional and unconditional
    assert max(engine.seen) == 8


def test_an_error_reaches_only_the_request_that_caused_it(pipe, engine):
    never = threading.Event()
    whole = pipe.net.forward

    def forward(x, t, y):
        if (x.flatten(1)[:, 0] == 7).any():
            raise RuntimeError("spoilt")
        time.sleep(0.01)
        return whole(x, t, y)

    engine.pipe.net.forward = forward

    def spoil():
        return engine._send(
            Call(torch.full((1, 1, 8, 8), 7.0), torch.tensor([1.0]), Condition(label=torch.tensor([0])))
        )

    order = {"labels": [1], "seeds": [1], "num_inference_steps": 4, "guidance_scale": 1.0}
    good, bad = together(lambda: last(engine.steps(stop=never, **order)), spoil)
    assert isinstance(bad, RuntimeError)
    assert good.shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match='unknown sampler "hune"'):
        engine.steps([0], [0], never, sampler="hune")
