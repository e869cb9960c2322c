import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from statistics import fmean, stdev

import pytest
from PIL import Image
from rich.console import Console

from ditlab.cli import main
from ditlab.core.errors import InputError
from ditlab.core.io import claimed
from ditlab.core.units import GIB
from ditlab.core.weights import checkpoints
from ditlab.report.plotting import plotting
from ditlab.study import run as running
from ditlab.study.claims import NO_RESULTS
from ditlab.study.plots import finish, name_points
from ditlab.study.recipe import read_study
from ditlab.study.report import write_reports
from ditlab.study.run import Results, run_study

QUIET = Console(quiet=True)
TINY = """
title = "Small <& smaller>"
question = "Is it?"
recipe = "digits"
seeds = [0, 1]
sample_sets = 2
[budget]
images = 64
[settings]
model = {name = "DiT-S/4", width = 32, depth = 1, heads = 2}
optim = {lr = 1e-2, warmup = 0, schedule = "constant"}
train = {batch = 32, ema = 0.1, precision = "float32", compile = "never", device = "cpu"}
sample = {sampler = "euler", steps = 2}
[parts]
"a | b" = {}
"c" = {model.width = 48}
[evaluation]
count = 70
device = "cpu"
metrics = ["frechet", "precision-recall", "accuracy"]
[evaluations]
"one" = {}
"two" = {steps = 3}
[[plots]]
x = "log gmacs"
fit = true
[[plots]]
x = "recall"
y = "precision"
lines = ["a | b, *", "c, *"]
[[claims]]
says = "c is better"
paper = "always"
order = ["c, one", "a | b, one"]
[[claims]]
says = "It falls"
falls_with = "log model.width"
"""


