"""The benchmark of projections runs, agrees with its references and prints its line; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from admm.plan import STRUCTURES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "projection.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_last_line_is_the_claim_and_every_row_agrees() -> None:
    done = run("--tiny")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    rows = {name: row for name, row in details.items() if isinstance(row, dict)}
    assert set(rows) == {f"conv_{structure}" for structure in STRUCTURES}
    assert all(row["agrees"] for row in rows.values())
    assert all(row["energy_error"] < 1e-6 for row in rows.values())
    assert [rows[f"conv_{s}"]["units"] for s in ("filter", "channel", "shape", "unstructured")] == [64, 64, 576, 36_864]
    for row in rows.values():
        assert row["holds"] is (row["gain_over_sort"] >= 5.0 and row["gain_over_partition"] > 1.0)
    assert result["figure"] == min(row["gain_over_sort"] for row in rows.values())
    assert result["holds"] is all(row["holds"] for row in rows.values())
    single = rows["conv_unstructured"]
    assert details["smallest_gain_over_sort_of_single_weights"] == single["gain_over_sort"]
    assert f"single weights reach {single['gain_over_sort']:.2g}" in result["claim"]
    assert details["peak_mebibytes"] > 0.0
    assert details["tiny"] is True


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = run("--tiny", "--record")
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr
