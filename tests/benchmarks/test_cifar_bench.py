"""The CIFAR benchmark runs on a CPU without Ray or ONNX, and says what it has not run; accuracies are not judged."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.tasks.cifar10 import NETWORKS, TRAINING_BATCHES
from search.tasks.cifar_files import FOLDER as DATA_FOLDER
from search.tasks.cifar_files import SOURCE

FOLDER = Path(__file__).parents[2] / "benchmarks"
#: Runs the script where importing any of these fails, as on a machine that has none of them.
WITHOUT = f"""
import runpy, sys
for name in ("ray", "optuna", "pydantic", "onnx", "onnxruntime", "rich", "typer", "yaml", "matplotlib", "sklearn"):
    sys.modules[name] = None
sys.path.insert(0, {str(FOLDER)!r})
sys.argv[0] = "cifar.py"
runpy.run_path({str(FOLDER / "cifar.py")!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def rows() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("cifar_rows")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Noise in CIFAR-10's files: 100 training and 20 test images."""
    rng = np.random.default_rng(0)
    (tmp_path / DATA_FOLDER).mkdir()
    for name in (*TRAINING_BATCHES, "test_batch"):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {b"labels": (np.arange(20) % 10).tolist(), b"data": pixels}
        (tmp_path / DATA_FOLDER / name).write_bytes(pickle.dumps(content, 4))
    return tmp_path


def run(*options: str, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    what = [str(FOLDER / "cifar.py")] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, "-W", "ignore", *what, *options],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )


@pytest.mark.slow
def test_smoke_test_needs_neither_ray_nor_onnx(pictures: Path) -> None:
    done = run("--quick", "--data", str(pictures), "--threads", "1", code=WITHOUT)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {"claim", "figure", "unit", "bar", "holds", "details"}
    assert (result["holds"], result["figure"], result["bar"]) == (False, 0.0, 1.0)  # a reduced form decides nothing
    details = result["details"]
    assert details["device"].startswith("cpu")
    assert (details["short_schedule"], details["dense_epochs"], details["finetune"]["epochs"]) == (True, 2, 1)
    assert "1x1" in details["shortcut"]
    row = details["resnet-20-2x"]
    assert row["bar"] == "at most 0.3 points below dense"
    (outcome,) = row["seeds"]
    assert 2.0 <= outcome["macs_ideal_x"] == outcome["macs_kernels_x"] < 2.1  # filters leave no zeros behind
    # two of ADMM, one of retraining, and three times BatchNorm's statistics: forward only, a third of an epoch each
    assert outcome["epochs"] == 4.0
    assert 0.0 <= outcome["test"] <= 1.0
    assert str(pictures) not in done.stdout


@pytest.mark.slow  # about a minute of CPU time each, most of it the first allocation
@pytest.mark.parametrize(("name", "compression_x"), [("resnet-18-60x", 60.0), ("vgg-16-bn-54x", 54.0)])
def test_the_large_networks_lose_filters_and_columns(pictures: Path, name: str, compression_x: float) -> None:
    done = run("--tiny", "--rows", name, "--data", str(pictures), "--threads", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["holds"], result["figure"], result["bar"]) == (False, 0.0, 1.0)
    details = result["details"]
    assert (details["quick"], details["tiny"], details["short_schedule"], details["dense_epochs"]) == (
        True,
        True,
        True,
        1,
    )
    row = details[name]
    assert row["target"]["structures"] == ["filter", "shape"]
    (outcome,) = row["seeds"]
    assert outcome["compression_x"] >= compression_x
    # columns that went are zeros in the kernels that are left, whole columns and nothing less
    assert outcome["macs_ideal_x"] > outcome["macs_kernels_x"] > 1.0
    for *shape, kept in outcome["kept"].values():
        assert kept % shape[0] == 0
        assert 0 < kept <= math.prod(shape)
    # one of ADMM, one of retraining, and twice BatchNorm's statistics: forward only, a third of an epoch each
    assert outcome["epochs"] == pytest.approx(8 / 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "no CUDA device at hand"),
        (("--iterations", "3"), "--dense-epochs and --finetune-epochs not given"),
        (("--quick", "--iterations", "3"), "--quick has a schedule of its own"),
        (("--tiny", "--iterations", "3"), "--tiny has a schedule of its own"),
        (("--quick", "--record"), "full benchmark only"),
        (("--tiny", "--record"), "full benchmark only"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(options: tuple[str, ...], said: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 or "usage:" in done.stderr


@pytest.mark.slow
def test_without_the_data_it_says_where_they_are_from(tmp_path: Path) -> None:
    done = run("--quick", PRUNEFRONT_DATA=str(tmp_path))
    assert done.returncode == 2
    assert "skipped:" in done.stdout
    assert SOURCE in done.stdout


def test_every_row_is_filed_even_where_it_was_not_run(rows: Any) -> None:
    entries = json.loads((FOLDER / "results" / "cifar.json").read_text())
    filed = {entry["row"]: entry for entry in entries if "row" in entry}
    assert set(filed) == set(rows.ROWS)
    for name, row in rows.ROWS.items():
        assert filed[name]["network"] == row.network
        assert filed[name]["network"] in NETWORKS
        assert (filed[name]["bar"], filed[name]["published"]) == (row.bar, row.published)
        assert filed[name]["status"].startswith("not yet run")


@pytest.mark.parametrize(
    ("name", "accuracy", "dense", "holds"),
    [
        ("resnet-56-2x", 0.9290, 0.9315, True),
        ("resnet-56-2x", 0.9290, 0.9325, False),
        ("resnet-18-18.1x", 0.9301, 0.9500, True),
        ("resnet-18-18.1x", 0.9299, 0.9300, False),
    ],
)
def test_bars_are_losses_or_accuracies(rows: Any, name: str, accuracy: float, dense: float, holds: bool) -> None:
    assert rows.ROWS[name].holds(accuracy, dense) is holds


def test_a_gpu_takes_the_full_schedule(rows: Any) -> None:
    class Options:
        quick = tiny = False
        dense_epochs = iterations = finetune_epochs = None

    schedule = rows.schedule_of(Options, torch.device("cuda"))
    assert (schedule.dense_epochs, schedule.limit, schedule.short) == (None, None, False)
    assert (schedule.admm, schedule.finetune) == (rows.ADMM, rows.RETRAIN)
