import copy
import json

import numpy as np
import pytest
import torch
from helpers import relative, tiny_pipeline

import ditlab
from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.diffusion.samplers import SAMPLERS
from ditlab.inference.optimize.precision import quick_precision
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.samples import Samples


@pytest.fixture
def pipe():
    return tiny_pipeline()


def latents(pipe, *args, **options):
    return pipe(*args, output_type="latent", num_inference_steps=3, **options).images


@pytest.mark.parametrize("sampler", ["heun", "ddpm", "sde"])
def test_an_image_does_not_depend_on_its_batch(pipe, sampler):
    options = {"sampler": sampler, "guidance_scale": 2.0}
    together = latents(pipe, [0, 1, 2, 1, None], seeds=[5, 6, 7, 8, 9], **options)
    split = latents(pipe, [0, 1, 2, 1, None], seeds=[5, 6, 7, 8, 9], batch_size=2, **options)
    assert torch.allclose(together, split, atol=1e-5)
    assert torch.allclose(together[3:4], latents(pipe, [1], seeds=[8], **options), atol=1e-5)
    assert not torch.allclose(together[1], together[3], atol=1e-2)


def test_names_and_indices_are_the_same_labels(pipe):
    assert torch.equal(latents(pipe, ["class 2", 0], seeds=[1, 2]), latents(pipe, [2, "0"], seeds=[1, 2]))


def test_numbers_of_numpy_are_numbers(pipe):
    expected = latents(pipe, [1], seeds=[3])
    assert torch.equal(latents(pipe, np.int64(1), seeds=np.arange(3, 4)), expected)


def test_half_precision_networks_generate_nearly_the_same(pipe):
    full = latents(pipe, [0, 1], seeds=[0, 1], guidance_scale=1.5)
    pipe.net.to(torch.bfloat16)
    half = latents(pipe, [0, 1], seeds=[0, 1], guidance_scale=1.5)
    assert half.dtype is torch.float32
    assert 0 < (half - full).norm() / full.norm() < 0.05


def test_eta_makes_ddim_stochastic(pipe):
    still, zero, full = (latents(pipe, [0], seeds=[0], sampler="ddim", eta=eta) for eta in (None, 0.0, 1.0))
    assert torch.equal(still, zero)
    assert not torch.allclose(still, full, atol=1e-3)
    with pytest.raises(InputError, match="sampler heun has no eta"):
        latents(pipe, [0], seeds=[0], sampler="heun", eta=0.5)


def test_network_and_objective_must_agree_on_the_variance():
    with pytest.raises(InputError, match="learn_variance is True in the network and False"):
        tiny_pipeline(learn_variance=True)


def test_a_guide_must_be_of_the_same_task(pipe):
    with pytest.raises(InputError, match="the guide has another size, class count or process"):
        latents(pipe, [0], seeds=[0], guide=tiny_pipeline(classes=4), guidance_scale=2.0)
    guided = latents(pipe, [0], seeds=[0], guide=tiny_pipeline(depth=1), guidance_scale=2.0)
    assert not torch.allclose(guided, latents(pipe, [0], seeds=[0]), atol=1e-3)


def test_single_labels_and_seeds_are_repeated(pipe):
    assert torch.equal(latents(pipe, 1, seeds=[1, 2]), latents(pipe, [1, 1], seeds=[1, 2]))
    assert torch.equal(latents(pipe, [0, 1], seeds=4), latents(pipe, [0, 1], seeds=[4, 4]))


def test_output_types_agree(pipe):
    options = {"seeds": [0, 1], "num_inference_steps": 2}
    x0 = pipe([0, 1], output_type="latent", **options).images
    pil = pipe([0, 1], **options).images
    floats = pipe([0, 1], output_type="np", **options).images
    tensors = pipe([0, 1], output_type="pt", **options).images
    expected = ((x0 + 1) * 127.5).round().clamp(0, 255)
    assert len(pil) == 2
    assert pil[0].mode == "L"
    assert np.array_equal(np.stack([np.array(image) for image in pil]), expected[:, 0].numpy())
    assert np.allclose(floats[..., 0] * 255, expected[:, 0].numpy())
    assert torch.allclose(tensors * 255, expected)


def test_steps_are_yielded_and_called_back(pipe):
    seen = []
    result = latents(pipe, [0, 1, 2], seeds=[0, 1, 2], batch_size=2, callback_on_step_end=seen.append)
    assert [step.i for step in seen] == [0, 1, 2, 0, 1, 2]
    assert [step.t for step in seen[:3]] == pytest.approx([2 / 3, 1 / 3, 0])
    assert torch.equal(seen[-1].x, result[2:])
    steps = list(pipe.steps([0, 1], seeds=[0, 1], num_inference_steps=3))
    assert torch.equal(steps[-1].x, seen[2].x)


