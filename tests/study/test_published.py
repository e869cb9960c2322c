"""The published studies in docs/studies/: their recipes, reports and the table of results agree."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from ditlab.study.claims import WORST_FIRST, Comparison, Entry, decide
from ditlab.study.recipe import read_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "studies"


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("studies", ROOT / "benchmarks" / "studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(name):
    return json.loads((DOCS / name / "study.json").read_text(encoding="utf-8"))


def test_the_table_is_made_from_the_published_results(studies):
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    assert studies.with_table(text) == text
    rows = re.findall(r"^\| \[.*\*\*(.*)\*\* \| (.*?) ?\|$", text, re.MULTILINE)
    assert len(rows) == sum(len(published(name)["claims"]) for name in studies.STUDIES)
    assert {verdict for verdict, _ in rows} <= set(WORST_FIRST)
    assert {again for _, again in rows} <= {"", *WORST_FIRST}


def test_repetitions_have_other_seeds_and_the_same_claims():
    for file in DOCS.glob("*/again.json"):
        first, again = published(file.parent.name), json.loads(file.read_text(encoding="utf-8"))
        assert not set(first["seeds"]) & set(again["seeds"])
        assert [claim["says"] for claim in again["claims"]] == [claim["says"] for claim in first["claims"]]
        assert again["budget"] == first["budget"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.parent.name for path in DOCS.glob("*/study.json")))
def test_verdicts_follow_from_the_published_numbers(name):
    results = published(name)
    entries = [
        Entry(
            entry["name"],
            entry["part"],
            entry["evaluation"],
            {key: value for key, value in entry.items() if isinstance(value, int | float)},
            {
                key: {int(seed): value for seed, value in result["by_seed"].items()}
                for key, result in entry["results"].items()
            },
        )
        for entry in results["results"]
    ]
    claims = read_study(name).claims
    assert [claim.says for claim in claims] == [claim["says"] for claim in results["claims"]]
    for claim, result in zip(claims, results["claims"], strict=True):
        verdict = decide(claim, entries)
        assert (verdict.verdict, verdict.note) == (result["verdict"], result["note"])
        assert [str(each) for each in verdict.comparisons] == [str(Comparison(**each)) for each in result["found"]]
        assert claim.paper == result["paper"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in DOCS.glob("*/study.json")))
def test_all_reports_of_a_study_have_its_claims(name):
    results = published(name)
    page = (DOCS / name / "report.html").read_text(encoding="utf-8")
    summary = (DOCS / name / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith(f"# {results['title']}\n\n{results['question']}\n")
    assert f"<h1>{results['title']}</h1>" in page
    for claim in results["claims"]:
        found = "; ".join(str(Comparison(**each)) for each in claim["found"])
        assert f"| {claim['says']} | {claim['paper']} | {found} | **{claim['verdict']}** |" in summary
        assert f"<p class='verdict'>{claim['verdict']}</p>" in page
    figures = set(re.findall(r"\(plots/(.*?\.png)\)", summary))
    assert figures == {path.name for path in (DOCS / name / "plots").iterdir()}
