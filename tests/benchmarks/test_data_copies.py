"""On a real cluster of one machine, workers share one copy of the data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "data_copies.py"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="tells no shared memory")
def test_two_workers_hold_one_copy_and_two_where_each_loads_for_itself() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    assert result["holds"], result
    # pages of a set that nobody read would count nothing
    assert 0.8 < result["figure"] <= result["bar"]
    assert result["details"]["each for itself"]["sizes"] > 1.8
