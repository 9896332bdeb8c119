"""Early stopping for two objectives: the layers against a slow oracle, and the board's verdicts."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from search.result import TrialResult
from search.rungs import ENOUGH, KEEP, RungBoard, RungScheduler, layers, rung_iterations

#: Few values, so that ties and equal points are common; NaN on either side.
VALUES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan])
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=14)
RUNG = 3


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


def _layers_oracle(points: list[tuple[float, float]]) -> list[int]:
    """Peel off the non-dominated points, comparing every pair; what holds a NaN comes last, all together."""
    rank = [-1] * len(points)
    whole = [i for i, p in enumerate(points) if not (math.isnan(p[0]) or math.isnan(p[1]))]
    layer = 0
    while any(rank[i] < 0 for i in whole):
        left = [i for i in whole if rank[i] < 0]
        for i in [i for i in left if not any(_dominates(points[j], points[i]) for j in left)]:
            rank[i] = layer
        layer += 1
    return [layer if r < 0 else r for r in rank]


@settings(deadline=None, max_examples=300)
@given(POINTS)
def test_layers_equal_the_slow_oracle_with_nan_and_ties(points: list[tuple[float, float]]) -> None:
    assert layers(points) == _layers_oracle(points)


@settings(deadline=None)
@given(POINTS, st.randoms(use_true_random=False))
def test_layers_do_not_depend_on_the_order(points: list[tuple[float, float]], rng: random.Random) -> None:
    order = list(range(len(points)))
    rng.shuffle(order)
    ranks = layers(points)
    assert layers([points[i] for i in order]) == [ranks[i] for i in order]


def test_many_points_in_one_chain() -> None:
    chain = [(i / 500, -i / 500) for i in range(500)]
    assert layers(chain) == list(range(499, -1, -1))
    assert layers([]) == []


@settings(deadline=None)
@given(st.integers(1, 200))
def test_rungs_are_iterations_of_the_run(iterations: int) -> None:
    rungs = rung_iterations(iterations)
    assert rungs == tuple(sorted(set(rungs)))
    assert rungs[-1] == iterations
    assert 0 <= 3 * rungs[0] - 2 * iterations < 3, "two thirds of the way, rounded up"
    assert all(1 <= rung <= iterations for rung in rungs)


def _board(**points: tuple[float, float]) -> RungBoard:
    """A board whose rung has seen these trials, in order."""
    board = RungBoard((RUNG, 2 * RUNG))
    for number, point in enumerate(points.values()):
        board.verdict(number, RUNG, *point)
    return board


def _filled(count: int) -> RungBoard:
    """`count` trials on one front: none is better than another."""
    return _board(**{f"t{i}": (0.5 + i / 100, 1.0 + i / 100) for i in range(count)})


def test_nothing_is_stopped_before_enough_trials_were_seen() -> None:
    board = _filled(max(ENOUGH - 2, 0))
    assert board.verdict(900, RUNG, 0.0, 99.0) is None
    assert board.stopped == {}


def test_what_all_others_dominate_is_stopped_and_says_why() -> None:
    board = _filled(ENOUGH)
    reason = board.verdict(900, RUNG, 0.123, 99.0)
    assert reason is not None
    assert str(RUNG) in reason
    assert "0.123" in reason
    assert "\n" not in reason
    assert board.stopped == {900: reason}


def test_a_nan_is_stopped_like_the_worst() -> None:
    assert _filled(ENOUGH).verdict(900, RUNG, math.nan, 0.1) is not None


def test_a_trial_on_the_front_is_never_stopped() -> None:
    board = _filled(3 * ENOUGH)
    assert board.stopped == {}
    assert board.verdict(900, RUNG, 0.99, 50.0) is None
    assert board.verdict(901, RUNG, 0.01, 0.01) is None


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(VALUES, st.sampled_from([0.5, 1.0, 2.0])), min_size=1, max_size=20))
def test_verdicts_follow_the_share_of_better_layers(points: list[tuple[float, float]]) -> None:
    board = RungBoard((RUNG,))
    for number, point in enumerate(points):
        reason = board.verdict(number, RUNG, *point)
        ranks = _layers_oracle(points[: number + 1])
        better = sum(rank < ranks[number] for rank in ranks)
        if number + 1 < ENOUGH or better == 0:
            assert reason is None
        if reason is not None:
            assert better >= KEEP * (number + 1)
        assert (number in board.stopped) == (reason is not None)


def test_a_rung_reported_twice_counts_once() -> None:
    board = _filled(ENOUGH - 1)
    for _ in range(5):  # a trial that goes on from its checkpoint may report its rung again
        board.verdict(0, RUNG, 0.5, 1.0)
    assert len(board.points[RUNG]) == ENOUGH - 1


def test_iterations_that_are_no_rung_are_passed_over() -> None:
    board = _filled(2 * ENOUGH)
    assert board.verdict(900, RUNG + 1, 0.0, 99.0) is None
    assert 900 not in board.points.get(RUNG + 1, {})


def _result(number: int, **values: Any) -> TrialResult:
    return TrialResult(number=number, status="stopped", plan_digest="d", seed=0, reason="dominated", **values)


def test_old_results_fill_the_board() -> None:
    board = RungBoard((RUNG, 2 * RUNG))
    results = {i: _result(i, speedup=1.0 / 2**i, rungs=((1, 0.1), (RUNG, 0.5 + i / 100))) for i in range(ENOUGH)}
    board.fill({**results, 90: _result(90, rungs=((RUNG, 0.9),)), 91: _result(91, speedup=1.0)})
    assert board.points == {RUNG: {i: (0.5 + i / 100, 2.0**i) for i in range(ENOUGH)}}
    live = RungBoard((RUNG, 2 * RUNG))
    for i in range(ENOUGH):
        live.verdict(i, RUNG, 0.5 + i / 100, 2.0**i)
    assert board.verdict(900, RUNG, 0.0, 99.0) == live.verdict(900, RUNG, 0.0, 99.0)


@pytest.mark.parametrize(
    ("report", "stops"),
    [
        ({"rung": RUNG, "rung_accuracy": 0.0, "rung_costs": [99.0]}, True),
        ({"rung": RUNG, "rung_accuracy": 0.99, "rung_costs": [0.1]}, False),
        ({"rung": None, "rung_accuracy": None, "rung_costs": [99.0]}, False),
        ({"rung": RUNG, "rung_accuracy": 0.0, "rung_costs": None}, False),
        ({"rung": RUNG, "rung_accuracy": 0.0, "rung_costs": [99.0], "done": True}, False),
        ({}, False),
    ],
)
def test_the_scheduler_passes_reports_to_the_board(report: dict[str, Any], stops: bool) -> None:
    board = _filled(ENOUGH)
    scheduler = RungScheduler(board)
    decision = scheduler.on_trial_result(SimpleNamespace(), SimpleNamespace(), {"number": 900, **report})
    assert decision == (TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)
    assert (900 in board.stopped) == stops