def write(folder, text=TINY, name="tiny"):
    file = folder / f"{name}.toml"
    file.write_text(text, encoding="utf-8")
    return read_study(str(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study: recipe, folder, findings and the path of the page."""
    home = tmp_path_factory.mktemp("study")
    study = write(home)
    findings = run_study(study, home / "out", QUIET)
    return study, home / "out", findings, write_reports(findings, home / "out")


def lines_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_each_score_is_a_line_and_each_run_a_folder(done):
    _, out, findings, _ = done
    lines = lines_of(out)
    assert len(lines) == 2 * 2 * 2 * 2  # parts, seeds, evaluations, sample sets
    assert [(line["part"], line["seed"]) for line in lines[::4]] == [("a | b", 0), ("c", 0), ("a | b", 1), ("c", 1)]
    folders = sorted(path.name for path in (out / "runs").iterdir())
    assert re.fullmatch(r"a---b-seed0-[0-9a-f]{8}", folders[0])
    assert folders == sorted({line["run"] for line in lines})
    assert all(checkpoints(out / "runs" / name)[-1].name == f"{64:012d}" for name in folders)
    recipe = (out / "runs" / folders[1] / "recipe.toml").read_text()
    assert "seed = 1\n" in recipe
    assert "images = 64\n" in recipe
    assert len({line["metrics"]["fd"] for line in lines}) == len(lines)  # all sets of samples differ
    assert all(set(line["metrics"]) == {"fd", "precision", "recall", "accuracy"} for line in lines)
    assert not findings.failures


def test_means_and_errors_are_computed_from_the_lines(done):
    _, out, findings, _ = done
    entry = next(each for each in findings.entries if each.name == "c, two")
    of_seed = [
        fmean(
            line["metrics"]["fd"]
            for line in lines_of(out)
            if (line["part"], line["seed"], line["evaluation"]) == ("c", seed, "two")
        )
        for seed in (0, 1)
    ]
    assert entry.values["fd"] == {0: pytest.approx(of_seed[0]), 1: pytest.approx(of_seed[1])}
    content = json.loads((out / "study.json").read_text())
    result = next(each for each in content["results"] if each["name"] == "c, two")
    assert result["results"]["fd"]["mean"] == pytest.approx(fmean(of_seed))
    assert result["results"]["fd"]["error"] == pytest.approx(stdev(of_seed) / 2**0.5)
    assert result["sampling_gmacs"] == pytest.approx(
        3 * result["gmacs"] * 2
    )  # three steps, both halves of guidance 1.15
    assert result["training_gmacs"] == pytest.approx(3 * 64 * result["gmacs"])
    assert result["model.width"] == 48
    a, b = (
        next(each for each in findings.entries if each.name == name).values["fd"] for name in ("c, one", "a | b, one")
    )
    claim = content["claims"][0]
    assert claim["found"][0]["mean"] == pytest.approx(fmean(a[seed] - b[seed] for seed in (0, 1)))
    assert claim["verdict"] == findings.verdicts[0].verdict
    assert content["claims"][1]["verdict"] != NO_RESULTS
    assert set(content["fits"]) == {"fd-over-log-gmacs"}


class Page(HTMLParser):
    """Tags, external links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.outside, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        links = [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        self.outside += [link for link in links if not link.startswith(("data:", "#"))]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained(done):
    _, out, findings, report = done
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.outside == []
    assert (page.tags.count("svg"), page.tags.count("img"), page.tags.count("section")) == (3, 4, 2)
    assert "Small <& smaller>" in page.text
    assert findings.verdicts[0].verdict in page.text
    assert str(findings.verdicts[0].comparisons[0]) in page.text
    assert "currentColor" in text
    assert "#1b1c1d" not in text
    assert len(text) < 400_000
    plots = sorted(path.name for path in (out / "plots").iterdir())
    assert plots == ["fd-over-log-gmacs.png", "precision-over-recall.png", "training.png"]
    with Image.open(out / "plots" / "training.png") as opened:
        assert opened.size == (720, 480)


def test_the_same_tables_in_markdown(done):
    _, out, findings, _ = done
    rows = (out / "summary.md").read_text(encoding="utf-8").splitlines()
    entry = next(each for each in findings.entries if each.name == "a | b, one")
    (row,) = [row for row in rows if row.startswith("| a &#124; b, one |")]
    assert f"| {entry.mean('fd'):.3f} ± {entry.error('fd'):.3f} |" in row
    heading = next(row for row in rows if row.startswith("|  | fd"))
    assert heading.count("|") == row.count("|")
    assert "steps" in heading
    assert "guidance" not in heading  # all have the same
    assert any(row.startswith("| c is better | always | fd of (c, one)") for row in rows)


@pytest.mark.slow
def test_finished_work_is_not_repeated(done, monkeypatch):
    study, out, findings, _ = done
    monkeypatch.setattr(running, "train", None)
    monkeypatch.setattr(running, "evaluate", None)
    again = run_study(study, out, QUIET)
    assert again.entries == findings.entries
    assert again.verdicts == findings.verdicts


@pytest.mark.slow
def test_a_share_of_the_training_is_scored(tmp_path):
    text = TINY[: TINY.index("[[plots]]")].replace('"a | b" = {}', "").replace("two = {", "two = {at = 0.5, ")
    text = text.replace("sample_sets = 2", "").replace("seeds = [0, 1]", "seeds = [0]")
    text = text.replace('"two" = {steps = 3}', '"half" = {at = 0.5}')
    study, out = write(tmp_path, text), tmp_path / "out"
    findings = run_study(study, out, QUIET)
    one, half = findings.entries
    assert (one.axes["images"], half.axes["images"]) == (64, 32)
    assert half.axes["training_gmacs"] == one.axes["training_gmacs"] / 2
    assert 0 < half.values["seconds"][0] < one.values["seconds"][0]
    assert half.values["fd"] != one.values["fd"]
    (run,) = (out / "runs").iterdir()
    shutil.rmtree(run / "checkpoints" / f"{32:012d}")
    with pytest.raises(InputError, match=r"kept no checkpoint at 32 images, because .*; remove the folder to train"):
        running.scored_model(run, findings.parts[0].evaluations["half"])


@pytest.mark.slow
def test_a_stopped_study_resumes(done, tmp_path, monkeypatch):
    study, _, findings, _ = done
    out, calls, evaluate = tmp_path / "out", [], running.evaluate

    def stopped(*arguments, **options):
        calls.append(arguments[0])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(running, "evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, out, QUIET)
    assert len(lines_of(out)) == 5
    with (out / "results.jsonl").open("a") as file:
        file.write('{"run": "torn')
    again = run_study(study, out, QUIET)
    assert len(calls) == 6 + 11
    assert [entry.values["fd"] for entry in again.entries] == [entry.values["fd"] for entry in findings.entries]
    assert again.verdicts == findings.verdicts


@pytest.mark.slow
def test_a_failed_part_is_reported_in_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ditlab.training.loop.preview", lambda pipes, place: Image.new("L", (8, 8)))
    failing = TINY.replace('"c" = {model.width = 48}', '"c" = {optim.lr = 1e18}')
    study = write(tmp_path, failing.replace("sample_sets = 2", "sample_sets = 1"))
    out = tmp_path / "out"
    console = Console(file=open(tmp_path / "log", "w"), width=200)  # noqa: SIM115
    findings = run_study(study, out, console)
    assert sorted(findings.failures) == ["c, seed 0", "c, seed 1"]
    assert all("finite" in message for message in findings.failures.values())
    assert [bool(entry.values) for entry in findings.entries] == [True, True, False, False]
    assert findings.verdicts[0].verdict == NO_RESULTS
    assert findings.verdicts[0].note == "without c, one: no results"
    text = write_reports(findings, out).read_text(encoding="utf-8")
    assert "<td>c, one</td><td>failed</td>" in text
    assert "<h2>Failed</h2>" in text
    assert "failed: " in (tmp_path / "log").read_text()
    before = len(lines_of(out))
    monkeypatch.setattr(sys, "argv", ["ditlab", "study", str(tmp_path / "tiny.toml"), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "2 runs failed; run the same command again" in capsys.readouterr().err
    assert len(lines_of(out)) == before + 2


@pytest.mark.slow
def test_results_of_changed_parts_and_evaluations_are_not_reused(done, tmp_path, monkeypatch):
    _, out, findings, _ = done
    trained, scored = [], []
    train, evaluate = running.train, running.evaluate
    monkeypatch.setattr(running, "train", lambda recipe, *a, **k: (trained.append(recipe), train(recipe, *a, **k)))
    monkeypatch.setattr(running, "evaluate", lambda source, settings, *a, **k: (
        scored.append((source, settings.steps)), evaluate(source, settings, *a, **k))[1])  # fmt: skip
    changed = write(tmp_path, TINY.replace("width = 48", "width = 40").replace("steps = 3", "steps = 4"))
    found = run_study(changed, out, QUIET)
    # The old part resumes at its end and gets new scores under one evaluation; the new part gets everything.
    assert sorted({recipe.model.width for recipe in trained}) == [32, 40]
    assert sum("a---b" in source for source, _ in scored) == 4
    assert sum("c-seed" in source for source, _ in scored) == 8
    assert found.entries[0] == findings.entries[0]
    assert found.entries[2].values["fd"] != findings.entries[2].values["fd"]


@pytest.mark.slow
def test_processes_share_the_runs(tmp_path):
    text = TINY.replace("sample_sets = 2", "sample_sets = 1")
    study = write(tmp_path, text)
    out = tmp_path / "out"
    first = next(iter(running.plan_parts(study, out, QUIET))).folder(0)
    with claimed(out / "locks" / f"{first}.lock"):  # another process has this run
        (out / "study.json").write_text('{"name": "tiny"}')
        assert run_study(study, out, QUIET) is None
    assert {line["run"] for line in lines_of(out)}.isdisjoint({first})
    assert len({line["run"] for line in lines_of(out)}) == 3
    assert run_study(study, out, QUIET) is not None
    assert len(lines_of(out)) == 2 * 2 * 2


def test_a_lock_ends_with_its_block_and_its_process(tmp_path):
    file = tmp_path / "x" / "a.lock"
    with claimed(file) as mine, claimed(file) as theirs:
        assert (mine, theirs) == (True, False)
    script = (
        f"import pathlib, ditlab.core.io as f; f.claimed(pathlib.Path({str(file)!r})).__enter__(); raise SystemExit"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    with claimed(file) as mine:
        assert mine


def test_two_processes_may_open_a_folder_at_once(tmp_path):
    study, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / ".study.json.1.part").touch()  # the other process is about to
    running.open_folder(study, out)
    running.open_folder(study, out)
    assert json.loads((out / "study.json").read_text()) == {"name": "tiny"}
    with pytest.raises(InputError, match="exists and is not a study"):
        running.open_folder(study, tmp_path / "tiny.toml")


@pytest.mark.slow
def test_seconds_are_converted_to_images_once(tmp_path):
    study = write(tmp_path, TINY.replace("images = 64", "seconds = 0.1"))
    first, again = (running.plan_parts(study, tmp_path / "out", QUIET) for _ in range(2))
    assert [part.recipe.train.images for part in first] == [part.recipe.train.images for part in again]
    known = json.loads((tmp_path / "out" / "images.json").read_text())
    assert known == {part.hash: part.recipe.train.images for part in first}


def test_incomplete_lines_are_ignored(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"run": "a"}\n{"run": "b", "fai')
    results = Results(file)
    results.add({"run": "c"})
    assert [line["run"] for line in results.lines()] == ["a", "c"]


class TestRejections:
    """One line on stderr, exit code 2, and nothing is overwritten."""

    @pytest.fixture
    def rejection(self, monkeypatch, capfd):
        def run(*arguments):
            monkeypatch.setattr(sys, "argv", ["ditlab", "study", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
            out, err = capfd.readouterr()
            assert (end.value.code, out, err.count("\n")) == (2, "", 1)
            return err

        return run

    @pytest.mark.slow
    def test_a_folder_of_something_else(self, rejection, tmp_path):
        write(tmp_path)
        other = tmp_path / "other"
        other.mkdir()
        (other / "study.json").write_text('{"name": "scaling"}')
        said = rejection(tmp_path / "tiny.toml", "--out", other)
        assert 'contains the study "scaling", not "tiny"; choose another folder' in said
        (other / "study.json").write_text("{")
        assert 'is damaged; write {"name": "tiny"} into it' in rejection(tmp_path / "tiny.toml", "--out", other)
        (other / "study.json").rename(other / "mine.txt")
        assert "exists and is not a study" in rejection(tmp_path / "tiny.toml", "--out", other)
        assert [path.name for path in other.iterdir()] == ["mine.txt"]

    @pytest.mark.slow
    def test_a_part_that_does_not_fit(self, rejection, tmp_path, monkeypatch):
        write(tmp_path, TINY.replace("{model.width = 48}", "{model = {width = 1024, depth = 8}}"))
        monkeypatch.setattr("ditlab.profiling.plan.total_memory", lambda device: int(1.2 * GIB))
        said = rejection(tmp_path / "tiny.toml", "--out", tmp_path / "out")
        assert re.search(r'part "c" needs \d\.\d GiB of memory and 1\.2 GiB are available; give it a smaller', said)
        assert not (tmp_path / "out" / "runs").exists()

    @pytest.mark.slow
    def test_a_missing_extra(self, rejection, tmp_path, monkeypatch):
        write(tmp_path)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert "pip install 'ditlab[plots]'" in rejection(tmp_path / "tiny.toml", "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_many_processes_of_a_launcher(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(InputError, match="does not run under torchrun"):
            run_study(write(tmp_path), tmp_path / "out", QUIET)

    def test_mistakes_in_a_recipe(self, rejection, tmp_path):
        (tmp_path / "bad.toml").write_text("[budget]\nimages = 3\n")
        assert "has no parts" in rejection(tmp_path / "bad.toml")
        assert 'did you mean "scaling"' in rejection("scalling")


@pytest.mark.slow
def test_a_dry_run_trains_nothing(tmp_path, monkeypatch, capfd):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ditlab", "study", "tiny.toml", "--dry-run", "--json"])
    main()
    found = json.loads(capfd.readouterr().out)
    assert [part["images"] for part in found["parts"]] == [64, 64]
    assert all(part["seconds"] > 0 and part["fits"] for part in found["parts"])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


@pytest.mark.slow
def test_scores_of_other_samples_are_not_reused(tmp_path):
    study = write(tmp_path, TINY)
    (part, *_) = running.plan_parts(study, tmp_path / "out", QUIET)
    (name, evaluation), *_ = part.evaluations.items()
    results = Results(tmp_path / "results.jsonl")
    job = running.Job(part, 1, sample_sets=2)
    seeds = [job.sample_seed(evaluation, number) for number in range(2)]
    other_seed = running.Job(part, 0, sample_sets=2)
    assert len({*seeds, *(other_seed.sample_seed(evaluation, number) for number in range(2))}) == 4
    # Keys as version 0.1 wrote them.
    line = {"run": job.name, "evaluation": name, "draw": 0, "way": evaluation.hash, "metrics": {"fd": 1.0}}
    results.add(line | {"picture_seed": seeds[0]})
    assert set(results.scores(job)) == {(name, 0)}
    assert results.scores(running.Job(part, 1, sample_sets=3)) == {}
    other = replace(part, evaluations={name: replace(evaluation, settings=replace(evaluation.settings, seed=5))})
    assert results.scores(running.Job(other, 1, sample_sets=2)) == {}


def test_axes_count_large_numbers_in_k_and_m():
    pyplot = plotting()
    figure, place = pyplot.subplots()
    place.plot([4e5, 1.1e7], [0.5, 140])
    finish(place, "parameters", "fd")
    figure.canvas.draw()
    shown = [{text.get_text() for text in axis.get_ticklabels()} for axis in (place.xaxis, place.yaxis)]
    assert {"2 M", "10 M"} < shown[0]
    assert {"20", "140"} < shown[1]
    pyplot.close(figure)


def test_names_of_points_cover_no_other_name():
    pyplot = plotting()
    figure, place = pyplot.subplots(figsize=(6, 4), layout="constrained")
    apart = {"the first": (0.0, 0.0), "the second": (0.01, 0.0), "the third": (1.0, 1.0)}
    place.scatter(*zip(*apart.values(), strict=True))
    place.set_ylim(-0.5, 1.5)
    assert name_points(apart, place)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in place.texts]
    assert [text.get_text() for text in place.texts] == [*apart]
    assert not any(box.overlaps(other) for box in boxes for other in boxes if other is not box)
    assert all(place.bbox.x0 <= box.x0 and box.x1 <= place.bbox.x1 for box in boxes)
    for text in list(place.texts):
        text.remove()
    assert not name_points({f"point {number}": (0.5, 0.5 + number / 1000) for number in range(5)}, place)
    assert not place.texts
    pyplot.close(figure)
