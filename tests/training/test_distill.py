"""Distillation: what students learn from a teacher, and the two runs of `ditlab.distill`."""

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import perturbed, relative, tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.config.reader import parse_recipe, read_toml
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.data import open_dataset
from ditlab.diffusion.flow_map import FlowMap, Guided
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Cosine
from ditlab.diffusion.samplers import image_noise
from ditlab.training import distill, train
from ditlab.training.distillation import lengths, recipe_of
from ditlab.training.losses import batch_losses, make_context
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.objectives.flow_map import Jump
from ditlab.training.objectives.halves import interval
from ditlab.training.teacher import Teacher, check_teacher, refined

QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
    "optim": {"lr": 1e-2},
    "train": {"images": 64, "batch": 32, "precision": "float32", "device": "cpu", "compile": "never", "log_every": 32},
    "sample": {"sampler": "euler", "steps": 2, "guidance": 2.0},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    train(TINY, folder, console=QUIET)
    return folder


def student(teacher, objective, train=None, **settings):
    """The tables of a recipe whose student starts from the teacher."""
    more = {"objective": objective, "init_from": str(teacher), **(train or {})}
    settings = {"guidance": [1.0, 3.0], "teacher_steps": 4, "pool": 256} | settings
    sample = {"sampler": "map", "steps": settings.get("steps", 1), "guidance": settings["guidance"][-1]}
    return TINY | {"train": TINY["train"] | more, "distill": settings, "sample": sample}


def context(teacher, objective, **settings):
    """The context of a student whose network differs from the teacher's."""
    recipe = parse_recipe(student(teacher, objective, **settings))
    reading = OBJECTIVES[objective].reading(recipe)
    pipe = tiny_pipeline(classes=10, objective=reading, inputs=reading.inputs, patch=4)
    pipe.conditioner = ditlab.load(teacher).conditioner
    return make_context(pipe, recipe)


@pytest.mark.slow
def test_halves_learn_from_the_guided_teacher_and_from_the_student_itself(teacher):
    run = context(teacher, "halves", steps=2)
    objective, pipe = run.pipe.objective, ditlab.load(teacher)
    assert objective.steps == (2, 4, 8)
    x, label = torch.randn(4, 1, 8, 8), torch.tensor([3, 10, 1, 0])
    t, s = interval(objective, torch.tensor([8, 8, 4, 2]), torch.tensor([0, 7, 1, 1]))
    assert (t.tolist(), s.tolist()) == ([1.0, 0.125, 0.75, 0.5], [0.875, 0.0, 0.5, 0.0])
    scale = torch.tensor([1.0, 3.0, 2.0, 1.5], dtype=torch.float64)
    finest = torch.tensor([True, True, False, False])
    end = run.objective.two_halves(run, x, t, s, Condition(label=label), scale, finest)

    def slope(x, t, row):
        """Of the guided teacher."""
        with torch.no_grad():
            good, bad = (pipe.net(x, 1000 * t.float()[None], torch.tensor([y])) for y in (int(label[row]), 10))
        return bad + float(scale[row]) * (good - bad)

    def jump(x, t, s, row):
        """Of the student."""
        inputs = torch.stack([1000 * t, t - s, 1 / scale[row]]).float()[None]
        with torch.no_grad():
            return x - float(t - s) * run.net(x, inputs, label[row : row + 1])

    for row in range(4):
        start, middle = x[row : row + 1], (t[row] + s[row]) / 2
        if finest[row]:
            half = start - float(t[row] - middle) * slope(start, t[row], row)
            expected = start - float(t[row] - s[row]) * slope(half, middle, row)
        else:
            expected = jump(jump(start, t[row], middle, row), middle, s[row], row)
        assert relative(end[row : row + 1], expected) < 1e-4


def test_states_are_those_of_the_sampler(teacher):
    pipe = ditlab.load(teacher)
    known = Teacher(pipe.prepared("float32"), (0.1, 0.8), None)
    times = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    assert refined(times, 2).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    noise, labels = image_noise([1, 2, 3])(torch.empty(3, 1, 8, 8)), [1, 2, None]
    states = known.states(noise, pipe.conditioner.encode(labels), 2.0, times, 4)
    options = {"sampler": "ab2", "steps": 8, "guidance": 2.0, "guidance_interval": (0.1, 0.8)}
    steps = list(pipe.steps(labels, seeds=[1, 2, 3], **options))
    assert torch.equal(states[0], noise)
    assert relative(states[1], steps[3].x) < 1e-4
    assert relative(states[2], steps[7].x) < 1e-4


