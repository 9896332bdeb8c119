from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pareto import front, hypervolume

Point = tuple[float, float]

# Few distinct values, so that ties in one coordinate and in both are common.
COARSE = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf, math.nan])
POINTS = st.lists(st.tuples(COARSE, COARSE) | st.tuples(st.floats(), st.floats()), max_size=40)
GRID = st.integers(-1, 6)
GRID_POINTS = st.lists(st.tuples(GRID, GRID), max_size=15)


def dominates(a: Point, b: Point) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and (a[0] > b[0] or a[1] < b[1])


def slow_front(points: list[Point]) -> list[int]:
    """The definition, in O(n^2)."""
    return [
        i
        for i, point in enumerate(points)
        if not any(math.isnan(x) for x in point)
        and not any(dominates(other, point) for other in points if not any(math.isnan(x) for x in other))
    ]


def unit_cells(points: list[tuple[int, int]], floor: int, ceiling: int) -> int:
    """Hypervolume of whole-number points: the unit squares that some point covers, counted."""
    return sum(
        any(accuracy >= a + 1 and latency <= t for accuracy, latency in points)
        for a, t in itertools.product(range(floor, 10), range(-5, ceiling))
    )


@given(POINTS)
def test_front_is_the_definition(points: list[Point]) -> None:
    assert front(points) == slow_front(points)


def test_front_agrees_with_the_definition_on_many_points() -> None:
    rng = np.random.default_rng(0)
    points = [(float(a), float(t)) for a, t in rng.integers(0, 60, size=(600, 2))]
    assert front(points) == slow_front(points)


def test_front_of_a_hundred_thousand_points_in_a_chain_keeps_them_all() -> None:
    points = [(i * 1e-5, 1.0 + i) for i in range(100_000)]
    assert front(points) == list(range(100_000))


def test_exact_ties_all_stay_and_nan_never_does() -> None:
    nan = math.nan
    assert front([(0.9, 1.0), (nan, 0.1), (0.9, 1.0), (1.0, nan), (0.9, 1.1), (0.8, 1.0)]) == [0, 2]
    assert front([]) == []
    assert front([(nan, nan)]) == []


@given(GRID_POINTS)
def test_hypervolume_is_the_covered_area(points: list[tuple[int, int]]) -> None:
    assert hypervolume(points, (0, 5)) == unit_cells(points, 0, 5)


@given(POINTS, st.tuples(COARSE, COARSE), st.floats(-2, 2), st.floats(-2, 2))
def test_a_point_more_never_makes_the_hypervolume_smaller(
    points: list[Point], more: Point, floor: float, ceiling: float
) -> None:
    before = hypervolume(points, (floor, ceiling))
    after = hypervolume([*points, more], (floor, ceiling))
    assert before >= 0.0
    assert after >= before * (1 - 1e-12)


@given(GRID_POINTS)
def test_only_the_front_carries_the_hypervolume(points: list[tuple[int, int]]) -> None:
    assert hypervolume([points[i] for i in front(points)], (0, 6)) == hypervolume(points, (0, 6))


def test_nan_adds_no_area() -> None:
    assert hypervolume([(math.nan, 1.0), (1.0, math.nan)], (0.0, 5.0)) == 0.0


@pytest.mark.parametrize("reference", [(math.nan, 1.0), (0.0, math.inf)])
def test_a_reference_that_is_not_finite_is_refused(reference: Point) -> None:
    with pytest.raises(ValueError, match="two finite numbers"):
        hypervolume([(1.0, 0.5)], reference)
