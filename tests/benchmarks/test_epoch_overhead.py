"""The benchmark of an epoch runs with and without MNIST and prints its line; its times are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "epoch_overhead.py"


def run(*options: str, data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PRUNEFRONT_DATA": str(data)},
    )


@pytest.mark.slow
def test_last_line_is_the_claim_and_memory_is_accounted_for(tmp_path: Path) -> None:
    done = run("--tiny", data=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    assert details["data"].startswith("noise of MNIST's shape")
    assert str(tmp_path) not in done.stdout
    bare, ours, found, structured, chosen = details["sides"].values()
    assert (details["steps"], bare["ratio"], result["figure"]) == (20, 1.0, ours["ratio"])
    assert result["holds"] is (ours["ratio"] <= result["bar"] == 1.10)
    assert list(details["sides"])[2:4] == [
        "the same, compression_x=71.2 by unstructured",
        "the same, mac_fraction=0.25 by filter + shape",
    ]
    assert min(ours["end_ms"], found["end_ms"], structured["end_ms"], chosen["step_ms"]) > 0.0
    for row in (ours, found, structured, chosen):
        assert row["epoch_s"] == pytest.approx(row["ratio"] * bare["epoch_s"], abs=2e-3)
    memory = details["memory_bytes"]
    weights = memory["weights"]
    assert weights == memory["gradients"] == memory["optimiser"] == memory["ema"] == memory["teacher"]
    assert memory["t"] == memory["u"] == 4 * 430_500  # two copies of what is constrained, biases are not
    assert 430_500 <= memory["masks"] < weights / 3


@pytest.mark.slow
def test_reduced_figures_are_not_recorded(tmp_path: Path) -> None:
    done = run("--quick", "--record", data=tmp_path)
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr
