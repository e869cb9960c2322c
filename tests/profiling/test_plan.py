import os

import pytest
import torch
from helpers import numbers

from ditlab.backbones import BACKBONES, Backbone, create
from ditlab.checkpoints.diffusers import outline
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Recipe
from ditlab.core.device import container_memory, total_memory
from ditlab.core.errors import InputError
from ditlab.core.units import GIB
from ditlab.core.values import PixelValues
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline
from ditlab.profiling.plan import DEVICES, lines, plan, rate
from ditlab.training.memory import Activations, largest_batch, peak

FINE_TUNING = ("finetune-dit-xl2", "finetune-dit-xl2-lora")
SMALL = {"model": {"name": "DiT", "width": 64, "depth": 4, "heads": 2, "patch": 2}, "train": {"batch": 32}}


@pytest.fixture(autouse=True)
def no_proposals(monkeypatch):
    """The search for the cheapest settings, which test_settings.py tests, takes most of the time of a plan."""
    monkeypatch.setattr("ditlab.profiling.plan.cheapest", lambda question, sizes: None)


def small():
    return create("DiT", size=16, channels=1, classes=3, learn_variance=False, width=64, depth=4, heads=2, patch=2)


@pytest.mark.slow
def test_activations_are_what_autograd_keeps():
    net = small()
    x, t, y = torch.randn(5, 1, 16, 16), torch.rand(5), torch.zeros(5).long()
    storages = {}
    own = {parameter.data_ptr() for parameter in net.parameters()}

    def keep(value):
        if value.data_ptr() not in own:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        out = net(x, t, y)
    kept, recomputed, largest, _ = Activations(small, 5).sizes()
    assert kept == pytest.approx(sum(each.nbytes() for each in storages.values()) + out.nbytes, rel=0.01)
    assert largest == 5 * 64 * 4 * 64 * 4  # pictures, tokens, width of the MLP, bytes
    assert Activations(small, 10).sizes()[0] == pytest.approx(2 * kept, rel=0.01)
    assert recomputed == 0
    recomputing = Activations(small, 5).sizes(checkpointing=True)
    assert recomputing.recomputed == pytest.approx(kept / 5)  # of four blocks and the final layer
    assert recomputing.kept + recomputing.recomputed < 0.45 * kept


@pytest.mark.slow
def test_the_parts_of_a_large_run():
    net = {"name": "DiT", "width": 384, "depth": 3, "heads": 6, "patch": 2}
    settings = {"model": net, "data": {"source": "glyphs-32"}, "train": {"batch": 4096}}
    recipe = parse_recipe(settings)
    one, eight = plan(recipe, "a10", 1), plan(recipe, "a10", 8)
    assert one.memory["optimizer"] == 2 * one.memory["weights"] == 8 * one.parameters
    assert one.checkpoint == 16 * one.parameters
    assert (one.batch, eight.batch) == (4096, 512)
    assert eight.steps_per_second == pytest.approx(8 * one.steps_per_second)
    assert one.seconds == pytest.approx(recipe.train.images / 4096 / one.steps_per_second)
    assert one.peak > one.capacity == 24 * GIB
    assert any("parallel.accumulate" in line for line in one.advice)
    assert eight.peak < eight.capacity
    assert eight.advice == []
    fits, not_so = (
        plan(parse_recipe(settings | {"train": {"batch": count}}), "a10")
        for count in (one.largest_batch, one.largest_batch + 1)
    )
    assert fits.peak <= 0.94 * fits.capacity < not_so.peak
    sharded = plan(parse_recipe(settings | {"parallel": {"shard": "full"}}), "a10", 8)
    assert sharded.memory["weights"] == pytest.approx(one.memory["weights"] / 8)


def test_the_largest_batch_is_the_last_that_fits():
    parts = {"activations": 10.0, "workspace": 0.0, "gradients": 35.0, "weights": 5.0}
    grown = lambda count: parts | {"activations": 10.0 * count}  # noqa: E731
    assert largest_batch(grown, 65.0) == 6
    assert largest_batch(grown, 64.9) == 5
    assert largest_batch(grown, 39.0) == 0
    assert peak(grown(1)) == 40.0
    assert peak(grown(1) | {"workspace": 3.0}) == 43.0  # also when all gradients are there


@pytest.mark.slow
def test_this_machine_is_timed():
    found = plan(parse_recipe(SMALL))
    assert found.measured
    assert found.device == "cpu"
    assert found.capacity > GIB
    assert 0.1 < found.steps_per_second < 1000
    assert "copy for the checkpoint" in found.memory


