"""The budget: compared with the pessimistic end, on its rig, and never with a NaN."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.measurement import DeviceStamp, Measurement
from search.budget import Budget
from search.result import TrialResult

FIGURES = st.floats(1e-3, 1e3)
STAMP = DeviceStamp(
    rig="onnxruntime-cpu",
    device="a processor",
    isa="avx512",
    runtime="onnxruntime 1.31.1",
    provider="CPUExecutionProvider",
    threads=1,
    batch=1,
    clock="thread_cpu",
    platform="linux",
)
MEASURED = Measurement(
    latency_ms=0.5,
    latency_low_ms=0.45,
    latency_high_ms=0.55,
    dense_latency_ms=1.0,
    speedup=2.0,
    speedup_low=1.9,
    speedup_high=2.1,
    wall_p50_ms=0.5,
    wall_p95_ms=0.6,
    wall_min_ms=0.45,
    pairs=9,
    rejected=0,
    converged=True,
    seconds=0.1,
    stamp=STAMP,
)
COMPLETE = TrialResult(
    number=0,
    status="complete",
    plan_digest="d",
    seed=0,
    accuracy=0.9,
    latency_ms=0.5,
    latency_high_ms=0.55,
    speedup=2.0,
    speedup_low=1.9,
    compression_x=2.0,
    macs=1,
    params=1,
)


def test_the_pessimistic_end_decides() -> None:
    assert Budget(latency_ms=0.55).met_by(MEASURED)
    assert not Budget(latency_ms=0.5).met_by(MEASURED)  # the median would keep it, the interval does not
    assert Budget(speedup=1.9).met_by(MEASURED)
    assert not Budget(speedup=2.0).met_by(MEASURED)


def test_a_result_is_judged_as_its_measurement_was() -> None:
    for budget in (Budget(latency_ms=0.55), Budget(latency_ms=0.5), Budget(speedup=1.9), Budget(speedup=2.0)):
        assert budget.holds(COMPLETE) == budget.met_by(MEASURED)
    assert not Budget(latency_ms=9.0).holds(replace(COMPLETE, latency_high_ms=None))
    assert not Budget(speedup=0.1).holds(replace(COMPLETE, speedup_low=None))


@settings(deadline=None)
@given(asked=FIGURES, high=FIGURES, low=FIGURES)
def test_excess_is_relative_and_agrees_with_the_verdict(asked: float, high: float, low: float) -> None:
    latency, speedup = Budget(latency_ms=asked), Budget(speedup=asked)
    assert (latency.excess(high, low) <= 0.0) == (high / asked <= 1.0)
    assert latency.excess(high, low) == pytest.approx((high - asked) / asked, abs=1e-9)
    assert (speedup.excess(high, low) <= 0.0) == (asked / low <= 1.0)
    assert latency.excess(2 * high, low) > latency.excess(high, low)
    assert speedup.excess(high, low / 2) > speedup.excess(high, low)


@pytest.mark.parametrize("figure", [math.nan, math.inf, 0.0, -1.0])
def test_impossible_figures_are_never_within_and_never_nan(figure: float) -> None:
    for excess in (Budget(latency_ms=1.0).excess(figure, 2.0), Budget(speedup=2.0).excess(1.0, figure)):
        assert not math.isnan(excess)
    assert Budget(speedup=2.0).excess(1.0, figure) > 0.0 or figure == math.inf
    assert Budget(latency_ms=1.0).excess(math.nan, 2.0) == math.inf
    assert not Budget(speedup=2.0).holds(replace(COMPLETE, speedup_low=math.nan))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"latency_ms": 1.0, "speedup": 2.0},
        {"latency_ms": 0.0},
        {"latency_ms": -1.0},
        {"speedup": math.nan},
        {"speedup": math.inf},
    ],
)
def test_a_budget_is_one_positive_number(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a budget is"):
        Budget(**values)


def test_it_reads_as_it_was_asked() -> None:
    assert str(Budget(latency_ms=0.25)) == "0.25 ms on onnxruntime-cpu"
    assert str(Budget(speedup=3.0, rig="cuda")) == "3x on cuda"
    assert Budget(latency_ms=0.25).latency_line(1.0) == 0.25
    assert Budget(speedup=4.0).latency_line(1.0) == 0.25
