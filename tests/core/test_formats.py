import pytest

from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, parse_json, parse_object, parse_toml, read_json_lines

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "9" * 5000, "", b"\xff", b"{", "[1,]"])
def test_bad_json_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize("text", [f"a = {DEEP}", "a = " + "{a=" * 50_000, b"a = '\xff'", "a"])
def test_bad_toml_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_toml(text)


HUGE = "1" + 400 * "0"


@pytest.mark.parametrize(("parse", "text"), [(parse_json, f'{{"a": [{HUGE}]}}'), (parse_toml, f"[a]\nb = [{HUGE}]")])
def test_numbers_that_no_float_can_hold_are_refused(parse, text):
    with pytest.raises(ValueError, match=r"^it has a number of hundreds of digits$"):
        parse(text)
    assert parse(text.replace(HUGE, "true")) == parse(text.replace(HUGE, "true "))
    assert HUGE in str(parse(text.replace(HUGE, f'"{HUGE}"')))


def test_an_object_is_required():
    assert parse_object('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="it holds a list and not an object"):
        parse_object("[]")


def test_lines_that_are_damaged_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"images": 1}\n{"ima\xffges": 2}\n[3]\n' + DEEP.encode() + b'\n{"images": 4}\n{"images"')
    assert read_json_lines(file) == [{"images": 1}, {"images": 4}]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("size"), "it lacks 'size'"),
        (TypeError("a\nb"), "a b"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 300), f"{'x' * 200}..."),
    ],
)
def test_whatever_a_damaged_file_raises_becomes_one_line(error, reason):
    with pytest.raises(InputError) as caught, interpreting("a.json", "restore it"):
        raise error
    assert str(caught.value) == f"a.json is damaged ({reason}); restore it"


def test_errors_with_a_message_of_their_own_pass():
    with pytest.raises(InputError, match=r"^mine$"), interpreting("a.json", "restore it"):
        raise InputError("mine")
