"""Training on captions."""

import json

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console
from text_net import RECIPE

import ditlab
from ditlab.cli import app, import_commands
from ditlab.cli.prompts import sampling
from ditlab.core.errors import InputError
from ditlab.data import InMemory, open_dataset
from ditlab.inference.records import read_record
from ditlab.report.sheets import contact_sheet, wrapped
from ditlab.training.captions import CaptionConditions, Captions
from ditlab.training.rng import Randomness, RunRandomness

QUIET = Console(quiet=True)
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture
def folder(tmp_path):
    """Twelve images with two captions each."""
    path = tmp_path / "data"
    path.mkdir()
    with (path / "metadata.jsonl").open("w") as file:
        for i in range(12):
            name = [*COLORS][i % 2]
            Image.new("RGB", (8, 8), COLORS[name]).save(path / f"{i}.png")
            texts = [f"a {name} square", f"all {name}"]
            file.write(json.dumps({"file_name": f"{i}.png", "text": texts}) + "\n")
    return path


def recipe(folder, **sections):
    data = {"source": str(folder), "flip": True, "size": "8"} | RECIPE["data"] | sections.pop("data", {})
    return {key: value | sections.get(key, {}) for key, value in (RECIPE | {"data": data}).items()}


def equal(a, b):
    return all(torch.equal(value, b.net.state_dict()[name]) for name, value in a.net.state_dict().items())


def test_a_captioned_folder_trains_resumes_and_loads(folder, tmp_path):
    whole = ditlab.train(recipe(folder), tmp_path / "whole", console=QUIET)
    assert whole.conditioner.encoder.words == ["a", "all", "blue", "red", "square"]
    assert (whole.net.config["vocabulary"], whole.net.config["text_length"]) == (7, 4)
    assert whole.examples == ["a red square", "all red", "a blue square", "all blue"]
    assert [*(tmp_path / "whole/previews").glob("*.png")]

    ditlab.train(recipe(folder, train={"images": 32}), tmp_path / "parts", console=QUIET)
    parts = ditlab.train(recipe(folder), tmp_path / "parts", console=QUIET)
    assert equal(whole, parts)

    again = ditlab.load(tmp_path / "whole")
    assert again.conditioner.config == whole.conditioner.config
    a, b = (pipe(["all red", "all blue", None], seeds=7, output_type="pt").images for pipe in (whole, again))
    assert torch.equal(a, b)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], a[2])

    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("all", "only"))
    with pytest.raises(InputError, match=r"whole holds another run \(the captions of the images have changed\)"):
        ditlab.train(recipe(folder, train={"images": 96}), tmp_path / "whole", console=QUIET)


@pytest.mark.slow
def test_training_continues_with_the_words_of_the_source(folder, tmp_path):
    ditlab.train(recipe(folder), tmp_path / "first", console=QUIET)
    for i in range(12):
        (folder / f"{i}.txt").write_text("all red" if i % 2 else "all blue square")
    (folder / "metadata.jsonl").unlink()
    tuned = recipe(folder, train={"init_from": str(tmp_path / "first")}) | {"model": {}}
    second = ditlab.train(tuned, tmp_path / "second", console=QUIET)
    assert second.conditioner.encoder.words == ["a", "all", "blue", "red", "square"]
    (folder / "0.txt").write_text("all purple")
    with pytest.raises(InputError, match='unknown word "purple" in "all purple"; this model was trained on 5 words'):
        ditlab.train(tuned, tmp_path / "third", console=QUIET)
    with pytest.raises(
        InputError, match=r'data.encoder is "minilm", but the model to start from was trained with "wor'
    ):
        ditlab.train(tuned | {"data": tuned["data"] | {"encoder": "minilm"}}, tmp_path / "fourth", console=QUIET)
    with pytest.raises(InputError, match=r"data.encoder_options cannot change the encoder of the model to start from"):
        ditlab.train(
            tuned | {"data": tuned["data"] | {"encoder_options": {"length": 9}}}, tmp_path / "fourth", console=QUIET
        )


