import hashlib
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditlab.core.errors import InputError
from ditlab.evaluation.features import inception as module
from ditlab.evaluation.features.inception import Inception, InceptionNet, build, resize


def formula(shapes):
    """Weights that keep activations near one; RandomState's streams never change."""
    state = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        noise = torch.from_numpy(np.random.RandomState(i).uniform(-1, 1, tuple(shape)).astype(np.float32))
        if name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + (0.5 if name.endswith("var") else 0.3) * noise
        else:
            state[name] = noise * (0.3 if len(shape) == 1 else (6 / noise[0].numel()) ** 0.5)
    return state


def random_images(*shape):
    return torch.from_numpy(np.random.RandomState(1000).randint(0, 256, shape).astype(np.uint8))


@pytest.fixture(scope="module")
def shapes():
    with torch.device("meta"):
        state = InceptionNet().state_dict()
    return {name: value.shape for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture
def hollow(shapes):
    """Weights of the right shapes that take no room in a file."""
    return {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def inception(shapes):
    return Inception(build(formula(shapes), "formula"), "formula")


def test_names_and_shapes_are_the_published_ones(shapes):
    listing = "\n".join(f"{name} {tuple(shapes[name])}" for name in sorted(shapes))
    assert len(shapes) == 472
    assert shapes["fc.weight"] == (1008, 2048)
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "d84f693f2abd7fea"  # of torch-fidelity 0.4.0


def test_agrees_with_torch_fidelity(inception, golden):
    """Their network, with the weights of the formula."""
    vectors, images = golden("inception"), random_images(2, 3, 24, 40)
    assert torch.equal(resize(images[:1].float(), 299)[:, :, ::37, ::41], vectors["resized"])
    found = inception(images)
    assert [len(found.features[0]), len(found.spatial[0]), len(found.probabilities[0])] == [2048, 2023, 1008]
    torch.testing.assert_close(found.features[:, ::8], vectors["pool"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.spatial[:, ::5], vectors["spatial"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.probabilities[:, ::4], vectors["probabilities"], rtol=1e-3, atol=1e-6)
    assert vectors["pool"].std() > 1  # the vectors say something
    assert not found.features.requires_grad


@pytest.mark.slow
def test_an_image_alone_and_gray_gives_the_same(inception):
    images = random_images(2, 3, 20, 20)
    images[1] = images[1, :1]
    both, first, gray = inception(images), inception(images[:1]), inception(images[1:, :1])
    for alone, row in ((first, 0), (gray, 1)):
        for name in ("features", "spatial", "probabilities"):
            value = getattr(both, name)[row : row + 1]
            torch.testing.assert_close(getattr(alone, name), value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first.features, gray.features, rtol=0.01)


def test_resize_by_hand():
    grown = resize(torch.tensor([[[[0.0, 10.0], [20.0, 40.0]]]]), 4)[0, 0]
    assert grown.tolist() == [[0, 5, 10, 10], [10, 17.5, 25, 25], [20, 30, 40, 40], [20, 30, 40, 40]]
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(ramp, 2)[0, 0].tolist() == [[0, 2], [8, 10]]  # pixels are left out, none is mixed
    assert resize(ramp[:, :, :3, :3], 2)[0, 0].tolist() == [[0, 1.5], [6, 7.5]]
    assert torch.equal(resize(ramp, 4), ramp)


class TestFiles:
    @pytest.fixture(autouse=True)
    def alone(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(module.VARIABLE, raising=False)
        monkeypatch.setattr(module, "urlopen", offline)

    def test_extra_tensors_and_legacy_files_are_read(self, hollow, tmp_path):
        extra = {"AuxLogits.fc.bias": torch.zeros(3), "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(7)}
        torch.save(hollow | extra, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        found = Inception.load(str(tmp_path / "a.pt"), torch.device("cpu"))
        assert (found.name, found.dimension, found.device) == ("inception", 2048, torch.device("cpu"))
        assert found.weights == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()[:16]
        assert not found.net.training
        assert not any(value.requires_grad for value in found.net.parameters())

    def test_safetensors_of_half_precision(self, hollow, tmp_path):
        file = tmp_path / "a.safetensors"
        save_file({name: value.half().contiguous() for name, value in hollow.items()}, file)
        net = Inception.load(str(file)).net
        file.unlink()  # 48 MB
        assert {value.dtype for value in net.parameters()} == {torch.float32}
        assert net.fc.weight[3, 4] == 0.5

    def test_loading_uses_no_random_numbers(self, hollow):
        before = torch.get_rng_state()
        build(hollow, "memory")
        assert torch.equal(torch.get_rng_state(), before)

    def test_what_is_missing_or_external_is_named(self, hollow, tmp_path):
        file = str(tmp_path / "a.pth")
        rest = dict(hollow)
        del rest["fc.weight"], rest["Mixed_7c.branch_pool.bn.bias"]
        torch.save(rest, file)
        with pytest.raises(InputError, match=r"a\.pth lacks Mixed_7c.*2 of 472 .*as feature weights"):
            Inception.load(file)
        torch.save(hollow | {"fc.weight": torch.zeros(1000, 1)}, file)
        with pytest.raises(InputError, match=r"a\.pth: fc\.weight is \(1000, 1\), not \(1008, 2048\); .*download"):
            Inception.load(file)
        torch.save([1], file)
        with pytest.raises(InputError, match="472 of 472"):
            Inception.load(file)

    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    @pytest.mark.parametrize("share", [0, 0.3, 0.9])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_a_torn_file(self, tmp_path, name, share, legacy):
        file, state = tmp_path / name, {"fc.bias": torch.ones(1008)}
        if name.endswith("pth"):
            torch.save(state, file, _use_new_zipfile_serialization=not legacy)
        else:
            save_file(state, file)
        whole = file.read_bytes()
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=rf"{name} is not a weight file, or incomplete \(.*\); download"):
            Inception.load(str(file))

    def test_a_file_that_is_not_what_its_name_says(self, tmp_path):
        file = tmp_path / module.FILE
        file.write_bytes(b"abc")
        with pytest.raises(InputError, match="damaged: its SHA-256 begins with ba7816bf, not 6726825d; remove it"):
            Inception.load(str(file))

    def test_no_such_file(self, tmp_path, monkeypatch):
        with pytest.raises(InputError, match=r"here\.pth: No such file.*as feature weights"):
            Inception.load(str(tmp_path / "here.pth"))
        monkeypatch.setenv(module.VARIABLE, str(tmp_path / "there.pth"))
        with pytest.raises(InputError, match=r"there\.pth: No such file"):
            Inception.load()

    def test_without_a_network(self, tmp_path):
        with pytest.raises(
            InputError, match=r"cannot be downloaded .*no route.*on another machine download https://\S+"
        ):
            Inception.load()
        assert list((tmp_path / "cache" / "ditlab").iterdir()) == []

    def test_fetched_once_and_only_whole(self, hollow, tmp_path, monkeypatch):
        published = tmp_path / "published.pth"
        torch.save(hollow, published)
        digest = hashlib.sha256(published.read_bytes()).hexdigest()
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(module.VARIABLE, raising=False)
        monkeypatch.setattr(module, "ADDRESS", published.as_uri())
        monkeypatch.setattr(module, "FILE", "net-00000000.pth")
        with pytest.raises(InputError, match="is incomplete; try again"):
            Inception.load()
        assert list((tmp_path / "cache" / "ditlab").iterdir()) == []
        monkeypatch.setattr(module, "FILE", f"net-{digest[:8]}.pth")
        monkeypatch.setattr(module, "PUBLISHED", digest[:8])
        assert Inception.load().weights == digest[:16]
        monkeypatch.setattr(module, "urlopen", offline)
        assert Inception.load().weights == digest[:16]  # from the cache
        assert len(list((tmp_path / "cache" / "ditlab").iterdir())) == 1


def offline(*args, **options):
    raise URLError("no route to host")