@pytest.mark.slow
def test_pairs_are_replaced_and_the_teacher_takes_more_steps_later(teacher, monkeypatch):
    asked = []
    states = Teacher.states
    monkeypatch.setattr(Teacher, "states", lambda self, *rest: asked.append(rest) or states(self, *rest))
    more = {"images": 256 * 16}
    run = context(teacher, "pairs", train=more, steps=2, uses=2, pool=1024, teacher_steps=8)
    images = open_dataset("digits").fetch(torch.arange(32))
    objective = run.objective
    assert objective.window(run, 0) == [0, 1, 2, 3]
    assert objective.window(run, 512 * 3) == [3, 4, 5, 6]
    losses = [batch_losses(run, images, seen, 0, torch.float32).named["pairs"] for seen in (0, 0, 512 * 7)]
    assert torch.equal(losses[0], losses[1])
    assert sorted(objective.chunks) == [7, 8, 9, 10]
    assert [call[4] for call in asked] == [2, 2, 2, 2, 4, 4, 4, 4]  # steps for each of the student's two
    assert len({call[2] for call in asked}) == 8  # guidance scales of the range
    assert all(1 <= call[2] <= 3 for call in asked)


def test_the_loss_of_pairs_is_the_error_of_the_mean_velocity(teacher):
    run = context(teacher, "pairs", steps=2, guidance=[1.0])
    assert run.pipe.objective.inputs == ("interval",)
    chunk = run.objective.chunk(run, 0)
    x, end, label = chunk.states[1, :2], chunk.states[2, :2], chunk.condition.label[:2]
    t, s = torch.full((2,), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    error = run.objective.error(run, Jump(x, t, s, Condition(label=label), torch.ones(2), end))
    with torch.no_grad():
        output = run.net(x, torch.tensor([[500.0, 0.5]] * 2), label)
    assert torch.allclose(error, (output - (x - end) / 0.5).square().flatten(1).mean(1), rtol=1e-4)


@pytest.mark.parametrize("objective", ["pairs", "correction"])
def test_a_resumed_student_equals_one_that_never_stopped(teacher, objective, tmp_path):
    given = student(teacher, objective, {"images": 96, "save_every": 32, "keep": 3})
    whole = train(given, tmp_path / "whole", console=QUIET)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"{96:012d}")
    parts = train(given, tmp_path / "parts", console=QUIET)
    assert all(torch.equal(value, parts.net.state_dict()[key]) for key, value in whole.net.state_dict().items())


@pytest.mark.slow
def test_a_run_becomes_a_student_with_one_command(teacher, tmp_path):
    out, printed = tmp_path / "student", io.StringIO()
    settings = {"train": {"save_every": 32}, "distill": {"teacher_steps": 2, "pool": 256}}
    first = distill(teacher, out, steps=2, images=64, settings=settings, console=Console(file=printed, width=500))
    assert f"{teacher} becomes a flow map of 2 steps with guidance 2 built in" in printed.getvalue()
    recipe = parse_recipe(read_toml(out / "recipe.toml"))
    assert (recipe.train.objective, recipe.train.images, recipe.distill.steps) == ("pairs", 64, 2)
    assert parse_recipe(read_toml(out / "halves" / "recipe.toml")).train.objective == "halves"
    assert (out / "report.html").exists()
    pipe = ditlab.load(out)
    assert pipe.objective == FlowMap(guidance=(2.0, 2.0), steps=(2,))
    assert pipe.resolve().evaluations == 2
    assert json.loads(json.dumps(pipe([3], seeds=1).settings[0]["settings"]))["guidance"] == 2.0
    with pytest.raises(InputError, match="steps is 1, but this model is a flow map for 2 steps; the nearest is 2"):
        pipe.resolve(steps=1)
    shutil.rmtree(out / "checkpoints" / f"{64:012d}")  # as if it had been killed before
    again = distill(teacher, out, steps=2, images=64, settings=settings, console=QUIET)
    assert all(torch.equal(value, again.net.state_dict()[key]) for key, value in first.net.state_dict().items())
    corrected = distill(
        teacher, tmp_path / "third", steps=2, images=32, correction=64, settings=settings, console=QUIET
    )
    recipe = parse_recipe(read_toml(tmp_path / "third" / "recipe.toml"))
    assert (recipe.train.objective, recipe.train.images, recipe.train.seed) == ("correction", 64, 1)
    assert recipe.train.init_from == str(tmp_path / "third" / "pairs")
    lines = (tmp_path / "third" / "metrics.jsonl").read_text().splitlines()
    assert {"loss_pairs", "loss_velocity", "loss_correction"} <= json.loads(lines[-1]).keys()
    assert corrected.resolve().evaluations == 2
    with pytest.raises(InputError) as error:
        distill(out, tmp_path / "again", steps=1)
    assert str(error.value) == f"{out} is a flow map already; give the model that it was distilled from"


