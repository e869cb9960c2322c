import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import posix_only
from PIL import Image
from rich.console import Console

from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation import gather
from ditlab.evaluation import memorization as module
from ditlab.evaluation.features import Extracted, Features, open_features
from ditlab.evaluation.memorization import memorization
from ditlab.evaluation.metrics import neighbors
from ditlab.evaluation.metrics.neighbors import neighbor_ratio

QUIET = Console(quiet=True)


class Pixels(Features):
    """The pixels themselves, a few of them rounded away so that there are ties; may be stopped after so many calls."""

    name, weights, dimension = "pixels", "0", 16

    def __init__(self, calls=10**9):
        self.seen, self.left = 0, calls

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.seen += len(images)
        return Extracted((images // 64).float().flatten(1))


def pictures(count, seed):
    images = torch.randint(256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
    return InMemory(images, torch.zeros(count, dtype=torch.long), [])


@pytest.fixture
def sets():
    """Samples, of which some are copies; training pictures, of which some are there twice; held-out pictures."""
    samples, training, held_out = pictures(37, 0), pictures(103, 1), pictures(29, 2)
    training.images[90:] = training.images[:13]
    samples.images[5:15] = training.images[5:15]
    return samples, training, held_out


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(gather, "BLOCK", 10)
    monkeypatch.setattr(gather, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(neighbors, "TILE", 8)
    monkeypatch.setattr(module, "PATIENCE", 0.02)


def by_hand(samples, training, held_out):
    """Both numbers, and the nearest four of the ten closest samples, equally near ones by number."""
    features = Pixels()
    a, b, c = (features(each.images).features.double() for each in (samples, training, held_out))
    near, unseen = torch.cdist(a, b), torch.cdist(c, b)
    order = near.argsort(dim=1, stable=True)[:, :4]
    return *neighbor_ratio(near.amin(1), unseen.amin(1)), near.amin(1), order


def run(sets, out, features=None, **options):
    return memorization(*sets, features or Pixels(), out, QUIET, **{"protocol": {"of": "tests"}} | options)


@pytest.mark.slow
def test_tells_copies(tmp_path):
    train, unseen, features = digits(), held_out_digits(), open_features("digits")
    part = type(train)(train.images[:100], train.labels[:100], train.classes)
    copies = run((part, train, unseen), tmp_path / "a.png", features)
    assert copies.ratio == pytest.approx(0, abs=1e-6)
    assert copies.closer == 1
    first, second = (type(unseen)(unseen.images[i::2], unseen.labels[i::2], unseen.classes) for i in (0, 1))
    fresh = run((first, train, second), tmp_path / "b.png", features)
    assert 0.85 < fresh.ratio < 1.15
    assert 0.45 < fresh.closer < 0.55
    assert "1,437 training images" in fresh.verdict()
    assert Image.open(tmp_path / "a.png").height > 400


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_any_batch_size_finds_what_all_pairs_give(sets, tmp_path, small, monkeypatch, batch_size):
    shown = []
    monkeypatch.setattr(module, "show", lambda *values: shown.append(values) or values[-1].touch())
    found = run(sets, tmp_path / "a.png", batch_size=batch_size)
    ratio, closer, distances, order = by_hand(*sets)
    assert (found.ratio, found.closer) == pytest.approx((ratio, closer), abs=1e-7)
    ((_, _, closest, places, reported, _),) = shown
    assert set(closest.tolist()) == set(range(5, 15))  # the copies
    assert torch.equal(places, order[closest])
    torch.testing.assert_close(reported, distances[closest], atol=1e-6, rtol=0)


def test_a_run_that_is_stopped_again_and_again_ends_where_an_undisturbed_one_does(sets, tmp_path, small):
    whole = run(sets, tmp_path / "whole.png")
    stops, seen = 0, 0
    while True:
        features = Pixels(calls=2)
        try:
            found = run(sets, tmp_path / "a.png", features, batch_size=10)
            break
        except KeyboardInterrupt:
            stops += 1
        finally:
            seen += features.seen
    assert stops > 5
    assert seen == 37 + 103 + 29  # no picture twice
    assert (found.ratio, found.closer) == (whole.ratio, whole.closer)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png", "whole.json", "whole.png"]


def test_processes_share_the_work(sets, tmp_path, small):
    whole = run(sets, tmp_path / "whole.png")
    features = [Pixels() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda i: run(sets, tmp_path / "a.png", features[i], rank=i, world=3, batch_size=10), range(3))
        )
    assert any(found)
    assert all(each is None or (each.ratio, each.closer) == (whole.ratio, whole.closer) for each in found)
    assert [each.seen for each in features] == [17 + 10 + 40, 10 + 10 + 33, 10 + 9 + 30]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_processes_without_a_share_find_what_the_others_found(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.02)
    with ThreadPoolExecutor(3) as pool:  # each set is one block
        found = list(pool.map(lambda i: run(sets, tmp_path / "a.png", rank=i, world=3), (2, 1, 0)))
    assert found[2].ratio > 0
    assert all(each in (None, found[2]) for each in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_the_same_call_returns_the_existing_result(sets, tmp_path, small):
    first = run(sets, tmp_path / "a.png")
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["ratio"], written["protocol"]["counts"]) == (first.ratio, [37, 103, 29])
    features = Pixels()
    assert run(sets, tmp_path / "a.png", features) == first
    assert features.seen == 0
    run(sets, tmp_path / "a.png", features, protocol={"of": "others"})
    assert features.seen == 169
    sets[1].preprocessing = {"fit": "stretch"}
    run(sets, tmp_path / "a.png", features, protocol={"of": "others"})
    assert features.seen == 2 * 169
    (tmp_path / "a.json").write_text("{")
    again = run(sets, tmp_path / "a.png")
    assert (again.ratio, again.closer) == (first.ratio, first.closer)


def test_mistakes(sets, tmp_path):
    samples, training, held_out = sets
    small = InMemory(held_out.images[:, :, :2], held_out.labels, [])
    with pytest.raises(InputError, match="held-out images of 1x2x4, samples of 1x4x4"):
        run((samples, training, small), tmp_path / "a.png")
    with pytest.raises(InputError, match="1 sample; give 2 or more"):
        run((InMemory(samples.images[:1], samples.labels[:1], []), training, held_out), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg; give a file that ends in \.png"):
        run(sets, tmp_path / "a.jpg")
    with pytest.raises(InputError, match="most held-out images are equal to training images"):
        run((samples, training, training), tmp_path / "a.png")
    same = InMemory(torch.full_like(held_out.images, 7), held_out.labels, [])
    with pytest.raises(InputError, match="all 29 images have the same features"):
        run((samples, training, same), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def killed(sets, out, seconds):
    """The same in a process that is killed after some time; whether it was killed before its end."""
    process = os.fork()
    if process == 0:
        try:
            run(sets, out, Slow(), batch_size=10)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


class Slow(Pixels):
    """Pixels, ten milliseconds a call."""

    def __call__(self, images):
        time.sleep(0.01)
        return super().__call__(images)


@posix_only
@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(sets, tmp_path, small):
    whole = run(sets, tmp_path / "whole.png", Slow(), batch_size=10)
    chance = random.Random(0)
    kills = 0
    while killed(sets, tmp_path / "a.png", chance.uniform(0.01, 0.12)):
        kills += 1
    assert kills > 3
    found = run(sets, tmp_path / "a.png")
    assert (found.ratio, found.closer) == (whole.ratio, whole.closer)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".")  # but for a draft
    assert names == ["a.json", "a.png", "whole.json", "whole.png"]
