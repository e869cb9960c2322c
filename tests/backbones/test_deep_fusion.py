"""Deep fusion against published numbers of both halves, and what its text costs in sampling."""

import pytest
import torch
import torch.nn.functional as F
from helpers import perturbed, relative

from ditlab.backbones import create
from ditlab.backbones.deep_fusion_blocks import Text, joint_attention
from ditlab.backbones.layers import modulate, sinusoids
from ditlab.backbones.positions import rotated
from ditlab.conditioning import Text as TextConditioner
from ditlab.conditioning.encoders import Words
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Condition
from ditlab.diffusion.objective import Objective
from ditlab.inference import base as inference
from ditlab.inference.pipeline import Pipeline

SIZES = {"width": 32, "depth": 6, "heads": 4, "kv_heads": 2, "head_width": 8, "patch": 2}
SHAPE = {"size": 8, "channels": 3, "classes": 0, "learn_variance": False}


def network(**options):
    torch.manual_seed(0)
    return perturbed(create("DeepFusion", **SHAPE | SIZES | options), 0.1).eval()


def normalized(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def positions(h, w):
    """PRX's rotary positions: the first half of the channels for the row, the second for the column."""
    frequencies = 10000 ** (-torch.arange(0, 8, 2) / 8)
    rows, columns = (
        grid.flatten()[:, None] for grid in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    )
    angles = torch.cat([rows * frequencies, columns * frequencies], 1).repeat_interleave(2, 1)
    return torch.stack([angles.cos(), angles.sin()])


@pytest.mark.parametrize("masked", [True, False])
def test_one_softmax_over_text_and_image_as_published(golden, masked):
    """PRX, computed with the attention of DeepFusion."""
    vectors = golden("prx")
    state = {key.removeprefix("state."): value for key, value in vectors.items()}

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def heads(x, count):
        return x.unflatten(-1, (count, 3, 16)).permute(2, 0, 3, 1, 4)

    table = positions(4, 6)
    patches = F.unfold(vectors["x"], 2, stride=2).transpose(1, 2)  # (B, N, C p p)
    x, text = linear(patches, "img_in"), linear(vectors["context"], "txt_in")
    c = linear(F.silu(linear(sinusoids(1000 * vectors["t"], 256), "time_in.in_layer")), "time_in.out_layer")
    for i in range(3):
        name = f"blocks.{i}"
        chunks = linear(F.silu(c), f"{name}.modulation.lin").chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = chunks
        weights = {key: state[f"{name}.attention.norm_{key}.weight"] for key in ("q", "k", "added_k")}
        q, k, v = heads(
            linear(modulate(F.layer_norm(x, (48,), eps=1e-6), shift_a, scale_a), f"{name}.attention.img_qkv_proj"), 3
        )
        keys, values = heads(linear(text, f"{name}.attention.txt_kv_proj"), 2)
        q, k = rotated(normalized(q, weights["q"]), table), rotated(normalized(k, weights["k"]), table)
        mask = vectors["mask"].bool() if masked else None
        out = joint_attention(q, k, v, Text(normalized(keys, weights["added_k"]), values, mask))
        x = x + gate_a[:, None] * linear(out.transpose(1, 2).flatten(2), f"{name}.attention.to_out.0")
        y = modulate(F.layer_norm(x, (48,), eps=1e-6), shift_m, scale_m)
        hidden = F.gelu(linear(y, f"{name}.gate_proj"), approximate="tanh") * linear(y, f"{name}.up_proj")
        x = x + gate_m[:, None] * linear(hidden, f"{name}.down_proj")
    shift, scale = linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2, -1)
    x = linear(modulate(F.layer_norm(x, (48,), eps=1e-6), shift, scale), "final_layer.linear")
    out = F.fold(x.transpose(1, 2), (8, 12), 2, stride=2)
    assert relative(out, vectors["out" if masked else "out_no_mask"]) < 1e-5


