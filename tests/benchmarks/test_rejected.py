"""The benchmark of refused plans runs and prints its line; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "rejected.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_the_slowest_refused_plan_decides() -> None:
    done = run("--quick")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rows = result["details"]["rows"]
    assert {row["status"] for row in rows} == {"infeasible"}
    assert result["figure"] == max(row["wall_s"] for row in rows) > 0.0
    assert (result["bar"], result["holds"]) == (2.0, False)  # a reduced form decides nothing
    assert all(row["speedup"] < 4.1 for row in rows)


def test_reduced_figures_are_not_recorded() -> None:
    done = run("--quick", "--record")
    assert done.returncode == 2
    assert "--record keeps figures of the full benchmark only" in done.stderr
