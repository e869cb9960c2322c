"""Captions that are encoded once: in memory, or in a cache."""

import json
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console
from text_net import RECIPE, Letters

import ditlab
from ditlab.cli import app, import_commands
from ditlab.conditioning import ENCODERS, Text
from ditlab.conditioning.cache import TextCache
from ditlab.conditioning.encoders.base import Region
from ditlab.core.errors import InputError
from ditlab.training import captions as captions_module

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setitem(ENCODERS, "letters", Letters)
    monkeypatch.setattr(Letters, "encoded", [])
    return Letters.encoded


@pytest.fixture
def folder(tmp_path):
    """Eight images with four captions."""
    path = tmp_path / "data"
    path.mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(["one", "two", "three", "red"][i % 4])
    return path


def recipe(folder, train=None, **data):
    data = RECIPE["data"] | {"source": str(folder)} | data
    return RECIPE | {"data": data, "train": RECIPE["train"] | (train or {})}


def encode(*arguments):
    import_commands("")
    return app(["encode", *map(str, arguments)], exit_on_error=False, result_action="return_value")


def test_a_run_encodes_each_caption_once_and_says_how_large_they_are(folder, tmp_path, letters, capsys):
    pipe = ditlab.train(recipe(folder, encoder="letters"), tmp_path / "run")
    assert "4 captions encoded by letters: 0.0 MiB, kept in memory\n" in capsys.readouterr().err
    assert sorted(letters) == sorted(["", *2 * ["one", "two", "three", "red"]])  # once more for the previews
    assert (pipe.net.config["text_width"], pipe.net.config["pooled_width"]) == (3, 2)
    again = ditlab.load(tmp_path / "run")
    a, b = (model(["two", None], seeds=1, output_type="pt").images for model in (pipe, again))
    assert torch.equal(a, b)
    assert not torch.equal(a[0], a[1])


