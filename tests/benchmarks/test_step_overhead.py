"""The benchmark of ADMM's overhead runs and prints the line that it promises; what it measured is not judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import benchmarks.claim as claim_module
from benchmarks.claim import Claim

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "step_overhead.py"
KEYS = {"claim", "figure", "unit", "bar", "holds", "details"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_last_line_is_the_claim() -> None:
    done = run("--quick", "--tiny")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == KEYS
    details = result["details"]
    assert details.pop("quick") is True
    assert details.pop("tiny") is True
    assert list(details) == ["lenet5_unstructured", "lenet5_filter_shape"]
    assert result["bar"] == 1.10
    assert result["figure"] == details["lenet5_filter_shape"]["ratio"]
    assert result["holds"] is all(row["ratio"] <= row["bar"] for row in details.values())
    for row in details.values():
        assert row["low"] <= row["ratio"] <= row["high"]
        assert row["plain_step_ms"] > 0.0
        assert row["end_iteration_ms"] > 0.0
        assert row["steps_per_epoch"] == 3750  # 60,000 images in batches of 16
        memory = row["memory_bytes"]
        assert memory["t"] <= memory["weights"]
        assert memory["u"] <= memory["weights"]
        assert memory["masks"] < memory["weights"]
    # 430,500 weights constrained: T and U in float32, masks of a byte a weight
    assert details["lenet5_unstructured"]["memory_bytes"]["t"] == 4 * 430_500
    assert details["lenet5_unstructured"]["memory_bytes"]["masks"] >= 430_500


@pytest.mark.parametrize(("peak", "shown"), [(90 * 2**20, "+90.0"), (-(2**19), "-0.5"), (None, "not read")])
def test_the_table_has_the_peak_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], peak: int | None, shown: str
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    bench = importlib.import_module("step_overhead")
    times = dict.fromkeys(("plain_step_ms", "after_step_ms", "end_iteration_ms", "ratio", "low", "high"), 1.0)
    memory = {"t": 2**20, "u": 2**20, "masks": 2**19, "peak_beyond_plain": peak}
    bench.show({"row": {"network": "some", "batch": 4, "memory_bytes": memory, **times}})
    printed = capsys.readouterr().out
    assert "peak MiB" in printed
    (line,) = (line for line in printed.splitlines() if "some" in line)
    assert [cell.strip() for cell in line.split("│")[-3:-1]] == ["2.5", shown]


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = run("--tiny", "--record")
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr


def test_records_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_module, "RESULTS", tmp_path)
    for figure in (1.2, 1.05):
        claim = Claim(claim="c", figure=figure, unit="x", bar=1.1, holds=figure <= 1.1)
        path = claim.record("some", packages=("torch",))
    entries = json.loads(path.read_text())
    assert [(e["figure"], e["holds"]) for e in entries] == [(1.2, False), (1.05, True)]
    assert entries[0]["versions"] == {"torch": version("torch")}
    assert set(json.loads(claim.to_json())) == KEYS
