"""The benchmark of budgets: what is reachable, how an answer is judged; one real search on demand."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.measurement import DeviceStamp, Measurement
from search.budget import Budget
from search.calm import Calm
from search.errors import UserError
from search.job import Job
from search.result import Baseline, TrialResult

FOLDER = Path(__file__).parents[2] / "benchmarks"
STAMP = DeviceStamp(
    rig="onnxruntime-cpu",
    device="d",
    isa="i",
    runtime="r",
    provider="p",
    threads=1,
    batch=1,
    clock="wall",
    platform="x",
)
BASELINE = Baseline(accuracy=0.95, accuracy_stderr=0.01, latency_ms=1.0, macs=100, params=50, weights=45)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module: its imports are those of a script in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        module = importlib.import_module("budgets")
        patch.setattr(module, "load_job", lambda path: None)
        patch.setattr(module, "read_final", lambda store, job: store.final)
        yield module


def measurement(speedup: float) -> Measurement:
    """Of a dense network of 1 ms, with an interval of +-2 %."""
    latency = 1.0 / speedup
    return Measurement(
        latency_ms=latency, latency_low_ms=latency * 0.98, latency_high_ms=latency * 1.02, dense_latency_ms=1.0,
        speedup=speedup, speedup_low=speedup * 0.98, speedup_high=speedup * 1.02, wall_p50_ms=latency,
        wall_p95_ms=latency, wall_min_ms=latency, pairs=9, rejected=0, converged=True, seconds=0.1, stamp=STAMP,
    )  # fmt: skip


def trial(number: int, accuracy: float, speedup: float) -> TrialResult:
    measured = measurement(speedup)
    return TrialResult(
        number=number, status="complete", plan_digest=f"p{number}", seed=0, accuracy=accuracy,
        latency_ms=measured.latency_ms, latency_high_ms=measured.latency_high_ms, speedup=speedup,
        speedup_low=measured.speedup_low, compression_x=2.0, macs=50, params=25,
        measurements={STAMP.rig: measured.to_dict()},
    )  # fmt: skip


def store(tmp_path: Path, results: dict[int, TrialResult]) -> Any:
    return SimpleNamespace(
        name="r", baseline_dir=tmp_path, read_baseline=lambda: BASELINE, results=lambda: results, root=tmp_path,
        job_path=tmp_path, final=None,
    )  # fmt: skip


def test_what_the_fresh_process_measured_bounds_what_is_reachable(bench: Any) -> None:
    run = store(Path(), {0: trial(0, 0.9, 20.0), 1: trial(1, 0.9, 6.0)})
    run.final = SimpleNamespace(networks={"0": measurement(16.0), "dense": measurement(1.0)})
    asked = [b.speedup if b.speedup is not None else 1.0 / b.latency_ms for b in bench.reachable(run, 4)]
    assert max(asked) == pytest.approx(16.0 * 0.98 / (1.0 + bench.EDGE), rel=1e-3)


SOME = {0: trial(0, 0.94, 1.5), 1: trial(1, 0.93, 3.0), 2: trial(2, 0.92, 6.0)}
STOPPED = TrialResult(number=3, status="stopped", plan_digest="p3", seed=0, reason="r", speedup=60.0, speedup_low=59.0)


@settings(max_examples=60, deadline=None)
@given(fastest=st.floats(1.3, 50.0), count=st.integers(2, 20))
def test_budgets_are_spread_over_what_a_complete_trial_keeps(bench: Any, fastest: float, count: int) -> None:
    budgets = bench.reachable(store(Path(), {0: trial(0, 0.9, fastest), 3: STOPPED}), count)
    assert len(budgets) == count
    best = measurement(fastest)
    assert all(budget.met_by(best) and not budget.met_by(measurement(1.0)) for budget in budgets)
    asked = [b.speedup if b.speedup is not None else 1.0 / b.latency_ms for b in budgets]
    assert asked == sorted(asked)
    steps = [math.log(b / a) for a, b in itertools.pairwise(asked)]
    assert max(steps) - min(steps) < 3e-3  # even, but for four digits
    assert [b.speedup is not None for b in budgets] == [bool(i % 2) for i in range(count)]


def test_a_run_that_gained_nothing_has_no_budget_to_ask_for(bench: Any) -> None:
    for results in ({}, {3: STOPPED}, {0: trial(0, 0.9, 1.05)}):
        with pytest.raises(UserError, match="gains too little for 4 budgets"):
            bench.reachable(store(Path(), results), 4)


@pytest.mark.parametrize(
    ("again", "number", "kept", "loss"),
    [(3.1, 1, True, 0.0), (2.9, 1, False, 0.0), (6.0, 2, True, 1.0)],
)
def test_an_answer_is_judged_by_the_second_measurement_and_the_best_trial_known(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: float, number: int, kept: bool, loss: float
) -> None:
    said: list[tuple[str, ...]] = []

    def command(*arguments: str) -> Any:
        said.append(arguments)
        if arguments[0] == "export":
            out = Path(arguments[arguments.index("--out") + 1])
            out.mkdir()
            card = {
                "trial": number,
                "accuracy": SOME[number].accuracy,
                "measured_at_export": measurement(3.2).to_dict(),
            }
            (out / "card.json").write_text(json.dumps(card))
            return SimpleNamespace(returncode=0, stdout="trial 9 was passed over: measured again it takes 1 ms\n")
        return SimpleNamespace(returncode=0, stdout=json.dumps(measurement(again).to_dict()))

    monkeypatch.setattr(bench, "command", command)
    monkeypatch.setattr(bench, "RunStore", SimpleNamespace(open=lambda run: store(tmp_path / "baseline", SOME)))
    monkeypatch.setattr(bench, "load_job", lambda path: Job.model_validate({"task": "a:b"}))
    console = SimpleNamespace(print=lambda *a, **k: None)
    row = bench.answered("n", tmp_path / "run", Budget(speedup=2.9), tmp_path, console)
    assert said[0][:2] == ("export", str(tmp_path / "run"))
    assert said[0][-2:] == ("--speedup", "2.9")
    assert said[1][0] == "measure"
    assert said[1][2:] == ("--against", str(tmp_path / "baseline" / "model.onnx"), "--json")
    assert (row.within, row.trial, row.passed_over, row.accuracy_loss_pp) == (kept, number, 1, pytest.approx(loss))
    assert row.accurate is (loss <= 0.5)
    assert row.over == pytest.approx(2.9 / (0.98 * again) - 1.0, abs=1e-4)


@pytest.mark.parametrize(("dense", "looks"), [([1.0], 1), ([1.09], 1), ([1.3, 1.2, 1.05], 3), ([2.0] * 20, 12)])
def test_a_disturbed_measurement_is_made_again_whichever_way_it_came_out(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: list[float], looks: int
) -> None:
    figures = iter([{**measurement(3.0).to_dict(), "dense_latency_ms": ms} for ms in dense])
    monkeypatch.setattr(bench, "command", lambda *a: SimpleNamespace(returncode=0, stdout=json.dumps(next(figures))))
    calm = Calm.of([{**measurement(3.0).to_dict(), "dense_latency_ms": 1.0}])
    measured, made = bench.undisturbed(tmp_path, tmp_path, calm)
    assert (measured.dense_latency_ms, made) == (dense[looks - 1], looks)


def test_an_export_that_is_refused_is_a_miss_that_says_why(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = SimpleNamespace(returncode=3, stdout="", stderr="error: no trial keeps the budget\n")
    monkeypatch.setattr(bench, "command", lambda *a: refused)
    monkeypatch.setattr(bench, "RunStore", SimpleNamespace(open=lambda run: store(tmp_path, SOME)))
    row = bench.answered("n", tmp_path / "run", Budget(latency_ms=0.3), tmp_path, SimpleNamespace())
    assert (row.within, row.accurate, row.trial, row.said) == (False, False, None, "error: no trial keeps the budget")
    with pytest.raises(UserError, match="ended with 3: error: no trial keeps the budget"):
        bench.searched("n", SimpleNamespace(to_yaml=lambda: ""), tmp_path, 2, SimpleNamespace(print=lambda *a: None))


def test_all_budgets_and_all_accuracies_decide(bench: Any) -> None:
    def row(within: bool, loss: float) -> Any:
        return bench.Row(
            network="n", asked="--speedup 2", within=within, accuracy_loss_pp=loss, trial=1, speedup=2.0,
            latency_ms=0.5, over=0.0, over_at_export=0.0, passed_over=0, said=None,
        )  # fmt: skip

    def claim(*rows: Any, quick: bool = False) -> Any:
        return bench.claim_of(rows, quick=quick, trials={"n": 4})

    good = claim(row(True, 0.0), row(True, 0.5))
    assert (good.figure, good.bar, good.holds) == (2, 2, True)
    assert not claim(row(True, 0.0), row(True, 0.51)).holds
    assert claim(row(True, 0.0), row(False, 0.0)).figure == 1
    assert not claim(row(True, 0.0), row(False, 0.0)).holds
    assert not claim(row(True, 0.0), quick=True).holds
    assert set(json.loads(good.to_json())) == {"claim", "figure", "unit", "bar", "holds", "details"}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "budgets.py"), *options],
        capture_output=True,
        text=True,
        timeout=850,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_options_that_do_not_fit_are_refused() -> None:
    for options, said in (
        (("--quick", "--record"), "full benchmark only"),
        (("--networks", "digits", "--record"), "full benchmark only"),
        (("--quick", "--networks", "mnist-turned"), "leave --networks out"),
    ):
        done = run(*options)
        assert done.returncode == 2
        assert said in done.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_a_search_and_four_budgets_through_the_commands() -> None:
    done = run("--quick")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["bar"], result["holds"]) == (4, False)  # a reduced form decides nothing
    rows = result["details"]["rows"]
    assert [row["asked"].split()[0] for row in rows] == ["--latency-ms", "--speedup"] * 2
    for row in rows:  # export hands over what kept the budget then, or says why it cannot; no time is judged here
        assert (row["trial"] is None) == (row["said"] is not None)
        assert row["trial"] is None or row["over_at_export"] <= 0.0