def test_a_callback_with_other_arguments_is_an_error(pipe):
    for callback, message in (
        (lambda pipe, i, t, values: values, "is called with one argument, a Step with i, t, x and x0, which your func"),
        (3, "callback_on_step_end is a int; give a function of a Step"),
    ):
        with pytest.raises(InputError, match=message):
            pipe(0, steps=1, callback_on_step_end=callback)


def test_sampling_leaves_modes_alone(pipe):
    pipe.net.train()
    steps = pipe.steps(0, num_inference_steps=2)
    next(steps)
    assert torch.is_grad_enabled()
    list(steps)
    assert pipe.net.training


def test_every_sampler_works_with_learned_variance():
    pipe = tiny_pipeline(objective=Objective(DDPM(), "eps", learn_variance=True), learn_variance=True)
    for name in SAMPLERS:
        assert latents(pipe, [0], seeds=[0], sampler=name, guidance_scale=1.5).isfinite().all()


def test_unconditional_model():
    pipe = tiny_pipeline(classes=0)
    assert latents(pipe, seeds=[0, 1]).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="unconditional"):
        latents(pipe, [0], seeds=[0])
    with pytest.raises(InputError, match="guidance"):
        latents(pipe, seeds=[0], guidance_scale=2.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": [3]}, "label 3 is out of range; this model has the classes 0 to 2"),
        ({"labels": [-1]}, "label -1 is out of range"),
        ({"labels": ["clas 1"]}, 'unknown class "clas 1"; did you mean "class 1"'),
        ({"labels": [0, 1, 2], "seeds": [0, 1]}, "3 labels and 2 seeds"),
        ({"labels": []}, "0 labels"),
        ({"labels": [0], "num_inference_steps": 0}, "0 sampling steps"),
        ({"labels": [0], "sampler": "dpmp"}, 'did you mean "dpmpp"'),
        ({"labels": [0], "schedule": "karras"}, "unknown timestep schedule"),
        ({"labels": [0], "output_type": "jpg"}, "output_type"),
        ({"labels": [0], "batch_size": 0}, "batch size 0"),
        ({"labels": [2.7]}, 'unknown class "2.7"'),
        ({"labels": [0], "seeds": [-1]}, "seed -1 is out of range"),
        ({"labels": [0], "guidance_scale": float("nan")}, "guidance nan"),
        ({"labels": [0], "guidance_scale": 2.0, "guidance_channels": -1}, "guidance on -1 channels"),
    ],
)
def test_mistakes_name_value_and_remedy(pipe, options, words):
    with pytest.raises(InputError, match=words):
        pipe(**options)


def test_save_and_load_keep_everything(pipe, tmp_path):
    pipe.config = {"sample": {"sampler": "ab2", "steps": 5, "guidance": 1.7, "interval": [0.1, 0.8]}, "images_seen": 7}
    pipe.objective = Objective(target="v", time="logit-normal", time_mean=0.3)
    pipe.save(tmp_path / "model")
    again = ditlab.load(tmp_path / "model")
    assert again.objective == pipe.objective
    assert again.classes == pipe.classes
    assert again.config == pipe.config
    assert again.defaults.guidance_interval == (0.1, 0.8)
    assert all(
        torch.equal(a, b) for a, b in zip(pipe.net.state_dict().values(), again.net.state_dict().values(), strict=True)
    )
    assert torch.equal(pipe(0, output_type="latent").images, again(0, output_type="latent").images)
    assert len(list(again.steps(0))) == 5


def damage_nothing(folder):
    (folder / "config.json").unlink()


def damage_config(folder):
    (folder / "config.json").write_text('{"format": "ditlab", "backbone": {')


def damage_foreign(folder):
    (folder / "config.json").write_text('{"architectures": ["Bert"]}')


def damage_incomplete(folder):
    (folder / "config.json").write_text('{"format": "ditlab"}')


def damage_missing(folder):
    (folder / "model.safetensors").unlink()


def damage_truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def damage_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def damage_manifest(folder):
    (folder / "manifest.json").write_text("{")


