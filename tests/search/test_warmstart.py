"""The first plans of a job: ladders of budgets, what is kept of a run, and what is said where there are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import warmstart
from search.bench import Prepared
from search.budgeted_plans import Budgeted
from search.forecast import make_forecast
from search.job import Job
from search.ladder import WarmPlan
from search.warmstart import BUDGETED, asked_speedup, budgeted_speedups, first_plans, ladder_budgets
from tests.search import test_forecast

prepared = test_forecast.prepared


def changed(prepared: Prepared, **changes: Any) -> Prepared:
    values = {**prepared.job.model_dump(), **changes}
    return replace(prepared, job=Job.model_validate(values))


@given(
    reach=st.floats(-0.1, 3.0),
    asked=st.none() | st.floats(0.5, 40.0),
    count=st.integers(1, 12),
)
def test_budgets_lie_in_the_range_and_near_what_is_asked(reach: float, asked: float | None, count: int) -> None:
    fastest = 10.0**reach
    budgets = ladder_budgets(fastest, asked, count)
    assert len(budgets) <= count
    assert budgets == sorted(set(budgets))
    assert all(1.0 < b <= fastest for b in budgets)
    if asked is None and fastest > 1.001:
        assert len(budgets) == count
        assert budgets[-1] == fastest
    if asked is not None and 1.001 < asked < 0.99 * fastest and count >= 4:
        assert min(abs(b / asked - 1.0) for b in budgets) < 1e-4
        near = [b for b in budgets if asked * 0.999 <= b <= asked * 1.11]
        assert len(near) >= min(2, len(budgets))
        assert any(b < asked * 0.999 for b in budgets) or count < 5 or asked < 1.01


def test_the_whole_way_on_a_small_job(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = first_plans(prepared, folder=tmp_path, dense_latency_ms=2.0, say=said.append)
    assert {"forecast.json", "sensitivity.json"} <= {p.name for p in tmp_path.iterdir()}
    assert found.epochs > 0.0
    assert found.notes == ()
    assert found.plans
    assert found.forecast is not None
    # the job asks for 1.1x: what keeps that comes first, the slower ones after
    first = found.plans[0]
    assert first.safe_speedup >= 1.1 * (1.0 - 1e-6)
    within = [p.safe_speedup for p in found.plans if p.safe_speedup >= 1.1 * (1.0 - 1e-6)]
    assert within == sorted(within)
    assert [p.safe_speedup for p in found.plans][: len(within)] == within
    space = prepared.profile.space
    for params in found.params:
        assert space.params(space.plan(params)) == params
        assert any(params.values())
    assert len({tuple(p.items()) for p in found.params}) == len(found.params)
    json.dumps(found.to_dict(), allow_nan=False)
    assert {p.source for p in found.plans} <= {"warm start", BUDGETED}
    # a second start measures nothing and says the same
    said.clear()
    monkeypatch.setattr("search.sensitivity._pruned", None)
    again = first_plans(prepared, folder=tmp_path, dense_latency_ms=2.0, say=said.append)
    assert said == ["finding the first plans"]
    assert (again.plans, again.epochs) == (found.plans, found.epochs)


def test_the_budgeted_projection_is_sure_of_what_it_was_asked(prepared: Prepared) -> None:
    made, _ = make_forecast(prepared)
    assert made is not None
    budgeted, space = Budgeted(prepared, made), prepared.profile.space
    last = 1.0
    for speedup in (1.05, 1.2, 1.5):
        steps = budgeted.steps(speedup)
        assert steps is not None
        assert space.params(space.plan(steps)) == dict(steps)
        assert made.safe_speedup(steps) >= speedup
        assert made.safe_speedup(steps) >= last  # more asked for is more given
        last = made.safe_speedup(steps)
    assert budgeted.steps(1e6) is None
    patterns = changed(prepared, structures=["n:m"])
    assert Budgeted(patterns, made).steps(1.2) is None  # there is nothing to allocate


@given(reach=st.floats(0.01, 3.0), asked=st.none() | st.floats(0.5, 40.0), count=st.integers(0, 4))
def test_the_budgeted_projection_is_asked_for_the_budget(reach: float, asked: float | None, count: int) -> None:
    fastest = 10.0**reach
    speedups = budgeted_speedups(fastest, asked, count)
    assert len(speedups) <= count
    assert all(1.0 < s <= fastest for s in speedups)
    if asked is not None and 1.001 < asked < fastest and count:
        assert speedups[0] == pytest.approx(asked)
    assert budgeted_speedups(0.9, asked, count) == []


def test_without_a_forecast_nothing_is_spent(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmstart, "measure_sensitivity", None)
    found = first_plans(changed(prepared, quantize="int8"), folder=None, dense_latency_ms=1.0)
    assert (found.plans, found.params, found.epochs) == ((), [], 0.0)
    (note,) = found.notes
    assert note.startswith("no forecast of latency: files are quantised to int8")
    assert note.endswith(": the search starts without plans of its own")


def test_a_budget_beyond_the_forecast_is_said(prepared: Prepared) -> None:
    found = first_plans(changed(prepared, budget={"speedup": 500.0}), folder=None, dense_latency_ms=1.0)
    (note,) = found.notes
    assert note.startswith("the forecast is sure of ")
    assert note.endswith("500x is asked: the plans go as far as they can")
    assert found.plans, "the rig decides, not the forecast"


def test_the_budget_as_a_speed_up(prepared: Prepared) -> None:
    assert asked_speedup(prepared, 2.0) == (1.1, ())
    assert asked_speedup(changed(prepared, budget={"latency_ms": 0.5}), 2.0) == (4.0, ())
    assert asked_speedup(changed(prepared, budget=None), 2.0) == (None, ())
    rigs = [{"name": "onnxruntime-cpu"}, {"name": "onnxruntime-cuda"}]
    asked, (note,) = asked_speedup(
        changed(prepared, rigs=rigs, budget={"speedup": 2.0, "rig": "onnxruntime-cuda"}), 2.0
    )
    assert asked is None
    assert note.startswith("the budget is for onnxruntime-cuda, latency is forecast on onnxruntime-cpu")


def plan(safe: float, **params: int) -> WarmPlan:
    return WarmPlan(params=params, asked=safe, speedup=safe, safe_speedup=safe, damage=safe)


@pytest.mark.parametrize(("asked", "order"), [(2.0, [2.0, 3.0, 1.5]), (None, [2.0, 1.5, 3.0]), (9.0, [3.0, 2.0, 1.5])])
def test_what_is_tried_first(asked: float | None, order: list[float]) -> None:
    plans = [plan(1.5, a=1), plan(2.0, a=2), plan(2.0, a=2), plan(3.0, a=3)]
    assert [p.safe_speedup for p in warmstart._in_order(plans, asked)] == order
    assert warmstart._in_order([], asked) == ()
