"""The studies that come with ditlab, run one after the other, and what they found put into docs/studies/.

    python benchmarks/studies.py [NAME...] [--processes=2] [--out=runs/studies]

Each study is shared by so many processes of one thread. What is done is not repeated, so with everything done this only
writes the documents anew: for each study report.html, study.json, summary.md and plots/, and the table in README.md.
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
from ditlab.study.claims import Compared
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
)
DOCS = Path(__file__).parents[1] / "docs" / "studies"
BEGIN, END = "<!-- results: written by benchmarks/studies.py -->", "<!-- end of results -->"


def main(*names: str, processes: int = 2, out: Path = Path("runs/studies")) -> None:
    """Run these studies, all if none is named, and write the documents."""
    for name in names or STUDIES:
        command = [sys.executable, "-m", "ditlab", "study", name, "--out", str(out / name)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}
        for each in [subprocess.Popen(command, env=alone) for _ in range(processes)]:
            each.wait()
        if not (out / name / REPORT).exists():
            sys.exit(f"{name} has no report; see above")
        publish(out / name, DOCS / name)
    index = DOCS / "README.md"
    before, _, rest = index.read_text(encoding="utf-8").partition(BEGIN)
    replace_text(index, "\n".join([before + BEGIN, "", *table(), "", END + rest.partition(END)[2]]))


def publish(study: Path, folder: Path) -> None:
    """Copy what people read."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(study / "plots", folder / "plots")
    for name in (REPORT, SUMMARY, NAME):
        shutil.copy(study / name, folder / name)


def table() -> Iterator[str]:
    """A row for each claim of each study that has been run."""
    rows = [("study", "claim", "paper", "here", "verdict")]
    for name in STUDIES:
        if (DOCS / name / NAME).exists():
            told = json.loads((DOCS / name / NAME).read_text(encoding="utf-8"))
            for claim in told["claims"]:
                here = [*(str(Compared(**each)) for each in claim["found"]), *filter(None, [claim["note"]])]
                study = f"[{name}]({name}/{SUMMARY})"
                rows.append((study, claim["says"], claim["paper"], "; ".join(here), f"**{claim['verdict']}**"))
    return markdown_table(rows)


if __name__ == "__main__":
    run(main)