def test_grouped_heads_are_repeated_in_order():
    q, k, v = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    text = Text(torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8), None)
    out = joint_attention(q, k, v, text)
    for head in range(4):
        keys, values = (torch.cat([a[:, head // 2], b[:, head // 2]], 1) for a, b in ((text.keys, k), (text.values, v)))
        expected = (q[:, head] @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values
        assert relative(out[:, head], expected) < 1e-5


def test_it_starts_as_the_identity_with_output_zero():
    net = create("DeepFusion", **SHAPE | SIZES, text_length=5, vocabulary=9)
    x, t, text = net.example(2, torch.Generator().manual_seed(0))
    assert net(x, t, text).abs().max() == 0
    joins = [block.join for block in net.blocks]
    assert [join is not None for join in joins] == [False] * 3 + [True] * 3
    tokens, skip = torch.randn(2, 16, 32), torch.randn(2, 16, 32)
    assert torch.allclose(joins[3](tokens, skip), tokens, atol=1e-6)


def test_keys_of_the_middle_third_are_means_at_the_mean_position():
    net = network(text_length=5, vocabulary=9)
    attention = [block.attn for block in net.blocks]
    assert [part.key_rotation is not None for part in attention] == [False, False, True, True, False, False]
    values = torch.arange(16.0).view(1, 1, 16, 1)
    assert attention[2].means(values).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    full, short = attention[2].rotation, attention[2].key_rotation
    angle = torch.atan2(full[1], full[0])  # of the 4x4 grid; the columns come first
    middle = torch.atan2(short[1], short[0])
    assert torch.allclose(middle[0, :4], (angle[0] + angle[1])[:4] / 2)
    assert torch.allclose(middle[3, 4:], (angle[11] + angle[15])[4:] / 2, atol=1e-6)
    with pytest.raises(InputError, match=r"size 6x6 is not divisible by 4 \(patch 2, and pairs of keys; set shorter"):
        network(size=6)
    assert network(size=6, shorter=False).tokens == 9


@pytest.mark.slow
def test_the_text_does_not_depend_on_time_or_image_and_is_read_once():
    net = network(text_length=5, vocabulary=9)
    x, t, text = net.example(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        once = net.encoded(text)
        assert once.tokens is None
        assert once.layer_keys.shape == (3, 6, 5, 2, 8)
        assert torch.equal(net(x, t, once), net(x, t, text))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_reads_each_prompt_once(guidance, monkeypatch):
    words = Words(["red", "blue"], 4)
    net = network(text_length=4, vocabulary=4)
    pipe = Pipeline(net, Objective(), conditioner=TextConditioner(words.config))
    calls = []
    net.tower.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    options = {"seeds": [0, 1], "guidance_scale": guidance, "output_type": "latent"}
    for steps in (2, 5):
        calls.clear()
        images = pipe(["red", "blue"], num_inference_steps=steps, **options).images
        assert calls == ([2, 2] if guidance == 1 else [4])
    monkeypatch.setattr(inference, "encoded_pair", lambda net, condition, null, scale: (condition, null))
    calls.clear()
    assert relative(pipe(["red", "blue"], num_inference_steps=5, **options).images, images) < 1e-5
    assert len(calls) == 9  # Heun


def test_other_language_models_are_reported_in_one_line():
    net = network(text_length=5, text_layers=3)
    x, t, text = net.example(2)
    with pytest.raises(InputError, match=r"reads 3 layers with 2 heads of 8, and at most 5 tokens"):
        net(x, t, Condition(layer_keys=text.layer_keys[:, :2], layer_values=text.layer_values[:, :2]))
    for options, words in (
        ({"heads": 3}, "give a multiple of kv_heads as heads"),
        ({"head_width": 6}, "a head_width that is divisible by 4"),
        ({"depth": 2}, "depth 2; give 3 or more"),
        ({"text_length": 5, "vocabulary": 5, "text_layers": 3}, "vocabulary 5 with text_layers 3; give one"),
    ):
        with pytest.raises(InputError, match=words):
            network(**options)


def test_classes_are_interpolated_after_they_are_read():
    net = network(classes=3)
    pipe = Pipeline(net, Objective())
    options = {"seeds": [0, 0, 0], "num_inference_steps": 2, "output_type": "latent"}
    first, middle, last = pipe([0, Between(0, 2, 0.5), 2], **options).images
    assert relative(middle, first) > 1e-3
    assert relative(middle, last) > 1e-3
    once = net.encoded(pipe.conditioner.encode([Between(0, 2, 0.5)]))
    assert torch.equal(once.other.layer_keys, net.encoded(torch.tensor([2])).layer_keys)
    assert once.weight.tolist() == [0.5]
