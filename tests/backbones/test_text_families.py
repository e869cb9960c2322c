"""What every family that reads text can do with each kind of text condition."""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from helpers import perturbed, relative
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.backbones import BACKBONES, Backbone, create
from ditlab.backbones.cost import measure
from ditlab.backbones.lora import add_lora, merged
from ditlab.backbones.text import TextEmbedder
from ditlab.conditioning import Text
from ditlab.conditioning.encoders.words import Words
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.diffusion.guidance import cfg
from ditlab.diffusion.objective import Objective
from ditlab.inference.export import export, runner
from ditlab.inference.optimize.packing import packed
from ditlab.inference.pipeline import Pipeline

SHAPE = {"channels": 3, "classes": 0, "learn_variance": False}
KINDS = {  # kinds of text conditions
    "states": {"text_length": 5, "text_width": 12},
    "pooled": {"text_length": 5, "text_width": 12, "pooled_width": 7},
    "words": {"text_length": 5, "vocabulary": 9},
}
TINY = {  # settings of each family that make it small
    "DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2, "condition_grid": True},
    "DeepFusion": {"width": 32, "depth": 5, "heads": 4, "kv_heads": 2, "head_width": 8, "patch": 2},
    "PixArt": {"width": 48, "depth": 3, "heads": 2, "patch": 2, "condition_grid": True, "resolution": 1},
    "MMDiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2, "qk_norm": True, "text_block": True},
    "Flux": {"width": 32, "depth": 1, "single_depth": 2, "heads": 2, "patch": 2, "text_block": True},
    "Hourglass": {"width": 32, "depth": 2, "heads": 2, "outer": [16], "condition_grid": True},
    "Latte": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "STDiT3": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "VideoDiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "ClipHourglass": {"width": 32, "depth": 1, "heads": 2, "outer": [16], "patch": 2},
}
FAMILIES = [name for name, kind in BACKBONES.items() if "text_length" in inspect.signature(kind).parameters]
VIDEO = [name for name in FAMILIES if BACKBONES[name].spatial == 3]
WORDS = TINY["DiT"] | KINDS["words"]
MORE = {  # name of a test -> family and options, for families with several ways of reading text
    "DiT cross-attention": ("DiT", WORDS | {"condition": "cross-attention", "condition_grid": True}),
    "DiT in-context": (
        "DiT",
        TINY["DiT"] | KINDS["pooled"] | {"condition": "in-context", "condition_grid": True, "rope": True},
    ),
    "DiT early exit": ("DiT", WORDS | {"condition": "in-context", "exits": [0.7, 1.0]}),
    "DeepFusion keys": (
        "DeepFusion",
        TINY["DeepFusion"] | {"text_length": 5, "text_layers": 3, "pooled_width": 7, "condition_grid": True},
    ),
    "DiT adaln": ("DiT", WORDS | {"condition": "adaln", "condition_grid": True, "swiglu": True}),
}
ONCE = [f"{family} pooled" for family in FAMILIES] + list(MORE)  # each family with the most parts of a condition
CASES = {f"{family} {kind}": (family, TINY[family] | KINDS[kind]) for family in FAMILIES for kind in KINDS} | MORE


def shape(family, width=8):
    """The shape of images of 8x8 pixels, or of clips of two of them."""
    return SHAPE | {"size": (2, 8, width) if family in VIDEO else (8, width)}


@pytest.fixture(params=CASES)
def make(request):
    family, sizes = CASES[request.param]
    torch.manual_seed(0)
    return lambda width=8, **options: create(family, **shape(family, width) | sizes | options)


def inputs(net, rows=3):
    """Inputs whose rows have different numbers of tokens."""
    x, _, condition = net.example(rows, torch.Generator().manual_seed(1))
    for row in range(1, rows):
        condition.mask[row, 3 - row % 3 :] = False
    return x, torch.linspace(100, 900, rows), condition


def test_text_time_and_every_weight_matter(make):
    net = perturbed(make())
    x, t, text = inputs(net)
    out = net(x, t, text)
    assert (net(x, t + 50, text) - out).abs().amax() > 1e-3
    assert (net(x, t, text[torch.tensor([1, 2, 0])]) - out).flatten(1).abs().amax(1).min() > 1e-3
    (out * torch.randn_like(out)).sum().backward()
    unmoved = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert unmoved == []


def per_token(text, change):
    """A condition with a function applied to all parts that have a value for each token, and the dimension of these."""
    places = {"tokens": 1, "mask": 1, "layer_keys": 2, "layer_values": 2}
    return Condition(**{k: change(v, places[k]) if k in places else v for k, v in text.parts().items()})


