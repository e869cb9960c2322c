import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_fifty_times_equals_one_that_was_left_alone(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "crash.py"
    found = subprocess.run([sys.executable, str(script), "50", str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    reported = json.loads(found.stdout)
    assert reported["kills"] == 50
    assert reported["with_a_checkpoint"] > 10
    assert reported["torn"] == 0
    assert reported["bit_exact"]
