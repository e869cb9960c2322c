"""Commands about the installation and about recipes: env, completion, config."""

import json
import subprocess

import pytest

from ditlab.config.reader import parse_recipe, parse_toml
from ditlab.core import environment as environments
from ditlab.core.version import __version__


def test_env_lists_versions_and_no_secrets(ditlab, monkeypatch):
    monkeypatch.setenv("DITLAB_TOKEN", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    needed = [
        "torch>=2.9",
        'nowhere>=1; extra == "data"',
        "peft>=0.15; extra == 'lora'",
        'ruff; extra == "dev"',
        'ditlab[data]; extra == "more"',
    ]
    monkeypatch.setattr(environments, "requires", lambda name: needed)
    facts = json.loads(ditlab("env", "--json").out)
    assert facts["ditlab"] == __version__
    assert facts["packages"].keys() == {"required", "data", "lora"}
    assert facts["packages"]["data"] == {"nowhere": ""}
    assert facts["variables"]["OMP_NUM_THREADS"] == "1"
    lines = ditlab("env").out.splitlines()
    assert lines[0].split() == ["ditlab", __version__]
    assert ["data", "nowhere", "not", "installed"] in [line.split() for line in lines]
    assert "secret" not in "".join(lines)


def test_env_of_a_source_folder_that_is_not_installed(monkeypatch):
    def requires(name):
        raise environments.PackageNotFoundError

    monkeypatch.setattr(environments, "requires", requires)
    assert [*environments.packages()] == ["required"]


@pytest.mark.slow
def test_config_prints_the_recipe_that_train_would_use(ditlab):
    text = ditlab("config", "digits", "--optim.lr", "0.001", "--data.held-out", "0.25").out
    recipe = parse_recipe(parse_toml(text))
    assert (recipe.optim.lr, recipe.data.held_out, recipe.train.images) == (0.001, 0.25, 110_000)
    tables = json.loads(ditlab("config", "digits", "--json").out)
    assert (tables["optim"]["lr"], tables["optim"]["clip"]) == (0.005, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["config", "plan", "train"])
@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("--lr", "--optim.lr"),
        ("--batch-size", "--train.batch"),
        ("--optim.learning-rate", "--optim.lr"),
        ("--weight-decay", "--optim.weight-decay"),
        (
            "--epochs",
            "--train.images, the number of images to train on (epochs times the size of the data set)",
        ),
    ],
)
def test_options_of_other_programs_are_answered_with_the_key(ditlab, command, option, remedy):
    assert ditlab(command, "digits", option, "3", code=2).err == f"ditlab: unknown option {option}; give {remedy}\n"


def test_a_run_resumes_without_an_option(ditlab):
    line = "ditlab: unknown option --resume; leave it out: a run in the same folder resumes by itself\n"
    assert ditlab("train", "digits", "--resume", code=2).err == line


def test_config_names_the_nearest_recipe(ditlab):
    assert 'no recipe "digit"; ' in ditlab("config", "digit", code=2).err


@pytest.mark.slow
def test_completion_knows_commands_and_options(ditlab, tmp_path):
    script = ditlab("completion", "bash").out
    assert " evaluate " in script
    assert " --train.images " in script
    (tmp_path / "ditlab").write_text(script)
    assert subprocess.run(["bash", "-n", tmp_path / "ditlab"], capture_output=True).returncode == 0
