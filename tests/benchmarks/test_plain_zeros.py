"""The benchmark of zeros alone runs and prints its line, with networks that have the zeros and all of their weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "plain_zeros.py"


@pytest.mark.slow
def test_last_line_is_the_claim() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    (rows,) = result["details"]["rows"].values()
    assert result["figure"] == max(row["speedup"] for row in rows.values())
    assert result["holds"] is (result["figure"] <= result["bar"])
    assert {structure: round(row["zeros"], 1) for structure, row in rows.items()} == {
        "unstructured": 0.9,
        "n:m": 0.5,
        "shape": 0.9,
    }


@pytest.mark.parametrize("structure", ["unstructured", "n:m", "shape"])
def test_no_weight_is_taken_away(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import plain_zeros

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pruned = plain_zeros.zeroed(model, structure)
    assert [p.shape for p in pruned.parameters()] == [p.shape for p in model.parameters()]
    share = float((pruned[2].weight == 0).float().mean())
    assert share == pytest.approx(plain_zeros.ZEROS[structure], abs=0.02)
    assert torch.equal(pruned[0].weight, model[0].weight)
    assert not bool((model[2].weight == 0).any()), "the dense network stays as it was"