def test_both_runs_cost_as_much_as_the_training_of_the_teacher(teacher):
    model = ditlab.load(teacher)
    model.config["images_seen"] = 110_000
    recipe = recipe_of(model, str(teacher), parse_recipe({"distill": {"guidance": [2.0]}}).distill, {})
    halves, pairs = lengths(model, recipe)
    assert (halves % 32, pairs % 32) == (0, 0)
    # Levels of 1, 2, 4 and 8 steps, of which the guided teacher gives the last one; 9 guided steps, each used 8 times.
    assert halves * (3 + 2 * (3 + 2) / 4) + pairs * (3 + 2 * 9 / 8) == pytest.approx(3 * 110_000, rel=2e-3)


def test_teachers_that_cannot_teach(teacher, tmp_path):
    model, plain = ditlab.load(teacher), tiny_pipeline(classes=10, patch=4)
    plain.conditioner = model.conditioner
    for pipe, words in (
        (tiny_pipeline(classes=10, channels=4), "T generates 4x8x8 in another latent space than the student (1x8x8); "),
        (tiny_pipeline(classes=3), "T has other classes, or another condition, than the student; give another teacher"),
    ):
        with pytest.raises(InputError) as error:
            check_teacher(pipe, "T", model)
        assert str(error.value).startswith(words)
    plain.objective = type(plain.objective)(Cosine())
    with pytest.raises(InputError) as error:
        check_teacher(plain, "T", model)
    assert str(error.value) == "T has another diffusion process than the student; leave process and target out"
    plain.save(tmp_path / "plain")
    with pytest.raises(InputError) as error:
        distill(tmp_path / "plain", tmp_path / "out")
    assert "plain has no recipe of its training, which has the data; give a run of ditlab" in str(error.value)


def test_bad_input(teacher, tmp_path):
    for options, line in (
        ({"steps": 16}, "steps is 16; give 1 to 8, above which the teacher itself is good enough"),
        ({"guidance": (3.0, 1.0)}, "guidance 3 1; give one scale above 0, or the lowest and the highest one"),
        ({"guidance": ()}, "guidance ; give one scale above 0, or the lowest and the highest one"),
        ({"images": 0}, "images is 0; give 1 or more"),
        ({"guidance_interval": (0.8, 0.1)}, "guidance interval 0.8 to 0.1 is empty; give the smaller time first"),
        ({"guidance_interval": (0.1, 1.8)}, "guidance_interval is 1.8; give a number from 0 to 1"),
        ({"correction": -1}, "correction is -1; give 1 or more images, or 0 for no correction"),
    ):
        with pytest.raises(InputError) as error:
            distill(teacher, tmp_path / "out", **options)
        assert str(error.value) == line
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "list.txt").touch()
    for folder, line in (
        (teacher, f"{teacher} is the folder of the teacher; give another one for the student"),
        (tmp_path / "notes", f"{tmp_path / 'notes'} exists and holds no student; give another folder"),
    ):
        with pytest.raises(InputError) as error:
            distill(teacher, folder)
        assert str(error.value) == line
    shutil.copytree(teacher, tmp_path / "other run")
    with pytest.raises(InputError, match=r"other run exists and holds no student; give another folder$"):
        distill(teacher, tmp_path / "other run")
    model = tiny_pipeline(classes=0)
    model.config |= {"recipe": {}, "images_seen": 64}
    model.save(tmp_path / "free")
    with pytest.raises(InputError) as error:
        distill(tmp_path / "free", tmp_path / "out", guidance_interval=(0.1, 0.7))
    line = "guidance_interval is (0.1, 0.7), but the model is unconditional; leave it out or give a guide model"
    assert str(error.value) == line
    with pytest.raises(InputError) as error:
        distill(tmp_path / "free", tmp_path / "out", guidance=2.0)
    assert str(error.value) == "guidance 2 for an unconditional teacher; leave it out"


