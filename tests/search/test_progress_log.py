"""Hypervolume and best accuracy after each trial: against the area computed anew, and never falling."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.pareto import hypervolume
from search.progress_log import Progress, log_hypervolume, progress
from search.result import Baseline, Status, TrialResult
from search.volume import Area

COARSE = st.sampled_from([-0.1, 0.0, 0.2, 0.5, 0.8, 1.0, 1.5, math.nan, math.inf])
POINTS = st.lists(st.tuples(COARSE | st.floats(0.0, 1.0), COARSE | st.floats(0.001, 2.0)), max_size=30)
BASELINE = Baseline(accuracy=0.9, accuracy_stderr=0.0, latency_ms=1.0, macs=1, params=1, weights=1)


def _result(number: int, accuracy: float, speedup: float, status: Status = "complete", **more: Any) -> TrialResult:
    values: dict[str, Any] = {"epochs": 2.0, "compression_x": 1.0, "macs": 1, "params": 1, "latency_ms": 1.0 / speedup}
    values |= {"speedup": speedup, "speedup_low": speedup, "latency_high_ms": 1.0 / speedup, "accuracy": accuracy}
    if status != "complete":
        values["reason"] = "made up"
    return TrialResult(number=number, status=status, plan_digest=str(number), seed=0, **(values | more))


@given(POINTS, st.floats(0.0, 0.9))
def test_an_area_grown_by_points_is_the_hypervolume(points: list[tuple[float, float]], floor: float) -> None:
    area = Area(floor)
    for i, (accuracy, latency) in enumerate(points):
        before = area.value
        offered = area.gain(accuracy, latency)
        assert area.value == before
        assert area.add(accuracy, latency) == offered >= 0.0
        usable = [(a, math.log(t)) for a, t in points[: i + 1] if t > 0.0 and a < math.inf]
        assert area.value == pytest.approx(hypervolume(usable, (floor, 0.0)), abs=1e-9)


@given(st.permutations([(0.95, 0.5), (0.9, 0.25), (0.9, 0.5), (0.8, 0.2), (0.99, 0.9), (0.95, 0.5)]))
def test_the_area_does_not_hang_on_the_order(points: list[tuple[float, float]]) -> None:
    area = Area(0.7)
    assert sum(area.add(*point) for point in points) == pytest.approx(area.value)
    assert area.value == pytest.approx(hypervolume([(a, math.log(t)) for a, t in points], (0.7, 0.0)))


def test_one_trial_adds_its_rectangle() -> None:
    """One point below dense at twice the speed: (0.88 - 0.87) ln 2; beyond three points nothing counts."""
    assert log_hypervolume({0: _result(0, 0.88, 2.0)}, BASELINE) == pytest.approx(0.01 * math.log(2.0))
    assert log_hypervolume({0: _result(0, 0.87, 2.0), 1: _result(1, 0.9, 1.0)}, BASELINE) == 0.0
    assert log_hypervolume({}, BASELINE) == 0.0


def test_rows_follow_the_numbers_and_count_every_epoch() -> None:
    budget = Budget(speedup=1.5)
    results = {
        7: _result(7, 0.89, 2.0),
        1: _result(1, 0.9, 1.2),
        4: _result(4, 0.95, 1.0, "infeasible", epochs=0.0),
        2: _result(2, 0.5, 3.0, "stopped", epochs=0.5),
    }
    rows = progress(results, BASELINE, budget)
    assert [row.trial for row in rows] == [1, 2, 4, 7]
    assert [row.epochs for row in rows] == [2.0, 2.5, 2.5, 4.5]
    assert [row.best_accuracy for row in rows] == [None, None, None, 0.89]
    assert rows[0].hypervolume == rows[2].hypervolume == pytest.approx(0.03 * math.log(1.2))
    assert rows[3].hypervolume == pytest.approx(0.03 * math.log(1.2) + 0.02 * (math.log(2.0) - math.log(1.2)))
    assert progress(results, BASELINE)[0] == Progress(1, 2.0, rows[0].hypervolume, 0.9)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.1, 9.0)), max_size=20))
def test_nothing_in_the_rows_ever_falls(points: list[tuple[float, float]]) -> None:
    rows = progress({i: _result(i, a, s) for i, (a, s) in enumerate(points)}, BASELINE)
    for before, after in itertools.pairwise(rows):
        assert after.epochs > before.epochs
        assert after.hypervolume >= before.hypervolume
        assert (after.best_accuracy or 0.0) >= (before.best_accuracy or 0.0)