@pytest.mark.slow
def test_a_cache_gives_the_same_weights_and_needs_no_encoder(folder, tmp_path, letters, capsys):
    whole = ditlab.train(recipe(folder, encoder="letters"), tmp_path / "whole", console=QUIET)
    encode(folder, "--captions", "--encoder", "letters", "--out", tmp_path / "cache")
    printed = capsys.readouterr().err
    assert (
        "4 different captions, 4 to encode with letters, and the empty text: 0.0 MiB (5 tokens of 3 values)\n"
        in printed
    )
    assert "encoded 4 captions into" in printed
    letters.clear()
    settings = recipe(folder, train={"preview_every": 10_000}, text_cache=str(tmp_path / "cache"))
    cached = ditlab.train(settings, tmp_path / "run", console=QUIET)
    assert set(letters) <= {"", "one", "two", "three", "red"}  # of the last preview
    assert cached.conditioner.config == whole.conditioner.config
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, cached.net.state_dict()[name])

    encode(folder, "--captions", "--encoder", "letters", "--out", tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache")
    capsys.readouterr()
    for place in (str(tmp_path / "moved"), ""):  # a run resumes with another cache of its encoder, and without one
        own = recipe(folder, train={"preview_every": 10_000}, text_cache=place, encoder="letters")
        ditlab.train(own, tmp_path / "run")
        lines = capsys.readouterr().err.replace("\n", " ")
        assert "data.text_cache is " in lines
        assert "with the same text encoder" in lines
    with pytest.raises(InputError, match=r"seed 1.* here: it is another text encoder than that of the run\)"):
        ditlab.train(recipe(folder, encoder="letters", encoder_options={"seed": 1}), tmp_path / "run", console=QUIET)
    (tmp_path / "moved").rename(tmp_path / "cache")

    (folder / "0.txt").write_text("purple")
    with pytest.raises(
        InputError, match=r'cache lacks 1 of 5 captions, such as "purple"; encode the captions again into'
    ):
        ditlab.train(settings, tmp_path / "other", console=QUIET)
    letters.clear()
    encode(folder, "--captions", "--encoder", "letters", "--out", tmp_path / "cache", "--encoder-options.length", 5)
    assert letters == ["purple"]


def test_rows_of_a_cache_are_those_of_the_encoder(tmp_path, monkeypatch):
    encoder = Letters(6)
    monkeypatch.setattr("ditlab.conditioning.cache.FILE_BYTES", 120)  # two texts in each file
    cache = TextCache.prepare(tmp_path / "cache", encoder)
    texts = ["", "a", "bcd", "efghij", "k"]
    assert list(cache.add(texts, encoder)) == [2, 2, 1]
    opened = TextCache.open(tmp_path / "cache")
    assert opened.missing(["k", "new"]) == ["new"]
    rows, expected = opened.rows(texts)[torch.tensor([4, 0, 3])], encoder.encode(["k", "", "efghij"])
    assert torch.equal(rows.tokens, expected.tokens.bfloat16())
    assert torch.equal(rows.mask, expected.mask)
    assert torch.equal(rows.pooled, expected.pooled)
    assert opened.encoder.rule == encoder.rule


@pytest.mark.slow
def test_caches_that_do_not_fit(folder, tmp_path, monkeypatch):
    TextCache.prepare(tmp_path / "cache", Letters(5))
    for settings, line in (
        ({"encoder": "words"}, r"the captions in .*cache were encoded with letters, not with words; encode them"),
        ({"encoder": "letters", "encoder_options": {"seed": 1}},
         r"the captions in .*cache were encoded with seed 0, not 1; encode them again in another folder"),
        ({"encoder_options": {"seed": 1}},
         "data.encoder_options have no effect with data.text_cache, which contains its encoder; remove them, or set "
         "data.encoder too"),
        ({"text_cache": str(tmp_path / "cash")}, r"cash is no cache of captions; did you mean .*cache\?"),
        ({"text_cache": str(folder)}, r"data is no cache of captions; give a folder that `ditlab encode` wrote"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=line):
            ditlab.train(
                recipe(folder, **{"text_cache": str(tmp_path / "cache")} | settings), tmp_path / "run", console=QUIET
            )
    with pytest.raises(InputError, match=r"cache were encoded with length 5, not 9; encode them again"):
        encode(folder, "--captions", "--encoder", "letters", "--out", tmp_path / "cache", "--encoder-options.length", 9)
    monkeypatch.setattr(captions_module, "IN_MEMORY", 100)
    with pytest.raises(
        InputError, match=r"4 captions encoded by letters: 0.0 MiB, more than the 0 MiB that are kept in"
    ):
        ditlab.train(recipe(folder, encoder="letters"), tmp_path / "run", console=QUIET)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "nothing to encode with; give --autoencoder, or --captions for the captions of the images"),
        (("--captions", "--autoencoder", "x"), "--captions encodes captions and no images; leave --autoencoder out"),
        (("--captions", "--encoder", "words"),
         "--encoder words has no states to cache; choose a pretrained encoder, such as minilm"),
        (("--captions", "--encoder", "letter"), 'unknown encoder "letter"; did you mean "letters"?'),
    ],
)  # fmt: skip
def test_wrong_calls_of_encode(folder, tmp_path, arguments, line):
    with pytest.raises(InputError) as caught:
        encode(folder, "--out", tmp_path / "cache", *arguments)
    assert str(caught.value) == line
    assert not (tmp_path / "cache").exists() or not any((tmp_path / "cache").glob("*.safetensors"))