def test_recipes_that_do_not_suit_their_objective(teacher, tmp_path):
    with pytest.raises(InputError) as error:
        train(student(teacher, "pairs", {"init_from": ""}), tmp_path / "out", console=QUIET)
    line = 'train.objective is "pairs", which needs a teacher; set train.init_from or distill.teacher'
    assert str(error.value) == line
    for given, line in (
        (
            TINY | {"distill": {"guidance": [1.5]}},
            'distill.guidance is [1.5], but train.objective is "regression", which does not use it; remove it',
        ),
        (
            student(teacher, "pairs", guidance_interval=[0.5, 0.5]),
            "distill.guidance_interval 0.5 to 0.5 is empty; give the smaller time first",
        ),
        (
            student(teacher, "halves"),
            'distill.teacher_steps is 4, but train.objective is "halves", which does not use it; remove it',
        ),
    ):
        with pytest.raises(InputError) as error:
            train(given, tmp_path / "out", console=QUIET)
        assert str(error.value) == line
    given = student(teacher, "pairs")
    given["sample"] = TINY["sample"]
    with pytest.raises(InputError) as error:
        train(given, tmp_path / "out", console=QUIET)
    assert str(error.value) == (
        "the section [sample] does not suit train.objective pairs: sampler is euler, but this model is a flow map; "
        'give the sampler "map", and no preset'
    )
    given = student(teacher, "pairs", guidance=[1.0])
    given["sample"] = given["sample"] | {"guidance": 3.0}
    with pytest.raises(InputError) as error:
        train(given, tmp_path / "out", console=QUIET)
    assert str(error.value) == (
        "sample.guidance is 3, but train.objective pairs builds guidance 1 into the model; set distill.guidance to 3, "
        "or sample.guidance to 1"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_randomness_of_a_part_of_a_batch_is_that_of_the_whole(teacher):
    for objective in ("halves", "pairs"):
        run = context(teacher, objective)
        images = open_dataset("digits").fetch(torch.arange(32))
        whole = batch_losses(run, images, 0, 0, torch.float32)
        part = batch_losses(run, images[slice(16, 32)], 0, 16, torch.float32)
        assert torch.equal(part.times, whole.times[16:])
        assert torch.allclose(part.named[objective], whole.named[objective][16:], rtol=1e-4, atol=1e-6)


def guided(guidance, sample, **more):
    """The tables of a recipe with guidance built in."""
    train = TINY["train"] | {"objective": "guided"} | more
    return TINY | {"train": train, "distill": {"guidance": guidance}, "sample": TINY["sample"] | {"guidance": sample}}


def test_guided_regression_trains_the_extrapolation_from_the_null_condition(teacher):
    images = open_dataset("digits").fetch(torch.arange(32))
    pipe = tiny_pipeline(classes=10, objective=Guided(guidance=(1.0, 4.0)), inputs=("guidance",), patch=4)
    run = make_context(pipe, parse_recipe(guided([1.0, 4.0], 2.0)))
    plain = make_context(replace(pipe, objective=Objective()), parse_recipe(TINY))
    seen = []

    def network(x, inputs, condition, trace=None):
        seen.append((x, inputs, condition))
        return pipe.net(x, inputs, condition)

    run.network = network
    loss = batch_losses(run, images, 0, 0, torch.float32)
    x, inputs, condition = seen[0]
    scale = 1 / inputs[:, 1]
    assert 1 <= scale.min() < 2 < 3 < scale.max() <= 4
    plain.network = lambda x, t, y, trace=None: combined(x, t, y)

    def combined(at, t, y):
        assert torch.equal(at, x)
        assert torch.equal(y.label, condition.label)
        null = pipe.net(at, torch.stack([t, torch.ones_like(t)], dim=1), torch.full_like(y.label, 10))
        return pipe.net(at, torch.stack([t, 1 / scale], dim=1), y) / scale[:, None, None, None] + null * (
            1 - 1 / scale
        ).reshape(-1, 1, 1, 1)

    expected = batch_losses(plain, images, 0, 0, torch.float32)
    assert torch.allclose(loss.named["regression"], expected.named["regression"], rtol=1e-4)


@pytest.mark.slow
def test_a_model_with_guidance_built_in_needs_one_evaluation(tmp_path):
    pipe = train(guided([1.0, 3.0], 2.0), tmp_path / "run", console=QUIET)
    perturbed(pipe.net)
    assert pipe.resolve(steps=4).evaluations == 4
    assert pipe.objective == Guided(guidance=(1.0, 3.0))
    low, high = (pipe([1], seeds=[0], guidance=scale, output_type="latent").images for scale in (1.0, 3.0))
    assert relative(low, high) > 1e-6
    for given, line in (
        (
            guided([2.0], 2.0, label_dropout=0.0),
            "train.objective guided needs the null condition, but train.label_dropout is 0; set it to 0.1",
        ),
        (
            guided([2.0], 1.0),
            "sample.guidance is 1, but train.objective guided builds guidance 2 into the model; "
            "set distill.guidance to 1, or sample.guidance to 2",
        ),
    ):
        with pytest.raises(InputError) as error:
            train(given, tmp_path / "other", console=QUIET)
        assert str(error.value) == line