def test_tokens_beyond_the_mask_do_not_matter(make):
    net = perturbed(make()).eval()
    x, t, text = inputs(net)

    def others(value, place):
        if value.dtype == torch.bool:
            return value
        mask = text.mask.reshape(3, *[1] * (place - 1), 5, *[1] * (value.ndim - 1 - place))
        return torch.where(mask, value, torch.full_like(value, 3))

    with torch.no_grad():
        out = net(x, t, text)
        assert relative(net(x, t, per_token(text, others)), out) < 1e-6
        shorter = per_token(text, lambda value, place: value.narrow(place, 0, 2))
        assert relative(net(x[1:], t[1:], shorter[1:]), out[1:]) < 1e-5
        whole = net(x, t, replace(text, mask=None))
        assert relative(whole[:1], out[:1]) < 1e-5
        assert relative(whole[1:], out[1:]) > 1e-4


def test_rows_of_a_batch_do_not_see_each_other(make):
    net = perturbed(make()).eval()
    x, t, text = inputs(net)
    with torch.no_grad():
        apart = torch.cat([net(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)])
        assert relative(apart, net(x, t, text)) < 1e-5


def test_config_creates_the_same_network_again(make):
    net = make(width=16)
    again = create(**json.loads(json.dumps(net.config)) | {"size": net.size})
    assert again.config == net.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_inference_and_training_extras(make):
    net = perturbed(make(), 0.05).eval()
    x, t, text = inputs(net)
    with torch.no_grad():
        out = net(x, t, text)
        assert relative(net.fused()(x, t, text), out) < 1e-5
        assert relative(packed(net)(x, t, text), out) < 1e-5
        half = packed(create(**net.config | {"size": net.size}).eval().bfloat16())
        assert half(x, t, text.to("cpu", torch.bfloat16)).isfinite().all()
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(net(x, t, text).float(), out) < 0.05
    trace = Trace([f"blocks.{i}" for i in range(len(net.repeated))])
    assert torch.equal(net(x, t, text, trace=trace), net(x, t, text))
    assert len(trace.taps) == len(net.repeated)


def test_tokens_bypass_blocks_in_training(make):
    net = perturbed(make(), 0.05)
    if not net.routable:
        return
    x, t, text = inputs(net)
    count = net.grid[0] * net.grid[1]
    everything = torch.arange(net.extras + count + net.joined).expand(3, -1)
    assert relative(net(x, t, text, trace=Trace(kept=everything)), net(x, t, text)) < 1e-5
    assert net(x, t, text, trace=Trace(kept=everything[:, ::2])).shape == x.shape


@pytest.mark.parametrize("make", ONCE, indirect=True)
def test_low_rank_updates_change_it_and_are_merged(make):
    pytest.importorskip("peft")
    net = perturbed(make(), 0.05)
    given = inputs(net)
    before = net(*given)
    add_lora(net, 2, [*net.heads_out], seed=0)
    assert torch.equal(net(*given), before)
    perturbed(net, 0.05)
    assert relative(net(*given), before) > 1e-3
    assert relative(merged(net)(*given), net(*given)) < 1e-4


@pytest.mark.slow
def test_guidance_and_interpolation(make):
    net = perturbed(make(), 0.05).eval()
    x, _, text = inputs(net)
    denoiser = Objective().denoiser(net)
    t = torch.tensor(0.5, dtype=torch.float64)
    null = text.where(torch.ones(3, dtype=torch.bool), text[2:].joined(text[2:]).joined(text[2:]))
    with torch.no_grad():
        good, bad = denoiser(x, t, t, text).eps, denoiser(x, t, t, null).eps
        assert relative(cfg(denoiser, text, null, 3.0)(x, t, t).eps, bad + 3 * (good - bad)) < 1e-4
        half = Condition(**text.parts(), other=null, weight=torch.full((3,), 0.5))
        assert relative(denoiser(x, t, t, half).eps, (good + bad) / 2) < 1e-5


@torch.no_grad()
def test_a_condition_that_is_encoded_once_gives_the_same_output(make):
    net = perturbed(make()).eval()
    x, t, condition = inputs(net)
    pair = replace(condition, other=condition[torch.tensor([1, 2, 0])], weight=torch.full((3,), 0.3))
    once = net.encoded(pair)
    assert torch.equal(net(x, t, once), net(x, t, condition))
    assert torch.equal(net(x, t, once.other), net(x, t, pair.other))


