"""What a search may weigh, said in one line where it may not; and each trial's costs, as far as they are known."""

# ruff: noqa: E501  (a row a case: what was written beside what is said)

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.errors import UserError
from search.front import front_results, front_rows, more_columns
from search.job import Job
from search.job_file import load_job
from search.objective_names import DEFAULT
from search.objectives import LATENCY_ALONE, Gain, Objectives
from search.result import Baseline, TrialResult
from search.rungs import ENOUGH, RungBoard

RIGS = "[onnxruntime-cpu, torch-cpu]"
BASELINE = Baseline(
    accuracy=0.9, accuracy_stderr=0.0, latency_ms=1.0, macs=1000, params=100, weights=90, size_bytes=400
)
THREE = Objectives(names=("accuracy", "latency", "latency:torch-cpu"), dense_macs=1000, dense_bytes=400)
COUNTED = Objectives(names=("accuracy", "macs", "size"), dense_macs=1000, dense_bytes=400)


def _result(number: int = 0, speedup: float = 2.0, **changes: Any) -> TrialResult:
    values: dict[str, Any] = {
        "accuracy": 0.89, "latency_ms": 1.0 / speedup, "latency_high_ms": 1.0 / speedup, "speedup": speedup, "speedup_low": 0.9 * speedup,
        "compression_x": 2.0, "macs": 500, "params": 50, "size_bytes": 100,
        "measurements": {"torch-cpu": {"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6, "latency_ms": 3.0}},
    }  # fmt: skip
    return TrialResult(number=number, status="complete", plan_digest=str(number), seed=0, **(values | changes))


def _job(path: Path, objectives: str, rigs: str = RIGS) -> Job:
    path.write_text(f"task: small:task\nrigs: {rigs}\nsearch:\n  objectives: {objectives}\n")
    return load_job(path)


def test_a_job_weighs_accuracy_and_latency_unless_it_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("task: small:task\n")
    job = load_job(tmp_path / "job.yaml")
    assert job.search.objectives == DEFAULT == LATENCY_ALONE.names == ("accuracy", "latency")
    assert Objectives.of(job, BASELINE).metrics == ["accuracy", "relative_latency"]


@pytest.mark.parametrize(
    "names",
    ["[accuracy, macs]", "[accuracy, size, macs]", "[accuracy, latency:torch-cpu]", "[accuracy, latency, latency:torch-cpu]"],
)  # fmt: skip
def test_objectives_of_a_job_file_come_back_from_the_run_s(names: str, tmp_path: Path) -> None:
    job = _job(tmp_path / "job.yaml", names)
    (tmp_path / "again.yaml").write_text(job.to_yaml())
    assert load_job(tmp_path / "again.yaml") == job
    assert f"[{', '.join(job.search.objectives)}]" == names


MISTAKES = [
    ("[accuracy, latncy]", "'latncy' is no objective; did you mean 'latency'?"),
    ("[accuracy, 'latency:']", "'latency:' is no objective; did you mean 'latency'?"),
    ("[accuracy, latency, latency]", "'latency' is named twice"),
    ("[latency, accuracy]", "must begin with accuracy, got latency, accuracy"),
    ("[latency]", "must begin with accuracy, got latency"),
    ("[]", "must begin with accuracy, got nothing"),
    ("[accuracy]", "accuracy goes with one or two of latency, latency:RIG, size, macs, got none"),
    ("[accuracy, latency, size, macs]", "accuracy goes with one or two of latency, latency:RIG, size, macs, got latency, size, macs"),
    ("[accuracy, 'latency:torch-cpq']", "'latency:torch-cpq': 'torch-cpq' is not among the rigs; did you mean 'torch-cpu'?"),
    ("[accuracy, 'latency:onnxruntime-cpu']", "'latency:onnxruntime-cpu': onnxruntime-cpu is the rig that decides: its latency is called 'latency'"),
    ("latency", "must be a list, got 'latency': write [latency]"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "said"), MISTAKES)
def test_a_mistake_in_the_objectives_is_one_line_with_its_place(names: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _job(tmp_path / "job.yaml", names)
    assert str(caught.value) == f"{tmp_path / 'job.yaml'}:4: search.objectives: {said}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": "accuracy, speed"}, "--objectives: 'speed' is no objective; there is accuracy, latency, "),
        ({"objectives": "macs"}, "--objectives: must begin with accuracy, got macs"),
        (
            {"objectives": "accuracy,latency:torch-cpu", "rig": "torch-cpu"},
            "--objectives: 'latency:torch-cpu': torch-cpu is the rig that decides",
        ),
    ],
)
def test_a_mistake_on_the_command_line_names_its_option(options: dict[str, str], said: str, tmp_path: Path) -> None:
    job = _job(tmp_path / "job.yaml", "[accuracy, latency]")
    with pytest.raises(UserError, match=r"^--objectives") as caught:
        job.with_overrides(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)