def test_a_damaged_cache_is_one_line(tmp_path):
    encoder = Letters(5)
    cache = TextCache.prepare(tmp_path / "cache", encoder)
    assert list(cache.add(["a"], encoder)) == [1]
    (tmp_path / "cache/000000.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"000000.safetensors .*; remove it and encode the captions again"):
        TextCache.open(tmp_path / "cache")
    (tmp_path / "cache/description.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(InputError, match=r"cache is no cache of captions; give a folder that `ditlab encode` wrote"):
        TextCache.open(tmp_path / "cache")


def test_every_kind_of_condition_can_be_cut_joined_moved_and_dropped(letters):
    text = Text({"kind": "letters", "length": 4})
    rows = text.encode(["ab", None, "c"])
    assert [len(value) for value in rows[1:].parts().values()] == [2, 2, 2]
    assert len(rows.joined(rows[:1])) == 4
    assert rows.to("cpu", torch.bfloat16).tokens.dtype == torch.bfloat16
    assert rows.to("cpu", torch.bfloat16).mask.dtype == torch.bool
    dropped = text.drop(rows, torch.tensor([True, False, False]))
    assert torch.equal(dropped.tokens[0], dropped.tokens[1])
    assert torch.equal(dropped.pooled[0], text.null(1).pooled[0])
    assert torch.equal(dropped.tokens[2], rows.tokens[2])


class Pair(Letters):
    """Two encoders: of the first letter, and of the others."""

    def __init__(self, length, seed=0):
        super().__init__(length, seed)
        self.config["kind"] = "pair"

    def regions(self):
        return {
            "first": Region(slice(0, 1), slice(None), slice(0, 1)),
            "others": Region(slice(1, None), slice(None), slice(1, 2)),
        }


@pytest.mark.slow
def test_each_of_several_encoders_is_dropped_with_its_probability(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS, "pair", Pair)
    seen, drop = [], Text.drop_encoders

    def watched(self, condition, rows):
        result = drop(self, condition, rows)
        seen.append((condition, result, rows))
        return result

    monkeypatch.setattr(Text, "drop_encoders", watched)
    chosen = recipe(folder, {"images": 512, "encoder_dropout": {"others": 0.25, "first": 0.5}}, encoder="pair")
    whole = ditlab.train(chosen, tmp_path / "whole", console=QUIET)
    rows = {name: torch.cat([rows[name] for *_, rows in seen]) for name in ("first", "others")}
    both = (rows["first"] & rows["others"]).float().mean()
    assert all(abs(rows[name].float().mean() - share) < 0.06 for name, share in {"first": 0.5, "others": 0.25}.items())
    assert abs(both - 0.125) < 0.04  # independent of each other
    for before, after, part in seen[:3]:
        first, others = part["first"][:, None], part["others"][:, None]
        lacking = torch.cat([first, others.expand(-1, before.tokens.shape[1] - 1)], dim=1)
        assert torch.equal(after.tokens, before.tokens * ~lacking[..., None])
        assert torch.equal(after.pooled, before.pooled * ~torch.cat([first, others], dim=1))

    half = chosen | {"train": chosen["train"] | {"images": 256}}
    ditlab.train(half, tmp_path / "parts", console=QUIET)
    parts = ditlab.train(chosen, tmp_path / "parts", console=QUIET)  # resumes
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), parts.net.parameters(), strict=True))
    saved = ditlab.load(tmp_path / "whole").config["recipe"]["train"]["encoder_dropout"]
    assert saved == {"others": 0.25, "first": 0.5}


@pytest.mark.parametrize(
    ("encoder", "dropout", "line"),
    [
        ("pair", {"second": 0.5}, 'train.encoder_dropout names "second"; the text encoders are first, others'),
        ("pair", {"first": 1.5}, "train.encoder_dropout of first is 1.5; give 0 to 1"),
        ("letters", {"first": 0.5}, "train.encoder_dropout drops one of several text encoders, and this model does not "
         "have several; remove it, or set train.label_dropout"),
    ],
)  # fmt: skip
def test_encoders_that_cannot_be_dropped(folder, tmp_path, monkeypatch, encoder, dropout, line):
    monkeypatch.setitem(ENCODERS, "pair", Pair)
    with pytest.raises(InputError) as caught:
        ditlab.train(recipe(folder, {"encoder_dropout": dropout}, encoder=encoder), tmp_path / "run", console=QUIET)
    assert str(caught.value) == line