@pytest.mark.slow
def test_class_names_become_captions(tmp_path):
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    data = InMemory(images, torch.tensor([0, 1, 0, 1]), ["cat", "dog"])
    tables = recipe("digits", data={"caption_template": "a photo of a {class}", "flip": False, "size": ""})
    pipe = ditlab.train(tables, tmp_path / "run", data=data, console=QUIET)
    assert pipe.examples == ["a photo of a cat", "a photo of a dog"]
    tables["train"] = tables["train"] | {"images": tables["train"]["images"] + 16}
    longer = ditlab.train(tables, tmp_path / "run", data=data, console=QUIET)  # the run resumes: it has no classes
    assert longer.config["images_seen"] > pipe.config["images_seen"]
    data.texts = [("a tabby",), (), (), ()]
    captions = Captions.of(data, "the {class}")
    assert captions.texts == ["a tabby", "the dog", "the cat"]
    assert captions.lines(pipe.conditioner) == [
        "captions: 4 for 4 images, 3 different", "3 captions from data.caption_template",
    ]  # fmt: skip


def test_captions_in_python_are_texts_or_lists_of_texts():
    images, labels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)
    data = InMemory(images, labels, [], captions=["a  red apple", ["one", "two"], None])
    assert Captions.of(data).texts == ["a red apple", "one", "two", ""]
    with pytest.raises(InputError, match="captions has 2 entries for 3 images; give one for each image: a text, or"):
        InMemory(images, labels, [], captions=["a", "b"])
    for wrong, shown in ((3, "3"), ("a\ud800", r"'a\\ud800'")):
        data = InMemory(images, labels, [], captions=["a", "b", wrong])
        with pytest.raises(InputError, match=rf"^a caption of image 2 is {shown}, which is no text; correct it$"):
            Captions.of(data)


def test_captions_without_words_are_reported():
    data = InMemory(
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), [], captions=["red", "?!"]
    )
    captions = Captions.of(data)
    lines = captions.lines(ditlab.conditioning.Text.for_data(data, {"captions": captions.texts}))
    assert lines[1:] == ['1 of 2 captions have no words and are trained with the null condition, such as "?!"']


def test_images_without_captions_and_long_captions_are_reported(folder, tmp_path):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(lines[2:]))
    dataset = open_dataset(str(folder))
    pipe = ditlab.train(
        recipe(folder, data={"encoder_options": {"length": 3}}), tmp_path / "run", data=dataset, console=QUIET
    )
    assert Captions.of(dataset).lines(pipe.conditioner) == [
        "captions: 20 for 12 images, 4 different",
        "2 of 12 images have no caption and are trained with the null condition",
        '2 of 4 captions are longer than the 3 tokens of the model and are cut, such as "a red square"',
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "the data have no captions, which the conditioner text needs; add metadata.jsonl with file_name and text, "
         "or .txt files beside the images, or set data.caption_template, such as \"a photo of {class}\""),
        ({"caption_template": "a photo"},
         'data.caption_template is "a photo"; put {class} where the name of the class belongs'),
        ({"conditioner": "class", "caption_template": "a {class}"},
         'data.caption_template is "a {class}", but data.conditioner is "class"; remove it or set data.conditioner to '
         '"text"'),
        ({"conditioner": "class", "encoder": "words"},
         'data.encoder is "words", but data.conditioner is "class"; remove it or set data.conditioner to "text"'),
        ({"conditioner": "class", "encoder_options": {"length": 3}},
         'data.encoder_options need a text encoder, but data.conditioner is "class"; remove them or set '
         'data.conditioner to "text"'),
        ({"classes": 10}, 'data.classes is 10, but data.conditioner is "text", which has no classes; remove it or set '
         "data.conditioner"),
    ],
)  # fmt: skip
def test_data_and_settings_that_do_not_suit_text(tmp_path, change, line):
    data = InMemory(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), ["cat"])
    tables = recipe("digits", data={"flip": False, "size": ""} | change)
    with pytest.raises(InputError) as caught:
        ditlab.train(tables, tmp_path / "run", data=data, console=QUIET)
    assert str(caught.value).startswith(line)


def test_networks_that_do_not_suit_text(folder, tmp_path):
    tables = recipe(folder) | {"model": {"name": "U-ViT-S/2"}}
    with pytest.raises(
        InputError, match=r"U-ViT-S/2 reads no text; choose a network that does \(.*\), or another data"
    ):
        ditlab.train(tables, tmp_path / "run", console=QUIET)
    tables = recipe(folder, model={"text_length": 99})
    with pytest.raises(InputError, match=r"model.text_length is 99, but the data give 4; remove it"):
        ditlab.train(tables, tmp_path / "run", console=QUIET)


