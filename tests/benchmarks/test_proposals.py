"""The benchmark of proposals runs and prints its line; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "proposals.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_last_line_is_the_claim_of_the_default_s_worse_storage() -> None:
    done = run("--tiny", "--worth")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    seconds = result["details"]["seconds"]
    assert len(seconds) == 10
    worse = max(seconds[f"tpe + neighbours, {storage}"]["12"]["wall_s"] for storage in ("sqlite", "journal"))
    assert result["figure"] == worse > 0.0
    assert result["holds"] is (worse <= result["bar"])
    for row in (row for counts in seconds.values() for row in counts.values()):
        assert 0.0 < row["cpu_s"] <= row["wall_s"] * 1.5 + 0.01
        assert row["wall_s"] <= row["wall_worst_s"]
    worth = result["details"]["worth"]
    assert len(worth) == 10
    assert all(0.0 <= row["half"] <= row["all"] for row in worth.values())


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = run("--tiny", "--record")
    assert done.returncode == 2
    assert "--record keeps figures of the full benchmark only" in done.stderr
