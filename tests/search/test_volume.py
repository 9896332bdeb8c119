"""The hypervolume in three dimensions against Optuna's, whatever the order that points come in."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from search.dominance import Figures, contenders, surely_dominates, tied
from search.objectives import Gain
from search.pareto import front
from search.volume import Area, Volume, covered

Point = tuple[float, float, float]
FLOOR = 0.5
# few values, so that ties in one figure and in all are common; some outside of what counts
COARSE = st.sampled_from([0.1, 0.25, 0.5, 0.8, 1.0, 1.3])
HEIGHT = st.sampled_from([0.3, 0.5, 0.6, 0.75, 0.9])
POINTS = st.lists(
    st.tuples(HEIGHT, COARSE, COARSE)
    | st.tuples(st.floats(0.4, 1.0), st.floats(0.01, 1.2), st.floats(0.01, 1.2)),
    max_size=14,
)  # fmt: skip


def _reference(points: list[Point]) -> float:
    losses = [(-a, math.log(s), math.log(t)) for a, s, t in points if a > FLOOR and s < 1.0 and t < 1.0]
    return float(compute_hypervolume(np.asarray(losses), np.asarray([-FLOOR, 0.0, 0.0]))) if losses else 0.0


@settings(deadline=None, max_examples=150)
@given(POINTS, st.randoms(use_true_random=False))
def test_a_volume_is_optuna_s_and_gains_add_up_to_it(points: list[Point], rng: random.Random) -> None:
    volume = Volume(FLOOR)
    gained = 0.0
    for point in points:
        asked = volume.gain(*point)
        assert asked >= 0.0
        assert volume.add(*point) == asked
        assert volume.gain(*point) == pytest.approx(0.0, abs=1e-12)
        gained += asked
    assert volume.value == pytest.approx(gained)
    assert volume.value == pytest.approx(_reference(points), rel=1e-9, abs=1e-12)
    other, shuffled = Volume(FLOOR), list(points)
    rng.shuffle(shuffled)
    for point in shuffled:
        other.add(*point)
    assert other.value == pytest.approx(volume.value)


@given(POINTS)
def test_with_a_cost_that_is_constant_it_is_an_area_times_a_constant(points: list[Point]) -> None:
    volume, area = Volume(FLOOR), Area(FLOOR)
    for accuracy, cost, _ in points:
        volume.add(accuracy, cost, math.exp(-2.0))
        area.add(accuracy, cost)
    assert volume.value == pytest.approx(2.0 * area.value)


@pytest.mark.parametrize("wrong", [math.nan, 0.0, -1.0, math.inf, 1.0, 1.5])
def test_a_cost_outside_or_no_number_adds_nothing(wrong: float) -> None:
    volume = Volume(FLOOR)
    assert [volume.add(0.9, wrong, 0.5), volume.add(0.9, 0.5, wrong), volume.add(math.nan, 0.5, 0.5)] == [0.0] * 3
    assert volume.value == 0.0


def test_only_one_or_two_costs_are_covered() -> None:
    assert isinstance(covered(FLOOR, 1), Area)
    assert isinstance(covered(FLOOR, 2), Volume)
    with pytest.raises(ValueError, match="one or two costs beside accuracy, got 3"):
        covered(FLOOR, 3)


WITH_NAN = st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, math.nan])


@settings(deadline=None)
@given(st.lists(st.tuples(WITH_NAN, WITH_NAN, WITH_NAN), max_size=25))
def test_the_front_of_three_figures_is_the_definition(points: list[Point]) -> None:
    def dominates(a: Point, b: Point) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2] and a != b

    known = [i for i, p in enumerate(points) if not any(map(math.isnan, p))]
    slow = [i for i in known if not any(dominates(points[j], points[i]) for j in known)]
    assert front(points) == slow


@st.composite
def _figures(draw: st.DrawFn) -> Figures:
    speedup, other = draw(st.sampled_from([1.0, 1.5, 2.0])), draw(st.sampled_from([1.0, 1.5, 2.0]))
    spread = draw(st.sampled_from([0.0, 0.1, 0.3]))
    return Figures(
        accuracy=draw(st.sampled_from([0.7, 0.8, 0.9, math.nan])),
        accuracy_stderr=draw(st.sampled_from([0.0, 0.03])),
        speedup=speedup,
        speedup_low=speedup * (1 - spread),
        speedup_high=speedup * (1 + spread),
        others=(Gain(value=other, low=other * (1 - spread), high=other * (1 + spread)),),
    )


@settings(deadline=None)
@given(st.lists(_figures(), max_size=15))
def test_contenders_of_three_figures_are_the_definition(trials: list[Figures]) -> None:
    known = [i for i, t in enumerate(trials) if not math.isnan(t.accuracy)]
    left = [i for i in known if not any(surely_dominates(trials[j], trials[i]) for j in known)]
    assert contenders(trials) == left
    assert set(front([t.point for t in trials])) <= set(left)


def test_a_third_figure_tells_two_apart_that_were_tied() -> None:
    alike = {"accuracy": 0.9, "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
    small, large = (Figures(**alike, others=(Gain(value=size),)) for size in (4.0, 2.0))
    assert tied(Figures(**alike), Figures(**alike))
    assert not tied(small, large)
    assert surely_dominates(small, large)
    assert not surely_dominates(large, small)