def test_a_rig_named_on_the_command_line_decides_and_keeps_its_threads(tmp_path: Path) -> None:
    rigs = "[onnxruntime-cpu, {name: torch-cpu, threads: 3}]"
    job = _job(tmp_path / "job.yaml", "[accuracy, latency]", rigs)
    changed = job.with_overrides(rig="torch-cpu", objectives="accuracy, macs,latency:onnxruntime-cpu")
    assert [(rig.name, rig.threads) for rig in changed.rigs] == [("torch-cpu", 3), ("onnxruntime-cpu", 1)]
    assert changed.search.objectives == ("accuracy", "macs", "latency:onnxruntime-cpu")
    both = job.with_overrides(rig="cuda", speedup=3.0)
    assert [rig.name for rig in both.rigs] == ["cuda", "onnxruntime-cpu", "torch-cpu"]
    assert both.budget is not None
    assert (both.budget.speedup, both.budget.rig) == (3.0, None)


def test_costs_are_relative_to_the_dense_network() -> None:
    assert THREE.point(_result()) == (0.89, 0.5, 1 / 1.5)
    assert COUNTED.point(_result()) == (0.89, 0.5, 0.25)
    assert THREE.gains(_result()) == (
        Gain(value=2.0, low=1.8, high=pytest.approx(4 / 1.8)),
        Gain(value=1.5, low=1.4, high=1.6),
    )
    assert LATENCY_ALONE.point(_result()) == _result().dominates_key


@pytest.mark.parametrize("wrong", [None, math.nan, math.inf, 0.0, -1.0, "fast"])
def test_a_cost_that_is_unknown_or_no_number_leaves_no_point(wrong: object) -> None:
    strange = _result(measurements={"torch-cpu": {"speedup": wrong}})
    assert THREE.point(strange) is None
    assert LATENCY_ALONE.point(strange) is not None
    assert THREE.point(_result(measurements={})) is None
    for sized in (None, 0, -5):
        assert COUNTED.point(replace(_result(), size_bytes=sized)) is None
    assert Objectives(names=("accuracy", "size")).gains(_result()) is None  # no dense size to compare with


def test_what_did_not_complete_has_costs_but_no_point() -> None:
    stopped = TrialResult(
        number=1, status="stopped", plan_digest="d", seed=0, reason="dominated", speedup=2.0, macs=250, size_bytes=40
    )
    assert COUNTED.relative(stopped) == (0.25, 0.1)
    assert COUNTED.point(stopped) is None


def _numbers(found: Sequence[TrialResult]) -> list[int]:
    return [trial.number for trial in found]


def test_the_front_follows_the_objectives() -> None:
    results = {
        0: _result(0, speedup=4.0, macs=800),
        1: _result(1, speedup=2.0, macs=400),  # slower than 0 and as accurate
        2: _result(2, speedup=1.5, macs=300, accuracy=0.85),
        3: _result(3, speedup=8.0, macs=1200, accuracy=0.91, measurements={}),
    }
    assert _numbers(front_results(BASELINE, results)) == [3]
    macs = Objectives(names=("accuracy", "macs"), dense_macs=1000)
    # what computes more than the dense network, but is more accurate than it, beats nothing but the dense network
    assert _numbers(front_results(BASELINE, results, macs)) == [2, 1, 3]
    both = Objectives(names=("accuracy", "latency", "macs"), dense_macs=1000)
    assert _numbers(front_results(BASELINE, results, both)) == [2, 1, 0, 3]
    assert _numbers(front_results(BASELINE, results, THREE)) == [0]  # 3 was not measured there


def test_rows_tell_of_costs_that_no_other_column_has() -> None:
    baseline = replace(BASELINE, measurements={"torch-cpu": {"latency_ms": 4.5, "speedup": 0.98}})
    dense, row = front_rows(baseline, {0: _result()}, objectives=THREE)
    assert more_columns(THREE) == ("latency_ms:torch-cpu", "speedup:torch-cpu")
    assert (dense["latency_ms:torch-cpu"], dense["speedup:torch-cpu"]) == (4.5, 1.0)
    assert (row["latency_ms:torch-cpu"], row["speedup:torch-cpu"]) == (3.0, 1.5)
    assert [r["size_bytes"] for r in front_rows(BASELINE, {0: _result()}, objectives=COUNTED)] == [400, 100]
    assert more_columns(LATENCY_ALONE) == ()


def test_a_trial_that_is_best_in_one_of_three_goes_on_at_a_rung() -> None:
    macs = Objectives(names=("accuracy", "latency", "macs"), dense_macs=1000)
    stopped = {
        n: TrialResult(
            number=n, status="stopped", plan_digest="d", seed=0, reason="r", rungs=((2, 0.8),), speedup=4.0, macs=500
        )
        for n in range(ENOUGH)
    }
    for objectives, costs, ends in ((LATENCY_ALONE, (0.5,), True), (macs, (0.5, 0.6), True), (macs, (0.5, 0.4), False)):
        board = RungBoard((2,), objectives=objectives)
        board.fill(stopped)
        assert len(board.points[2]) == ENOUGH
        assert (board.verdict(90, 2, 0.7, *costs) is not None) == ends
