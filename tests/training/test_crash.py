import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_equals_one_that_was_left_alone(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "crash.py"
    words = ["--kills", "20", "--only", "train", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [tally] = json.loads((tmp_path / "out.json").read_text())
    assert tally["kills"] == 20
    assert tally["torn"] == tally["lost"] == tally["different"] == 0
    assert tally["equal"] == tally["ended"] > 4
