"""The comparison of allocations runs, with equal budgets and epochs for all; its accuracies are not judged here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.search.real_data import real_data

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "allocation.py"
SOURCE = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FIXED = {"one threshold", "one-shot sensitivity", "uniform"}
OURS, ABLATION = "while ADMM runs", "while ADMM runs, idle kept"


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
@pytest.mark.data
def test_every_way_has_the_same_budget_and_the_fixed_plans_are_the_rivals() -> None:
    real_data("mnist", SOURCE)
    done = run("--quick", "--seeds", "0", "--rows", "lenet-300-100")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["bar"], result["holds"]) == (0.0, False)  # a reduced form decides nothing
    row: dict[str, Any] = result["details"]["lenet-300-100"]
    sides = row["sides"]
    assert set(sides) == {*FIXED, OURS, ABLATION}
    assert all(row["within"].values())
    means = row["val_mean"]
    assert row["best_other"] in FIXED
    assert means[row["best_other"]] == max(means[side] for side in FIXED)
    assert result["figure"] == pytest.approx(100 * (means[OURS] - means[row["best_other"]]), abs=1e-3)
    for (outcome,) in sides.values():
        assert 60.0 <= outcome["compression_x"] < 60.2
        assert sum(outcome["kept"].values()) + outcome["idle"] == round(266_200 / outcome["compression_x"])
    assert sides[OURS][0]["idle"] == 0
    assert sides[ABLATION][0]["idle"] > 0
    for side, (outcome,) in sides.items():
        extra = outcome["epochs"] - 4.0
        assert (0.0 < extra < 2.0) if side == "one-shot sensitivity" else extra == 0.0


@pytest.mark.slow
def test_without_the_data_it_says_where_they_are_from(tmp_path: Path) -> None:
    done = run("--quick", PRUNEFRONT_DATA=str(tmp_path))
    assert done.returncode == 2
    assert "skipped:" in done.stdout
    assert SOURCE in done.stdout