def damage_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    config["backbone"]["depth"] = 3
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_nothing, "no model at"),
        (damage_config, "cannot read"),
        (damage_foreign, "not written by ditlab"),
        (damage_incomplete, "not a complete ditlab config"),
        (damage_missing, "no weights at"),
        (damage_truncated, "is damaged: model.safetensors has [0-9,]+ bytes instead of"),
        (damage_empty, "is damaged: model.safetensors has 0 bytes instead of"),
        (damage_manifest, r"is damaged: manifest\.json cannot be read \(JSONDecodeError\)"),
        (damage_shape, r"does not fit its network: missing blocks\.2\."),
    ],
)
def test_damaged_models_are_errors_not_models(pipe, tmp_path, damage, words):
    pipe.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        ditlab.load(tmp_path)
    assert "\n" not in str(caught.value)


FULL = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"


def test_network_calls_that_do_not_fit_in_memory_are_split(pipe, monkeypatch):
    expected = latents(pipe, [0, 1, 2, 0, 1], seeds=range(5))
    forward, sizes = type(pipe.net).forward, []

    def small(net, x, t, y):
        sizes.append(len(x))
        if len(x) > 2:
            raise RuntimeError(FULL)
        return forward(net, x, t, y)

    monkeypatch.setattr(type(pipe.net), "forward", small)
    with pytest.warns(UserWarning, match="not enough memory for 5 rows in a network call; continuing with 2 at a time"):
        split = latents(pipe, [0, 1, 2, 0, 1], seeds=range(5))
    assert torch.allclose(split, expected, atol=1e-5)
    assert sizes == [5] + [2, 2, 1] * 5  # Heun's method: 5 evaluations in 3 steps
    monkeypatch.setattr(type(pipe.net), "forward", lambda *args: broken())
    with pytest.raises(InputError, match="not enough memory to generate a single image"):
        latents(pipe, [0], seeds=0)


def broken():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("failing", [1, 3, 5])
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0, "guidance_interval": (0.0, 0.7)}])
def test_steps_are_reported_once_although_a_network_call_fails(pipe, monkeypatch, failing, options):
    """The animation of a request and its progress bar count every image once in every step."""
    options = options | {"seeds": range(6), "sampler": "euler"}
    expected = latents(pipe, 0, **options)
    forward, calls, steps = type(pipe.net).forward, [], []

    def once(net, *args):
        calls.append(len(args[0]))
        if len(calls) == failing:
            raise RuntimeError(FULL)
        return forward(net, *args)

    monkeypatch.setattr(type(pipe.net), "forward", once)
    with pytest.warns(UserWarning, match="continuing with"):
        found = latents(pipe, 0, batch_size=4, callback_on_step_end=steps.append, **options)
    assert [(step.i, len(step.x)) for step in steps] == [(i, count) for count in (4, 2) for i in range(3)]
    assert torch.allclose(found, expected, atol=1e-5)


def test_memory_with_feature_caching(pipe, monkeypatch):
    options = {"seeds": range(4), "sampler": "euler", "reuse": 2}
    expected = latents(pipe, 0, **options)
    forward, calls, steps = type(pipe.net).forward, [], []

    def fails_at(number):
        def once(net, *args):
            calls.append(len(args[0]))
            if len(calls) == number:
                raise RuntimeError(FULL)
            return forward(net, *args)

        calls.clear()
        steps.clear()
        monkeypatch.setattr(type(pipe.net), "forward", once)

    fails_at(1)
    with pytest.warns(UserWarning, match="continuing with 2 at a time"):
        found = latents(pipe, 0, callback_on_step_end=steps.append, **options)
    assert torch.allclose(found, expected, atol=1e-5)
    assert [len(step.x) for step in steps] == [2] * 6
    fails_at(2)
    with pytest.raises(InputError, match="not enough memory for a batch of 4 with reuse"):
        latents(pipe, 0, callback_on_step_end=steps.append, **options | {"batch_size": 4})


def test_presets_suit_the_process(pipe):
    chain = tiny_pipeline(objective=Objective(DDPM(), "eps"))
    assert pipe.resolve(preset="draft").options.sampler == "ab4"
    assert chain.resolve(preset="draft").options.sampler == "dpmpp"
    settings = chain.resolve(preset="reference").settings()
    assert (settings["sampler"], settings["steps"], settings["schedule"]) == ("ddpm", 250, "uniform")
    images = latents_of(pipe, preset="draft")
    assert torch.equal(images, latents_of(pipe, sampler="ab4", steps=5))
    assert not torch.equal(images, latents_of(pipe, preset="draft", steps=7))
    assert pipe.resolve(preset="draft").steps == 5
    assert pipe.resolve(preset="draft", num_inference_steps=7).steps == 7
    with pytest.raises(InputError, match='unknown preset "drat"'):
        pipe([0], preset="drat")


