"""Run the studies that come with ditlab, and write their reports and the table of results to docs/studies/.

    python benchmarks/studies.py [NAME...] [--again] [--processes=2] [--out=runs/studies]

The runs of a study are shared by several processes with one thread each. Finished runs are not repeated, so if all of
them are finished, the program only writes the documents: report.html, study.json, summary.md and plots/ of each study,
and the table in README.md. With --again it runs the studies with as many other seeds, and writes only the verdicts:
again.json, and one more column of the table.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import run

from ditlab.core.io import replace_text
from ditlab.study.claims import Comparison
from ditlab.study.recipe import read_study
from ditlab.study.report import REPORT, SUMMARY, markdown_table
from ditlab.study.run import NAME

STUDIES = (
    "scaling",
    "conditioning",
    "u-shape",
    "sampling-compute",
    "guidance",
    "options",
    "families",
    "families-letters",
    "flow-against-ddpm",
    "skips-and-caching",
    "dynamic",
    "early-exit",
    "frequencies",
    "few-steps",
    "text",
)
DOCS = Path(__file__).parents[1] / "docs" / "studies"
AGAIN = "again.json"  # the verdicts with other seeds
BEGIN, END = "<!-- results: written by benchmarks/studies.py -->", "<!-- end of results -->"


def main(*names: str, again: bool = False, processes: int = 2, out: Path = Path("runs/studies")) -> None:
    """Run the named studies (default: all), and write the documents."""
    for name in names or STUDIES:
        folder, seeds = out / name, []
        if again:
            first = read_study(name).seeds
            folder, seeds = out / f"{name}-again", [str(max(first) + 1 + number) for number in range(len(first))]
        command = [sys.executable, "-m", "ditlab", "study", name, "--out", str(folder)]
        command += ["--seeds", *seeds] if again else []
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        for process in [subprocess.Popen(command, env=one_thread) for _ in range(processes)]:
            process.wait()
        if not (folder / REPORT).exists():
            sys.exit(f"{name} has no report; see above")
        publish_again(folder, DOCS / name) if again else publish(folder, DOCS / name)
    index = DOCS / "README.md"
    replace_text(index, with_table(index.read_text(encoding="utf-8")))


def publish(study: Path, folder: Path) -> None:
    """Copy the reports of a study to the documentation."""
    shutil.rmtree(folder / "plots", ignore_errors=True)
    shutil.copytree(study / "plots", folder / "plots")
    for name in (REPORT, SUMMARY, NAME):
        shutil.copy(study / name, folder / name)


def publish_again(study: Path, folder: Path) -> None:
    """Write the verdicts of a repetition to the documentation."""
    results = json.loads((study / NAME).read_text(encoding="utf-8"))
    kept = {key: results[key] for key in ("name", "budget", "seeds", "claims", "failures", "hardware")}
    replace_text(folder / AGAIN, json.dumps(kept, indent=1) + "\n")


def with_table(text: str) -> str:
    """The text of README.md with the present table of results."""
    before, _, after = text.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *table(), "", END + after.partition(END)[2]])


def table() -> Iterator[str]:
    """One row per claim of each published study."""
    rows = [("study", "claim", "paper", "here", "verdict", "again")]
    for name in STUDIES:
        if (DOCS / name / NAME).exists():
            results = json.loads((DOCS / name / NAME).read_text(encoding="utf-8"))
            again = verdicts_again(DOCS / name / AGAIN)
            for claim in results["claims"]:
                comparisons = [str(Comparison(**comparison)) for comparison in claim["found"]]
                here = "; ".join([*comparisons, *filter(None, [claim["note"]])])
                study = f"[{name}]({name}/{SUMMARY})"
                verdict = f"**{claim['verdict']}**"
                rows.append((study, claim["says"], claim["paper"], here, verdict, again.get(claim["says"], "")))
    return markdown_table(rows)


def verdicts_again(file: Path) -> dict[str, str]:
    """Claim -> its verdict with other seeds, for studies that were repeated."""
    if not file.exists():
        return {}
    return {claim["says"]: claim["verdict"] for claim in json.loads(file.read_text(encoding="utf-8"))["claims"]}


if __name__ == "__main__":
    run(main)
