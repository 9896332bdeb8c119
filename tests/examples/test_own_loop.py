"""The example of a loop of one's own, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "own_loop" / "train.py"


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 80


def test_it_trains_prunes_retrains_and_exports(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the example's digits come with scikit-learn")
    from evaluators import batch_kind

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--epochs", "2", "--out", "small.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    found = {
        name: (float(accuracy), int(weights))
        for name, accuracy, weights in re.findall(r"^(\w+) +accuracy ([\d.]+), (\d+) weights$", done.stdout, re.M)
    }
    assert list(found) == ["dense", "pruned", "retrained"]
    assert found["dense"][1] == 84_896
    assert found["pruned"][1] <= 12_000
    assert found["retrained"][1] <= found["pruned"][1]
    assert found["retrained"][0] >= 0.9
    assert batch_kind(tmp_path / "small.onnx") == "dynamic"
