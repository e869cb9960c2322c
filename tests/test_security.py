"""The threat model in docs/security.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_line_of_the_threat_model_names_tests_that_exist():
    rows = [line for line in (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines() if "::" in line]
    rows = [row for row in rows if row.startswith("|")]
    assert len(rows) > 15
    for row in rows:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert re.search(rf"^\s*def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                file,
                name,
            )


def test_each_program_that_a_page_names_exists():
    for page in ("reliability.md", "security.md"):
        programs = re.findall(r"benchmarks/(\w+\.py)", (ROOT / "docs" / page).read_text(encoding="utf-8"))
        assert [name for name in programs if not (ROOT / "benchmarks" / name).exists()] == []