def test_an_unknown_device_is_rejected():
    with pytest.raises(InputError, match='did you mean "h100"'):
        plan(parse_recipe(SMALL), "h10")
    with pytest.raises(InputError, match="a batch of 32 cannot be shared among 33 processes in 1 part"):
        plan(parse_recipe(SMALL), "h100", 33)
    assert all(device.memory > 20 * GIB and device.flops > 5e13 for device in DEVICES.values())


@pytest.mark.slow
def test_all_that_is_kept_is_counted():
    def found(devices=1, **sections):
        return plan(parse_recipe(SMALL | sections), "h100", devices)

    plain = found()
    lengths = found(train={"power_ema": [0.05, 0.1], "batch": 32})
    assert lengths.memory["averages"] == 3 * plain.memory["averages"]
    assert lengths.checkpoint == 24 * plain.parameters
    # Muon has one moment of the matrices of the four blocks: qkv, proj and the two of the MLP.
    muon = found(optim={"name": "muon"})
    assert plain.memory["optimizer"] - muon.memory["optimizer"] == 4 * 4 * 12 * 64**2
    assert plain.checkpoint - muon.checkpoint == 4 * 4 * 12 * 64**2
    # Half of the tokens go through two of four blocks.
    assert found(train={"route": 0.5, "batch": 32}).memory["activations"] < 0.85 * plain.memory["activations"]
    # Gradients come as activations go; with parts of a batch, or several processes, they are there all the time.
    parts = found(parallel={"accumulate": 2})
    assert parts.peak == pytest.approx(sum(parts.memory.values()))
    assert plain.peak < sum(plain.memory.values())
    assert "gradients kept" in found(devices=2).memory


@pytest.mark.slow
def test_lora_trains_few_weights(tmp_path):
    net = create("DiT", size=8, channels=1, classes=10, learn_variance=False, width=64, depth=4, heads=2, patch=2)
    Pipeline(net, Objective(), classes=[str(i) for i in range(10)]).save(tmp_path)
    reported = {"data": {"source": "digits"}, "train": {"batch": 32, "init_from": str(tmp_path)}}
    whole = plan(parse_recipe(reported), "h100")
    lora = plan(parse_recipe(reported | {"train": reported["train"] | {"lora": 4}}), "h100")
    # Updates of rank 4 beside qkv, proj and modulation of each block and the head's; label rows and head are whole.
    updates = 4 * (4 * (64 + 192 + 64 + 64 + 64 + 6 * 64) + 64 + 2 * 64)
    own = updates + 11 * 64 + 64 * 4 + 4
    assert lora.memory["optimizer"] == 2 * lora.memory["gradients"] == 8 * own
    assert lora.memory["weights"] == whole.memory["weights"] + 4 * updates
    assert lora.memory["activations"] > 0.5 * whole.memory["activations"]
    settings = reported["train"] | {"lora": 4, "lora_apart": True}
    apart = plan(parse_recipe(reported | {"train": settings}), "h100")
    assert apart.checkpoint == 2 * lora.memory["gradients"] + lora.memory["optimizer"] < 0.5 * lora.checkpoint


@pytest.mark.slow
def test_a_step_that_is_bound_by_overhead_is_not_predicted():
    found = plan(parse_recipe(SMALL), "h100", 8)
    assert found.overhead_bound
    assert found.steps_per_second is None
    assert found.seconds is None
    assert any("overhead-bound: not predicted" in line for line in lines(found))
    large = plan(parse_recipe(SMALL | {"model": {"name": "DiT-B/2"}, "train": {"batch": 1024}}), "h100")
    assert not large.overhead_bound
    assert any("steps/s (a third of the published peak)" in line for line in lines(large))
    assert rate(86467.123) == "86,467"
    assert rate(1.2345) == "1.23"


def test_a_network_with_other_words_for_its_sizes(monkeypatch):
    class Mixer(Backbone):
        def __init__(self, *, size, channels, classes, learn_variance, dim=64):
            super().__init__(size, channels, classes, learn_variance)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(size[1], size[1]) for _ in range(2))

        @classmethod
        def variants(cls):
            return {}

        @property
        def tokens(self):
            return self.size[0]

        def forward(self, x, t, condition, *, trace=None):
            for layer in self.layers:
                x = x + layer(x)
            return x

    monkeypatch.setitem(BACKBONES, "Mixer", Mixer)
    found = plan(parse_recipe({"model": {"name": "Mixer"}, "train": {"batch": 32}}))
    assert found.measured
    assert found.parameters == 2 * (8 * 8 + 8)


@pytest.mark.slow
def test_processes_on_one_cpu_share_its_memory():
    one, two = (plan(parse_recipe(SMALL), devices=count, timed=False) for count in (1, 2))
    assert two.capacity == one.capacity / 2