@pytest.mark.parametrize("family", ["DiT", "PixArt", "MMDiT", "Flux", "Hourglass", "VideoDiT"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_embeds_each_prompt_once(family, guidance, monkeypatch):
    torch.manual_seed(0)
    words = {"word_images": 4} if family == "Hourglass" else {}
    net = perturbed(create(family, **shape(family) | TINY[family] | {"text_length": 4, "vocabulary": 4} | words))
    pipe = Pipeline(net, Objective(), conditioner=Text(Words(["red", "blue"], 4).config))
    (embedder,), calls = [part for part in net.modules() if isinstance(part, TextEmbedder)], []
    embedder.attn.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    options = {"seeds": [0, 1], "steps": 5, "sampler": "euler", "guidance": guidance, "output_type": "latent"}
    images = pipe(["red", "blue"], **options).images
    assert sum(calls) == 4  # two prompts, and the null condition of each
    calls.clear()
    monkeypatch.setattr(Backbone, "encoded", lambda self, condition: condition)
    assert torch.equal(pipe(["red", "blue"], **options).images, images)
    assert sum(calls) == 5 * (2 if guidance == 1 else 4)


@pytest.mark.slow
@pytest.mark.parametrize("make", ONCE, indirect=True)
def test_cost_is_measured_without_weights(make):
    net = make()
    cost = measure(make)
    assert cost.parameters_unfused == sum(p.numel() for p in net.parameters())
    assert cost.gmacs > 0


def test_other_conditions_are_reported_in_one_line(make):
    net = make()
    x, t, text = inputs(net)
    reads = "reads a language model; give keys" if net.text.layers else "reads text; give tokens"
    with pytest.raises(InputError, match=f"a condition with labels for a network that {reads}"):
        net(x, t, torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match=f"a condition with label for a network that {reads}"):
        net(x, t, Condition(label=torch.zeros(3, dtype=torch.long)))
    with pytest.raises(InputError, match=r"of shape .* at most 5.*; encode the text with the conditioner"):
        net(x, t, per_token(text, lambda value, place: torch.cat([value, value], place)))
    if text.pooled is not None:
        with pytest.raises(InputError, match="pooled vector"):
            net(x, t, replace(text, pooled=None))


@pytest.mark.parametrize("family", FAMILIES)
def test_options_that_do_not_fit_are_reported_in_one_line(family):
    for options, words in (
        ({"classes": 3} | KINDS["words"], "3 classes for a network that reads text; give classes = 0"),
        ({"text_length": 5}, "text_width 0 and vocabulary 0; give one of them"),
        ({"text_length": 5, "text_width": 4, "vocabulary": 9}, "text_width 4 and vocabulary 9; give one"),
        ({"text_width": 4}, "a text condition without tokens; set text_length"),
        ({"text_length": -1}, "text condition with length -1; give 0 or more"),
    ):
        with pytest.raises(InputError, match=words):
            create(family, **shape(family) | TINY[family] | options)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_becomes_a_graph(case, tmp_path):
    family, sizes = CASES[case]
    if sizes.get("exits"):
        return
    pipe = Pipeline(perturbed(create(family, **shape(family) | sizes), 0.05).eval(), Objective())
    export(pipe, tmp_path / "graph", "torch")
    x, t, text = inputs(pipe.net, 7)
    given = {"x": x, "t": t} | text.parts()
    found = runner(tmp_path / "graph" / "network", "torch")({name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        assert relative(torch.from_numpy(found), pipe.net(x, t, text)) < 1e-5


@pytest.mark.parametrize("make", ONCE, indirect=True)
def test_it_is_saved_and_read_again(make, tmp_path):
    net = perturbed(make(), 0.05).eval()
    Pipeline(net, Objective()).save(tmp_path / "model")
    again = ditlab.load(tmp_path / "model").net
    given = inputs(net)
    with torch.no_grad():
        assert torch.equal(again(*given), net(*given))


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name == "DiT" else pytest.mark.slow) for name in FAMILIES if name not in VIDEO],
)
def test_it_trains_on_captions_and_resumes(family, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(8):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (8, 8), name).save(tmp_path / "data" / f"{i}.png")
        (tmp_path / "data" / f"{i}.txt").write_text(f"all {name}")
    recipe = {
        "model": {"name": family, **TINY[family]},
        "data": {"source": str(tmp_path / "data"), "size": "8", "conditioner": "text"},
        "train": {"images": 32, "batch": 8, "precision": "float32", "device": "cpu", "log_every": 8, "save_every": 16}
        | {"preview_every": 1000, "label_dropout": 0.25, "compile": "never"},
        "sample": {"sampler": "euler", "steps": 1, "guidance": 2.0},
    }
    quiet = Console(quiet=True)
    whole = ditlab.train(recipe, tmp_path / "whole", console=quiet)
    ditlab.train(recipe | {"train": recipe["train"] | {"images": 16}}, tmp_path / "parts", console=quiet)
    state = ditlab.train(recipe, tmp_path / "parts", console=quiet).net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.net.state_dict().items())
    pipe = ditlab.load(tmp_path / "whole")
    a, b = (p(["all red", "all blue"], seeds=[0, 0], output_type="pt").images for p in (whole, pipe))
    assert torch.equal(a, b)