def latents_of(pipe, **options):
    return pipe([0, 1], seeds=[0, 1], output_type="latent", **options).images


def test_a_prepared_pipeline_is_cast_once_and_leaves_the_model_alone(pipe, tmp_path, monkeypatch):
    half = pipe.prepared("bfloat16")
    assert half.net.dtype is torch.bfloat16
    assert pipe.net.dtype is torch.float32
    whole = pipe.prepared("float32")
    assert whole.net.pos_embed is pipe.net.pos_embed
    assert relative(latents_of(whole), latents_of(pipe)) < 1e-5
    error = (latents_of(half) - latents_of(pipe)).norm() / latents_of(pipe).norm()
    assert 0 < error < 0.05
    with pytest.raises(InputError, match='unknown precision "float16"'):
        pipe.prepared("float16")


@pytest.mark.parametrize(("slow", "expected"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_the_quicker_precision_is_timed_once_for_each_machine(tmp_path, monkeypatch, slow, expected):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times = {torch.float32: 1.0, torch.bfloat16: 1.0} | {getattr(torch, slow): 3.0}
    calls = []
    monkeypatch.setattr("ditlab.inference.optimize.precision._times", lambda *args: calls.append(args) or times)
    monkeypatch.setattr("ditlab.inference.optimize.precision.has_bfloat16", lambda device: True)
    cpu = torch.device("cpu")
    assert [quick_precision(32, cpu) for _ in range(3)] == [expected] * 3
    assert len(calls) == 1
    (tmp_path / "ditlab" / "precision.json").write_text("torn")
    assert quick_precision(32, cpu) == expected
    assert len(calls) == 2
    monkeypatch.setattr(
        "ditlab.inference.optimize.precision.has_bfloat16", lambda device: False
    )  # not even timed: it takes minutes
    assert quick_precision(64, cpu) == "float32"
    assert len(calls) == 2


@pytest.mark.slow
def test_networks_for_files_use_no_random_numbers(monkeypatch):
    dirty = [torch.full((1000,), float("nan")) for _ in range(200)]  # memory that is likely to be handed out next
    del dirty
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for name in ("DiT-S/4", "U-ViT-S/2", "U-DiT-S", "Skip-DiT-S/4"):
        with skip_init():
            net = create(name, size=8)
        assert net.dtype is torch.float32
        assert next(net.parameters()).device.type == "cpu"
    assert torch.equal(torch.rand(1), expected)


def test_a_prepared_pipeline_generates_and_nothing_else(pipe, tmp_path):
    ready = pipe.prepared("bfloat16")
    assert ready.model is pipe
    for name in ("save", "push_to_hub", "identity", "describe"):
        assert not hasattr(ready, name)
    other = Pipeline(copy.deepcopy(pipe.net), pipe.objective, classes=pipe.classes)
    with torch.no_grad():
        other.net.blocks[0].mlp.fc1.weight.add_(1)
    assert other.prepared("bfloat16").model.identity() != ready.model.identity()
    again = ready.prepared("float32")
    assert again.dtype is torch.float32
    assert torch.equal(latents_of(again), latents_of(pipe.prepared("float32")))


def test_the_text_of_a_pipeline_describes_it(pipe):
    assert repr(pipe) == "Pipeline(DiT-S/2, 1x8x8, velocity on linear, cpu)"
    assert repr(pipe.prepared("bfloat16")) == f"PreparedPipeline(bfloat16 of {pipe!r})"
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    assert pipe.to("cpu") is pipe


def test_class_names_that_are_numbers():
    pipe = tiny_pipeline()
    by_index = pipe([0, 1, 2], seeds=0, steps=2, output_type="latent").images
    pipe.classes = ["1", "2", "3"]
    for labels in ([1, 2, 3], ["1", "2", "3"], ["index:0", "index:1", "index:2"]):
        assert torch.equal(pipe(labels, seeds=0, steps=2, output_type="latent").images, by_index)
    samples = Samples(pipe, 3, labels="balanced", seed=0, batch_size=3, options={"steps": 2})
    assert samples.fetch(torch.arange(3)).labels.tolist() == [0, 1, 2]
    pipe.classes = []
    plain = Samples(pipe, 3, labels="balanced", seed=0, batch_size=3, options={"steps": 2})
    assert torch.equal(samples.fetch(torch.arange(3)).x, plain.fetch(torch.arange(3)).x)
