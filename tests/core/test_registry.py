"""Parts from outside: names, references, files, and one clear line for each mistake."""

import sys
from importlib.metadata import EntryPoint

import pytest

import ditlab
from ditlab import cli
from ditlab.core import registry as module
from ditlab.core.errors import InputError
from ditlab.core.plugins import import_plugin
from ditlab.core.registry import REGISTRIES, Registry, imported_parts_only, load_reference, register, registry


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plug-in file under a name that no other test uses, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return tmp_path / f"{name}.py"

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_two_entries_of_one_name_are_rejected():
    parts = Registry("sampler", {"heun": 1})
    assert parts.register("mine", 2) == 2
    assert parts.register("mine", 2) == 2  # the same one again, when a file is imported twice
    with pytest.raises(InputError, match='a sampler "heun" exists already; register yours under another name'):
        parts.register("heun", 3)
    assert parts == {"heun": 1, "mine": 2}


def test_unknown_names_name_the_nearest():
    with pytest.raises(InputError, match='unknown sampler "hune"; did you mean "heun"'):
        Registry("sampler", {"heun": 1}).find("hune")


def test_a_reference_is_imported_and_found_again(plugin):
    plugin("twice_as_much", "def double(x):\n    return 2 * x\n")
    parts = Registry("function", {})
    assert parts.find("twice_as_much:double")(21) == 42
    assert list(parts) == ["twice_as_much:double"]
    with pytest.raises(InputError, match='the module twice_as_much has no "triple"; it has double'):
        load_reference("twice_as_much:triple")
    with pytest.raises(InputError, match=r"cannot import not_there: ModuleNotFoundError: No module named 'not_there'"):
        load_reference("not_there:double")


def test_what_a_saved_file_names_is_not_imported(plugin):
    plugin("never_asked_for", "raise SystemExit('this code must not run')\n")
    plugin("asked_for", "def part():\n    return 7\n")
    parts = Registry("target", {})
    with imported_parts_only():
        with pytest.raises(
            InputError, match='the target "never_asked_for:part" is not part of ditlab; import never_ask'
        ):
            parts.find("never_asked_for:part")
        import_plugin("asked_for")
        assert parts.find("asked_for:part")() == 7
    assert "never_asked_for" not in sys.modules


def test_every_kind_has_a_registry_and_a_public_function():
    for kind in REGISTRIES:
        assert isinstance(registry(kind), Registry), kind
        assert f"register_{kind}" in dir(ditlab)
        with pytest.raises(InputError, match="already"):
            getattr(ditlab, f"register_{kind}")(next(iter(registry(kind))), object())
    with pytest.raises(InputError, match='unknown kind of part "samplr"; did you mean "sampler"'):
        register("samplr", "mine", print)


@pytest.mark.parametrize(
    ("kind", "part", "line"),
    [
        ("sampler", lambda x: x, r'the sampler "mine" cannot be called with \(denoise, process, x, schedule, noise\)'),
        ("conditioner", dict, 'the conditioner "mine" is no subclass of ditlab.conditioning.Conditioner'),
        (
            "conditioner",
            type("Half", (ditlab.conditioning.Conditioner,), {}),
            'the conditioner "mine" has no null, values',
        ),
    ],
)
def test_parts_that_cannot_be_used_are_rejected(kind, part, line):
    with pytest.raises(InputError, match=line):
        register(kind, "mine", part)
    assert "mine" not in registry(kind)


def test_a_file_is_imported_once(plugin):
    file = plugin("counted_once", "import ditlab\ncount = globals().get('count', 0) + 1\n")
    import_plugin(str(file))
    import_plugin(str(file))
    assert sys.modules["counted_once"].count == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "value = 1\nother = undefined\n",
            r"cannot import .*broken.py: NameError: .*undefined.* \(.*broken.py, line 2\)",
        ),
        ("def half(:\n", r"cannot import .*broken.py: SyntaxError: .*\(.*broken.py, line 1\)"),
        ("import nowhere_to_be_found\n", r"ModuleNotFoundError: No module named 'nowhere_to_be_found' \(.*, line 1\)"),
    ],
)
def test_a_file_that_does_not_import_says_where(plugin, text, line):
    file = plugin("broken", text)
    with pytest.raises(InputError, match=line) as caught:
        import_plugin(str(file))
    assert "\n" not in str(caught.value)
    assert "broken" not in sys.modules


def test_files_that_cannot_be_plug_ins(plugin, tmp_path):
    with pytest.raises(InputError, match=r"there is no plug-in file .*none.py"):
        import_plugin(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match='a module "json" exists already'):
        import_plugin(str(plugin("json", "")))


def test_installed_packages_declare_plug_ins(plugin, monkeypatch):
    plugin("from_a_package", "ready = []\ndef start():\n    ready.append(1)\n")
    point = EntryPoint("mine", "from_a_package:start", module.GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point] if group == module.GROUP else [])
    module.load_entry_points.cache_clear()
    with pytest.raises(InputError, match="unknown sampler"):
        Registry("sampler", {}).find("mine")
    assert sys.modules["from_a_package"].ready == [1]
    broken = EntryPoint("mine", "from_a_package:nothing", module.GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [broken])
    module.load_entry_points.cache_clear()
    with pytest.raises(InputError, match=r"cannot import the plug-in mine \(from_a_package:nothing\): AttributeError"):
        Registry("sampler", {}).find("mine")
    monkeypatch.undo()
    module.load_entry_points.cache_clear()


def test_every_command_takes_import(plugin, monkeypatch, capsys):
    file = plugin("from_the_command_line", "seen = True\n")
    monkeypatch.setattr(sys, "argv", ["ditlab", "info", "--import", str(file), "DiT-S/2", "--json"])
    cli.main()
    assert sys.modules["from_the_command_line"].seen
    assert '"parameters"' in capsys.readouterr().out
    for arguments, line in (
        (["info", "DiT-S/2", "--import"], "--import has no value"),
        (["--import=nowhere.py", "info", "DiT-S/2"], "there is no plug-in file nowhere.py"),
    ):
        monkeypatch.setattr(sys, "argv", ["ditlab", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        assert line in capsys.readouterr().err
