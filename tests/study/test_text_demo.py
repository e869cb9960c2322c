"""The demo of text to image, the command that scores prompts, and a study of prompts: all with one tiny network."""

import json

import pytest
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.cli import main
from ditlab.config.reader import parse_recipe, read_toml
from ditlab.core.errors import InputError, RunError
from ditlab.data.builtin import colored_shapes, emoji_captions
from ditlab.evaluation import prompts
from ditlab.study import text_demo
from ditlab.study.recipe import read_study
from ditlab.study.report import conditions
from ditlab.study.run import run_study

RECIPE = """
model = {name = "Hourglass", width = 16, depth = 2, heads = 2, outer = [8], patch = 2, condition_grid = true}
diffusion = {target = "x0", weight = "velocity"}
data = {source = "SOURCE", conditioner = "text"}
train = {images = 128, batch = 32, preview_every = 1_000_000}
sample = {sampler = "euler", steps = 2, guidance = 2.0}
"""
STUDY = """
recipe = "shapes.toml"
seeds = [0]
budget = {images = 64}
parts = {words = {}, pooled = {model = {core = "convolution"}}}
evaluation = {metrics = ["prompts"], count = 20}
plots = []
claims = [{says = "words help", by = "prompts_held_out", order = ["pooled", "words"]}]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "emoji.toml").write_text(RECIPE.replace("SOURCE", "emoji-captions-16"))
    (tmp_path / "shapes.toml").write_text(RECIPE.replace("SOURCE", "colored-shapes"))
    (tmp_path / "words.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(colored_shapes, "COUNT", 200)
    monkeypatch.setattr(colored_shapes, "HELD_OUT", 50)
    monkeypatch.setattr(emoji_captions, "CHOSEN", "🍎 🍌 🐼 🚀 🐢 🔑 🐸 🎈 🌵 🍕")
    return tmp_path


@pytest.fixture
def quiet():
    return Console(quiet=True)


def called(monkeypatch, capfd, *arguments):
    monkeypatch.setattr("sys.argv", ["ditlab", *arguments])
    main()
    return capfd.readouterr().out


@pytest.mark.slow
def test_the_demo_scores_prompts_and_says_how_to_type_one(place, monkeypatch, capfd):
    monkeypatch.setattr(text_demo, "PROMPTS", 80)
    monkeypatch.setattr(text_demo, "PROCESSES", 1)
    monkeypatch.setattr(text_demo, "FEATURE_MINUTES", 0.005)
    monkeypatch.setattr(prompts, "REFERENCE", 100)
    recipe = parse_recipe(read_toml(place / "emoji.toml"))
    monkeypatch.setattr(text_demo, "demo_recipe", lambda: recipe)
    result = json.loads(called(monkeypatch, capfd, "demo", "--text", "--json"))
    assert result["folder"] == "runs/demo-text"
    assert result["score"]["seen"]["both"]["share"] < 0.5  # after four training steps
    assert result["score"]["real held-out images"]["clear"]["share"] == 1
    assert result["score"]["held-out"]["all"]["of"] == 80
    assert result["fd"] > result["real_fd"] > 0
    assert json.loads((place / "runs/demo-text/score.json").read_text()) == result
    assert Image.open(place / "runs/demo-text/grid.png").height > 12 * 32
    pipe = ditlab.load("runs/demo-text")
    pipe.save(place / "model")
    assert "emoji by OpenMoji (openmoji.org), license CC BY-SA 4.0" in (place / "model" / "README.md").read_text()
    text = called(monkeypatch, capfd, "score-prompts", "runs/demo-text", "--count", "3")
    assert text.splitlines()[0].startswith("seen, 3 images: object ")
    assert len(text.splitlines()) == 4


def test_the_report_has_the_next_command(place):
    rate = prompts.Rate(99, 100)
    rates = {key: {"both": rate, "clear": rate} for key in (prompts.SEEN, prompts.HELD_OUT, prompts.REAL)}
    demo = text_demo.TextDemo(prompts.PromptScore(rates), prompts.Distance(3.0, 2.0, 300), 570, 60, place)
    lines = demo.report("ditlab")
    assert lines[:2] == [
        "trained in 570 s, scored in 60 s",
        "pairs seen in training: object and background right 99.0% (94.6% to 99.8%), clear 99.0% (94.6% to 99.8%)",
    ]
    assert "FD 3, real-vs-real FD 2: 1.50x (300 samples)" in lines
    assert f'type a prompt: ditlab sample {place} --prompts "a blue apple on a yellow background" --seeds 0-7' in lines
    assert lines[-1] == "emoji: OpenMoji (openmoji.org), CC BY-SA 4.0"


@pytest.mark.slow
def test_two_processes_train_the_demo(tmp_path, quiet):
    (tmp_path / "shapes.toml").write_text(RECIPE.replace("SOURCE", "colored-shapes"))
    tables = read_toml(tmp_path / "shapes.toml")
    pipe = text_demo.train_in_processes(parse_recipe(tables), tmp_path / "run", quiet)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert (pipe.config["images_seen"], [line["images"] for line in lines]) == (128, [128])
    broken = parse_recipe({**tables, "train": {"images": 128, "batch": 1}})
    with pytest.raises(RunError, match=r"a process of the training failed: .*a batch of 1 cannot be shared among 2"):
        text_demo.train_in_processes(broken, tmp_path / "broken", quiet)


@pytest.mark.slow
def test_a_study_compares_prompts(place, quiet):
    study = read_study("words.toml")
    for _ in range(2):  # the second time, everything is read
        found = run_study(study, place / "study", quiet)
        assert not found.failures
        values = {entry.name: entry.values for entry in found.entries}
        assert set(values) == {"words", "pooled"}
        assert 0 <= values["words"]["prompts_held_out"][0] < 0.5
        assert {"prompts_seen", "binding_errors", "relation_errors"} <= set(values["words"])
        assert (place / found.grids["words"]).exists()
    assert "samples per score; ± is" in conditions(found)


@pytest.mark.slow
def test_prompts_of_data_without_a_known_truth(place, quiet):
    for source, message in (
        ("glyphs-16", 'part "words": the truth of these images is not known; give emoji-captions-SIZE, '),
        ("colored-shapes", 'part "words": the metric prompts needs a model that reads text; set data.conditioner'),
    ):
        recipe = RECIPE.replace("SOURCE", source).replace('conditioner = "text"', 'conditioner = "class"')
        (place / "shapes.toml").write_text(recipe)
        with pytest.raises(InputError) as error:
            run_study(read_study("words.toml"), place / source, quiet)
        assert str(error.value).startswith(message)
