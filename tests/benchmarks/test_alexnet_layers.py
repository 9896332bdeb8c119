"""The benchmark of AlexNet's layers runs, agrees with the dense layers and prints its line; times are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "alexnet_layers.py"
SPARSITIES = [0.0, 0.70, 0.77, 0.85, 0.81]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_last_line_is_the_claim_and_every_file_agrees() -> None:
    done = run("--tiny")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    details = result["details"]
    assert details["tiny"] is True
    assert details["holds"]["exact"] is True
    assert result["holds"] is all(details["holds"].values())
    for rows, sparsities in ((details["layers"], SPARSITIES), (details["layers_most"], [0.9333] * 5)):
        assert [row["layer"] for row in rows] == [f"conv{number}" for number in range(1, 6)]
        assert [row["sparsity"] for row in rows] == sparsities
        assert all(row["low"] <= row["speedup"] <= row["high"] for row in rows)
        assert all(run["choice"] == "dense" or run["choice"] in run["tried"] for row in rows for run in row["runs"])
    assert details["layers"][0]["choice"] == "dense"
    assert result["figure"] == pytest.approx(mean(row["speedup"] for row in details["layers"][1:]), abs=1e-3)
    assert len(details["stack"]) == 5
    assert all(row["compression_x"] > 5 for row in details["stack"])


def test_mixes_are_what_they_say_at_full_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import alexnet_layers

    dense = alexnet_layers.stack((96, 256, 384, 384, 256), 227)
    assert [(conv.shape, conv.size) for conv in dense] == [
        ((96, 3, 11, 11), 227),
        ((256, 96, 5, 5), 27),
        ((384, 256, 3, 3), 13),
        ((384, 384, 3, 3), 13),
        ((256, 384, 3, 3), 13),
    ]
    for name, (widths, sparsities) in alexnet_layers.MIXES.items():
        layers = alexnet_layers.stack(widths, 227)
        kept = sum((alexnet_layers.weights(c, s, 0)[0] != 0).sum() for c, s in zip(layers, sparsities, strict=True))
        compression = 3_745_824 / int(kept)
        assert (15.0 <= compression <= 16.0) is (name != "filters, narrow"), (name, compression)


@pytest.mark.slow
def test_reduced_figures_are_not_recorded() -> None:
    done = run("--tiny", "--record")
    assert done.returncode == 2
    assert "full benchmark only" in done.stderr
