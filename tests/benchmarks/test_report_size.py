"""The benchmark of the report runs and prints its line, and 200 trials stay below the bar; times are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chromium import ABSENT, find_chromium

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "report_size.py"


@pytest.mark.skipif(find_chromium() is None, reason=ABSENT)
def test_last_line_is_the_claim() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny"],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    assert result["holds"] is (result["figure"] <= result["bar"] and details["megabytes"] <= 8.0)
    (opening,) = details["openings"]
    assert opening["cpu_s"] > 0.0
    assert result["figure"] == opening["wall_s"]


def test_the_report_of_200_trials_is_small_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import report_size

    path, made = report_size.make(tmp_path, 200)
    assert path.stat().st_size <= 8_000_000
    assert made["traces"] == made["complete"] > 100, "none was left out to make room"
    assert 0.1 < made["data_megabytes"] < 3.0
