import html
import json
import os
import re
import shlex
import sys
import time
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from ditlab.cli import main
from ditlab.config.reader import parse_recipe
from ditlab.config.sections import Train
from ditlab.core.errors import InputError
from ditlab.core.io import held
from ditlab.inference.optimize.timing import CLOCKS
from ditlab.report.html import figure, page
from ditlab.report.run import Progress, blocks, progress, read_metrics, sparkline, view, write_report
from ditlab.training import train
from ditlab.training.trackers import flat

QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "train": {"images": 128, "batch": 32, "precision": "float32", "compile": "never", "device": "cpu"}
    | {"log_every": 32, "preview_every": 64, "save_every": 64},
    "sample": {"sampler": "euler", "steps": 2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small <run>"
    train(parse_recipe(TINY), folder, console=QUIET)
    return folder


def test_a_sparkline_rises_with_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([5] * 4, 8) == "▁▁▁▁"
    assert sparkline([0, 0, 10, 10, 0, 0], 3) == "▁█▁"


def test_an_image_as_text_has_its_colors(tmp_path):
    image = Image.new("RGB", (3, 4), (255, 0, 0))
    image.paste((0, 0, 255), (0, 1, 3, 2))
    image.save(tmp_path / "x.png")
    text = blocks(tmp_path / "x.png", 10)
    assert text.plain == "▀▀▀\n▀▀▀\n"
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(0,0,255)"


def test_watching_shows_curves_and_the_preview(run):
    out = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    out.print(view(run, Train(images=128)))
    shown = out.export_text()
    assert ": finished, 128 of 128 images" in shown
    assert "gradient norm" in shown
    assert "preview at 128 images" in shown
    assert shown.count("▀") > 1000
    with pytest.raises(InputError, match=r"checkpoints is not a training run: there is no recipe.toml; give the"):
        read_metrics(run / "checkpoints")


def watch(*arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ditlab", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_watching_into_a_file_prints_plain_lines(run, capsys, monkeypatch):
    last = read_metrics(run)[-1]
    for options in ([], ["--once"]):
        assert watch("watch", run, *options, monkeypatch=monkeypatch, capsys=capsys).splitlines() == [
            f"{run}: finished, 128 of 128 images",
            f"loss: {last['loss']:,.4g}",
            f"gradient norm: {last['grad_norm']:,.4g}",
            "learning rate: 0.0001",
            f"images/s: {last['images_per_second']:,.4g}",
            f"preview: {run / 'previews' / '000000000128.png'}",
        ]


@pytest.mark.slow
def test_a_stopped_run_is_shown_with_the_command_that_resumes_it(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a run with a very long name, so that its command is longer than a line of a log file"
    stop = types.SimpleNamespace(on_log=lambda seen, values: seen == 64)
    train(parse_recipe(TINY), folder, console=QUIET, callbacks=[stop])
    shown = watch("watch", folder, monkeypatch=monkeypatch, capsys=capsys).splitlines()
    assert shown[0] == f"{folder}: stopped at 64 of 128 images"
    assert shown[-1].startswith("to resume: ")
    _, *words = shlex.split(shown[-1].removeprefix("to resume: "))
    assert words == ["train", str(folder / "recipe.toml"), "--out", str(folder)]
    watch(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert progress(folder, Train(images=128)).state == "finished"
    assert [line["images"] for line in read_metrics(folder)] == [32, 64, 96, 128]


class Clock:
    """A clock that is a second later at every reading of the training loop."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1.0
        return self.now


@pytest.mark.slow
def test_a_run_with_a_time_ends_with_it_and_keeps_it_when_it_is_paused(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CLOCKS, "wall", Clock().monotonic)
    settings = TINY | {
        "optim": {"lr": 1e-3, "schedule": "linear"},
        "train": TINY["train"] | {"images": 10**9, "minutes": 0.2, "save_every": 1024, "preview_every": 1024},
    }
    recipe, folder = parse_recipe(settings), tmp_path / "run"
    pause = types.SimpleNamespace(on_log=lambda seen, values: seen == 160)
    train(recipe, folder, console=QUIET, callbacks=[pause])
    assert str(progress(folder, recipe.train)).startswith("stopped at 160 of ")
    train(recipe, folder, console=QUIET)
    lines = read_metrics(folder)
    # 12 seconds in all, of which the checkpoint of the pause takes one
    assert [line["seconds"] for line in lines] == [*range(1, 6), *range(7, 13)]
    assert [line["lr"] * 12_000 for line in lines] == pytest.approx([*range(12, 7, -1), *range(6, 0, -1)])
    assert str(progress(folder, recipe.train)) == "finished, 352 of 352 images"
    train(recipe, folder)
    assert (
        f"{folder} is already trained on 352 images in 0.22 minutes; raise train.minutes to continue"
        in capsys.readouterr().err
    )
    longer = recipe.override({"train": {"minutes": 0.25}})
    train(longer, folder, console=QUIET)
    assert read_metrics(folder)[-1]["seconds"] == 15


def test_the_time_that_is_left(tmp_path):
    (tmp_path / "recipe.toml").touch()
    line = {"images": 1000, "images_per_second": 10.0, "seconds": 60.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with held(tmp_path):
        state = progress(tmp_path, Train(images=10**9, minutes=6))
        assert str(state) == f"running, 1,000 of {state.total:,} images, about 5.0 minutes left"
        assert state.total == pytest.approx(4000, abs=10)
        assert progress(tmp_path, Train(images=2000, minutes=6)).total == 2000


def test_the_state_of_a_run(tmp_path, monkeypatch):
    def line(seen):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"images": seen, "images_per_second": 10.0}) + "\n")

    def checkpoint(seen):
        (tmp_path / "checkpoints" / f"{seen:012d}").mkdir(parents=True)

    (tmp_path / "recipe.toml").touch()
    with held(tmp_path):
        assert str(progress(tmp_path, Train(images=4000))) == "running, 0 of 4,000 images"
        line(1000)
        assert str(progress(tmp_path, Train(images=4000))) == "running, 1,000 of 4,000 images, about 5.0 minutes left"
        line(4000)
        assert progress(tmp_path, Train(images=4000)).state == "running"  # it writes its last checkpoint
    # A process that is killed before it has written its last checkpoint leaves a run that is not finished.
    assert str(progress(tmp_path, Train(images=4000))) == "stopped at 4,000 of 4,000 images"
    checkpoint(4000)
    assert str(progress(tmp_path, Train(images=4000))) == "finished, 4,000 of 4,000 images"
    line(1000)
    (tmp_path / "checkpoints" / f"{4000:012d}").rename(tmp_path / "checkpoints" / f"{800:012d}")
    assert str(progress(tmp_path, Train(images=4000))) == "stopped at 1,000 of 4,000 images"
    (tmp_path / ".lock").write_text("process 1 on somewhere")  # of a process that was killed
    assert progress(tmp_path, Train(images=4000)) == Progress("stopped", 1000, 4000, None, pytest.approx(0, abs=60))
    monkeypatch.setattr("ditlab.report.run.in_use", lambda folder: None)
    os.utime(tmp_path / "metrics.jsonl", (0, time.time() - 7200))
    assert str(progress(tmp_path, Train(images=4000))) == (
        "1,000 of 4,000 images, last line of metrics 2.0 hours ago "
        "(locks, which show whether a process trains the run, do not work here)"
    )
    assert progress(tmp_path, Train(images=4000)).state == "unknown"
    checkpoint(1040)  # after Ctrl-C, without a line of metrics
    assert progress(tmp_path, Train(images=4000)).images == 1040
    assert progress(tmp_path, Train(images=1040)).state == "finished"


def test_watching_a_path_that_does_not_exist(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(InputError, match=r"^no run at small <rnu>; did you mean small <run>\?$"):
        read_metrics(Path("small <rnu>"))


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"images": 1, "loss": 2}\n{"ima')
    assert read_metrics(tmp_path) == [{"images": 1, "loss": 2}]


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[1]",
        "{}",
        '{"images": "a"}',
        '{"images": 1e400}',
        '{"images": 2, "loss": "x"}',
        '{"images": 2, "lr": {}}',
    ],
)
def test_damaged_lines_are_left_out(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"images": 1, "loss": null, "loss_by_time": [0.5, null]}}\n{line}\n')
    assert read_metrics(tmp_path) == [{"images": 1, "loss": None, "loss_by_time": [0.5, None]}]


def test_the_page_of_a_run_stands_alone(run):
    page = (run / "report.html").read_text()
    assert "small &lt;run&gt;" in page
    assert page.count("<svg") == 5
    assert "data:image/png;base64," in page
    assert not re.search(r"(src|href)=['\"]?http", page)
    assert "128 of 128, 32 at a time" in page

    class Checked(HTMLParser):
        stack: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img", "polyline"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    checked = Checked()
    checked.feed(page.replace("/>", ">"))
    assert checked.stack == []


def test_words_of_the_page_in_its_content_stay_as_they_are():
    content = page("BODY of <TITLE>", "<p>STYLE, TITLE and BODY, \\1</p>", "p { content: 'BODY' }")
    assert content.count("<title>BODY of &lt;TITLE&gt;</title>") == 1
    assert content.count("<body>\n<p>STYLE, TITLE and BODY, \\1</p>\n</body>") == 1
    assert content.count("p { content: 'BODY' }</style>") == 1


@pytest.mark.parametrize("name", ["BODY", "TITLE", "STYLE {x} %s", "<b>|`\\1"])
def test_names_in_a_report_show_as_they_are(tmp_path, name):
    run = tmp_path / name.replace("/", "_")
    run.mkdir()
    (run / "recipe.toml").write_text("# </pre><script>BODY TITLE", encoding="utf-8")
    (run / "metrics.jsonl").write_text('{"images": 1, "loss": 2.0}\n{"images": 3, "loss": 1.0}\n', encoding="utf-8")
    content = write_report(run, name, {name: f"TITLE\n{name}"}).read_text(encoding="utf-8")
    shown = html.escape(name)
    assert content.count(f"<title>{shown}</title>") == 1
    assert content.count(f"<body>\n<h1>{shown}</h1>\n<table>\n<tr><th>{shown}</th><td>TITLE\n{shown}</td></tr>") == 1
    assert content.count("<pre># &lt;/pre&gt;&lt;script&gt;BODY TITLE</pre>") == 1
    assert "<script" not in content
    assert content.count("<figure>") == 1


def test_a_curve_goes_from_corner_to_corner():
    svg = figure("x", [0, 10, 20], [1.0, 3.0, 2.0])
    assert "points='0.0,160.0 320.0,0.0 640.0,80.0'" in svg


def test_previews_show_average_and_raw_weights(run):
    with Image.open(run / "previews" / "000000000128.png") as image:
        width, height = image.size
        left, right = image.crop((0, 22, width // 2, height)), image.crop((width // 2, 22, width, height))
    assert left.size == right.size
    assert left.tobytes() != right.tobytes()


@pytest.mark.slow
def test_tensorboard_gets_metrics_and_a_resumed_run_repeats_none(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = {**TINY, "train": TINY["train"] | {"report": ["tensorboard"]}}
    train(parse_recipe(recipe | {"train": recipe["train"] | {"images": 64}}), tmp_path, console=QUIET)
    train(parse_recipe(recipe), tmp_path, console=QUIET)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = read_metrics(tmp_path)
    assert [(each.step, pytest.approx(each.value, rel=1e-5)) for each in events.Scalars("loss")] == [
        (line["images"], line["loss"]) for line in lines
    ]
    assert [each.step for each in events.Images("preview")] == [64, 128]
    assert "loss_by_time/0.4-0.5" in events.Tags()["scalars"]


@pytest.mark.slow
def test_a_hosted_tracker_gets_metrics_if_it_is_installed(tmp_path, monkeypatch):
    reported = []
    fake = types.SimpleNamespace(
        init=lambda **options: reported.append(options),
        log=reported.append,
        finish=lambda: reported.append("finished"),
        Image=lambda picture: picture.size,
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    recipe = parse_recipe({**TINY, "train": TINY["train"] | {"report": ["trackio"]}})
    train(recipe, tmp_path / "run", console=QUIET)
    assert reported[0]["name"] == "run"
    assert reported[0]["config"]["train"]["images"] == 128
    assert [each["images"] for each in reported[1:-1] if "loss" in each] == [32, 64, 96, 128]
    assert reported[-1] == "finished"
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for images in (64, 128):
        one = parse_recipe({**TINY, "train": TINY["train"] | {"report": ["wandb"], "images": images}})
        train(one, tmp_path / "resumed", console=QUIET)
    first, second = (each for each in reported if "resume" in each and "id" in each)
    assert first["id"] == second["id"]  # by which it goes on as one run there
    monkeypatch.setitem(sys.modules, "wandb", None)
    missing = parse_recipe({**TINY, "train": TINY["train"] | {"report": ["wandb"]}})
    with pytest.raises(InputError, match=r"train\.report wandb needs the library wandb; pip install wandb"):
        train(missing, tmp_path / "other", console=QUIET)


def test_numbers_by_name():
    found = flat({"loss": 1.0, "grad_norm": None, "loss_by_time": [0.5, None]})
    assert found == {"loss": 1.0, "loss_by_time/0.0-0.5": 0.5}
    assert json.dumps(found)