@pytest.mark.slow
def test_without_the_data():
    recipe = parse_recipe({"data": {"source": "caches/not-here"}, "model": {"name": "DiT-XL/2"}})
    found = plan(recipe, "h100", 8, shape=(4, (32, 32), 1000))
    assert found.parameters == pytest.approx(675e6, rel=0.005)
    assert found.steps_per_second > 0
    with pytest.raises(InputError, match="not-here"):
        plan(recipe, "h100", 8)


@pytest.mark.parametrize(
    ("devices", "sections", "reported"),
    [
        (0, {}, "0 devices; give 1 or more"),
        (1, {"parallel": {"shard": "full"}}, "parallel.shard needs several processes"),
        (1, {"parallel": {"accumulate": 0}}, "parallel.accumulate is 0; give 1 or more"),
    ],
)
def test_what_training_would_refuse_is_rejected(devices, sections, reported):
    with pytest.raises(InputError, match=reported):
        plan(parse_recipe(SMALL | sections), "h100", devices)


def test_the_memory_of_a_container_is_its_limit(tmp_path):
    (tmp_path / "own").write_text("0::/pods/mine\n")
    group = tmp_path / "tree" / "pods" / "mine"
    group.mkdir(parents=True)
    for folder, limit, used in ((group, "max", 500), (group.parent, "4000", 900)):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 300\ninactive_file 600\nactive_file 0\n")
    assert list(container_memory(tmp_path / "own", tmp_path / "tree")) == [(4000, 300)]
    assert list(container_memory(tmp_path / "none", tmp_path / "tree")) == []
    (tmp_path / "older").write_text("9:cpu:/pods/mine\n4:memory:/pods/mine\n0::/\n")  # control groups of version 1
    group = tmp_path / "tree" / "memory" / "pods"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("5000\n")
    (group / "memory.usage_in_bytes").write_text("1000\n")
    (group / "memory.stat").write_text("cache 9\ntotal_inactive_file 600\n")
    assert list(container_memory(tmp_path / "older", tmp_path / "tree")) == [(5000, 400)]
    assert 2**28 < total_memory(torch.device("cpu")) <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_data_with_any_number_of_channels(channels, monkeypatch):
    values = PixelValues("uint16", (0.0,), (4095.0,))
    data = numbers(channels, "uint16", values)
    monkeypatch.setattr("ditlab.profiling.plan.open_dataset", lambda *arguments: data)
    found = plan(parse_recipe(SMALL | {"train": {"batch": 2, "precision": "float32", "device": "cpu"}}))
    assert found.measured
    assert found.steps_per_second > 0


class TestAModelOfTheHub:
    """A published model is described by its name if the shape is given; it is not downloaded."""

    @pytest.mark.slow
    def test_whole_and_with_low_rank_updates(self):
        def found(name):
            recipe = Recipe.load(name)
            assert outline(recipe.train.init_from).net.config["name"] == "DiT-XL/2"
            smaller = recipe.override({"train": {"init_from": "me/DiT-S-2-256"}})
            return plan(smaller, "rtx4090", shape=(4, (32, 32), 1000))

        whole, lora = (found(name) for name in FINE_TUNING)
        assert whole.parameters == 32_963_360 - 256 * 384  # as published, without the positions, which are computed
        assert whole.memory["gradients kept"] == 4 * whole.parameters
        assert lora.memory["averages"] == lora.memory["weights"] > whole.memory["weights"]
        assert lora.memory["gradients kept"] < 0.1 * whole.memory["gradients kept"]
        assert lora.checkpoint < 0.1 * whole.checkpoint
        assert (whole.advice, lora.advice) == ([], [])
        # Frozen weights have no gradients, and without checkpointing nothing is computed twice: about 4 instead of 8.
        assert 1.7 < lora.steps_per_second / whole.steps_per_second < 2

    def test_a_name_without_a_published_size(self):
        recipe = parse_recipe({"train": {"init_from": "someone/cats"}})
        with pytest.raises(InputError) as error:
            plan(recipe, "rtx4090", shape=(4, (32, 32), 1000))
        assert str(error.value) == (
            'the name "someone/cats" does not contain a published size such as DiT-XL-2; download this model, and set '
            "train.init_from to its folder"
        )

    @pytest.mark.parametrize(
        ("name", "network"),
        [
            ("facebook/DiT-XL-2-512", "DiT-XL/2"),
            ("me/DiT-B-4", "DiT-B/4"),
            ("me/U-DiT-B-2", None),
            ("me/Skip-DiT-XL-2", None),
            ("me/DiT-XL-22", None),
        ],
    )
    def test_names(self, name, network):
        found = outline(name)
        assert (found and found.net.config["name"]) == network
        assert found is None or (found.objective.target, found.net.learn_variance) == ("eps", True)