def test_one_of_several_captions_is_chosen_by_the_position_in_the_run():
    data = InMemory(
        torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), [],
        captions=[("one",), ("two", "three", "four"), ()],
    )  # fmt: skip
    captions = Captions.of(data)
    conditioner = ditlab.conditioning.Text.for_data(data, {"captions": captions.texts})
    conditions = CaptionConditions.encode(captions, conditioner)
    index = torch.tensor([1]).expand(3000)
    at = Randomness(RunRandomness(0), 0, 0, 3000, 3000)
    tokens = conditions.condition(index, at).tokens[:, 1]
    words = conditioner.encoder.words
    shares = {word: (tokens == 2 + words.index(word)).float().mean().item() for word in ("two", "three", "four")}
    assert all(abs(share - 1 / 3) < 0.03 for share in shares.values())
    later = Randomness(RunRandomness(0), 1000, 500, 200, 1000)  # a part of a later batch
    assert torch.equal(conditions.condition(index[:200], later).tokens[:, 1], tokens[1500:1700])
    assert not torch.equal(
        conditions.condition(index, Randomness(RunRandomness(1), 0, 0, 3000, 3000)).tokens[:, 1], tokens
    )
    assert conditions.condition(torch.tensor([0, 2]), Randomness(RunRandomness(0), 0, 0, 2, 2)).tokens.tolist() == [
        [1, 2 + words.index("one")], [1, 0],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained on captions, and its folder."""
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[::2, 0], images[1::2, 2] = 255, 255
    captions = [("a red square",), ("a blue square",), ("all red",), ("all blue",)]
    data = InMemory(images, torch.zeros(4, dtype=torch.long), [], captions=captions)
    folder = tmp_path_factory.mktemp("model") / "run"
    tables = recipe("x", data={"flip": False, "size": ""})
    return ditlab.train(tables, folder, data=data, console=QUIET), folder


def test_a_negative_prompt_replaces_the_null_condition(trained):
    pipe, _ = trained
    settings = {"seeds": 3, "output_type": "pt", "guidance_scale": 4}
    plain, negative, other = (
        pipe("all red", negative_prompt=prompt, **settings).images for prompt in (None, "all blue", "a blue square")
    )
    assert not torch.equal(plain, negative)
    assert not torch.equal(other, negative)
    assert torch.equal(pipe("all red", negative_prompt="", **settings).images, plain)
    # Guidance away from the prompt itself is the prompt without guidance.
    alone = pipe("all red", **settings | {"guidance_scale": 1}).images
    assert torch.allclose(pipe("all red", negative_prompt="all red", **settings).images, alone, atol=1e-5)
    assert torch.equal(pipe(prompt=["all red"], **settings).images, plain)
    assert torch.equal(pipe(prompts="all red", **settings).images, plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"guidance": 1}, "negative_prompt has no effect at guidance 1, which disables guidance; set guidance above 1"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt ['a', 'b']; give one text for all images"),
        ({"negative_prompt": "green"},
         'unknown word "green" in "green"; this model was trained on 5 words'),
        ({"prompt": "all red"}, "labels and prompt are the same setting; give one of them"),
    ],
)  # fmt: skip
def test_negative_prompts_without_effect(trained, options, line):
    pipe, _ = trained
    with pytest.raises(InputError) as caught:
        pipe("all red", **{"negative_prompt": "all blue"} | options)
    assert str(caught.value) == line
    with pytest.raises(InputError, match="negative_prompt has no effect with a guide model, which takes its place"):
        pipe("all red", negative_prompt="all blue", guide=pipe, guidance=2)
    with pytest.raises(InputError, match='negative_prompt "bad" for a model that reads no text; leave it out'):
        tiny_pipeline()("0", negative_prompt="bad", guidance=2)


def test_records_have_the_prompts(trained, tmp_path):
    pipe, _ = trained
    output = pipe(["all red", ditlab.between("all red", "all blue", 3)[1]], negative_prompt="a square", seeds=[1, 2])
    first, second = output.settings
    assert (first["prompt"], first["negative_prompt"], first["seed"]) == ("all red", "a square", 1)
    assert second["prompt"] == {"first": "all red", "second": "all blue", "weight": 0.5}
    assert "label" not in first
    output.save(tmp_path)
    repeat = read_record(tmp_path / "0000.png")
    assert repeat.distinct("label") == ["all red"]
    assert repeat.words({}, pipe.objective)["negative_prompt"] == "a square"


def run(*arguments):
    """A command of the command line in this process."""
    import_commands("")
    return app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


@pytest.mark.slow
def test_the_command_line_generates_prompts(trained, tmp_path, capsys, monkeypatch):
    _, folder = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("all blue\n\na blue square\n", encoding="utf-8")
    quick = ["--device", "cpu", "--compile", "never", "--batch-size", 8, "--precision", "float32"]
    run("sample", folder, "--prompts", "a red square", "--prompts-file", "prompts.txt", "--seeds", 0, 1,
        "--negative-prompt", "all blue", *quick)  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "samples").glob("*-seed*.png"))
    assert names == [f"{stem}-seed{i}.png" for stem in ("a_blue_square", "a_red_square", "all_blue") for i in (0, 1)]
    listed = json.loads((tmp_path / "samples/samples.json").read_text())
    assert (listed["negative_prompt"], listed["images"][0]["prompt"]) == ("all blue", "a red square")

    run("sample", "--like", "samples/a_red_square-seed0.png", "--out", "again", *quick)
    a, b = ((tmp_path / place / "a_red_square-seed0.png").read_bytes() for place in ("samples", "again"))
    assert a == b
    run("sample", folder, "--prompts", "all red", "all blue", "--strip", 3, "--seeds", 0, "--out", "strip", *quick)
    assert (tmp_path / "strip/all_red-to-all_blue-seed0-01.png").exists()
    run("sample", folder, "--seeds", 0, "--out", "examples", *quick)  # some captions of the training data
    assert (tmp_path / "examples/all_red-seed0.png").exists()
    assert sampling(folder).endswith(f" sample {folder} --prompts 'a red square'")
    run("info", folder)
    assert "reads prompts of 5 words, up to 4 tokens, encoded by words" in capsys.readouterr().err

    capsys.readouterr()
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, line in (
        (["--labels", "all red"], "--labels for a model that reads prompts; give --prompts"),
        (["--labels", "a", "--prompts", "b"],
         "--labels names classes, and a model that reads prompts has none; leave --labels out"),
        (["--prompts-file", "empty.txt"], "empty.txt has no prompts; write one in each line"),
        (["--prompts-file", "prompt.txt"], "no file of prompts prompt.txt; did you mean prompts.txt?"),
        (["--npz"], "this model reads prompts, and its training data were given in Python; give prompts: a text file "
         "with one in each line (.txt), or data with captions"),
        (["--npz", "--prompts", "green"], 'unknown word "green" in "green"; this model was trained on 5 words'),
        (["--prompts", ""], "a prompt is empty; give a text, or None for no prompt"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            run("sample", folder, *arguments, "--out", "bad", *quick)
        assert str(caught.value) == line
    tiny_pipeline().save(tmp_path / "classes")
    with pytest.raises(InputError, match="--prompts for a model that reads no text; give --labels"):
        run("sample", tmp_path / "classes", "--prompts", "a", "--out", "bad", *quick)


def test_the_card_of_a_text_model(trained, tmp_path):
    card = (trained[0].save(tmp_path / "saved") / "README.md").read_text()
    assert "pipeline_tag: text-to-image\n" in card
    assert "pipe('a red square', seeds=range(4)).images" in card
    assert "- network: text_net:TextNet, input 3x8x8, text of up to 4 tokens" in card.replace("\\", "")


def test_long_prompts_are_wrapped_on_contact_sheets():
    image = Image.new("RGB", (48, 48))
    short, long = (contact_sheet([[image]], [name]).width for name in ("x" * 32, "a red apple " * 40))
    assert long <= short + 10
    assert wrapped("a red apple " * 40, 2).splitlines()[1].endswith(" ...")
    assert wrapped("a red apple", 1) == "a red apple"
