"""Dominance under noise against its definition, with ties, missing errors and figures that are no numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.dominance import (
    Figures,
    contenders,
    surely_dominates,
    surely_faster,
    surely_more_accurate,
    tied,
    tied_with,
)
from search.pareto import front
from search.sampler import Proposal
from tests.search.fabricated import SPACE, result_of

ACCURACIES = st.sampled_from([0.0, 0.5, 0.9, 0.905, 0.91, 1.0, math.nan]) | st.floats(0.0, 1.0)
ERRORS = st.sampled_from([0.0, 0.001, 0.01, 0.2])
SPEEDS = st.sampled_from([0.5, 1.0, 1.01, 2.0, 8.0]) | st.floats(0.1, 20.0)


@st.composite
def figures(draw: st.DrawFn) -> Figures:
    speedup, width = draw(SPEEDS), draw(st.sampled_from([1.0, 1.02, 1.5]))
    return Figures(
        accuracy=draw(ACCURACIES),
        accuracy_stderr=draw(ERRORS),
        speedup=speedup,
        speedup_low=speedup / width,
        speedup_high=speedup * width,
    )


MANY = st.lists(figures(), max_size=25)


@given(MANY)
def test_contenders_are_the_definition(trials: list[Figures]) -> None:
    known = [t for t in trials if not math.isnan(t.accuracy)]
    expected = [
        i for i, t in enumerate(trials) if not math.isnan(t.accuracy) and not any(surely_dominates(o, t) for o in known)
    ]
    assert contenders(trials) == expected


@given(MANY)
def test_the_front_always_stands_among_the_contenders(trials: list[Figures]) -> None:
    assert set(front([t.point for t in trials])) <= set(contenders(trials))


@given(MANY)
def test_without_noise_the_contenders_are_the_front(trials: list[Figures]) -> None:
    exact = [Figures(accuracy=t.accuracy, speedup=t.speedup) for t in trials]
    assert contenders(exact) == front([t.point for t in exact])


@given(figures(), figures())
def test_who_dominates_is_not_dominated_and_not_tied(a: Figures, b: Figures) -> None:
    assert not surely_dominates(a, a)
    assert not (surely_dominates(a, b) and surely_dominates(b, a))
    assert not (surely_dominates(a, b) and tied(a, b))
    assert tied(a, b) == tied(b, a)
    assert tied(a, a)


def test_more_than_two_standard_errors_tell_accuracies_apart() -> None:
    a = Figures(accuracy=0.9, accuracy_stderr=0.003, speedup=2.0)
    assert surely_more_accurate(a, Figures(accuracy=0.8899, accuracy_stderr=0.004, speedup=2.0))
    assert not surely_more_accurate(a, Figures(accuracy=0.8901, accuracy_stderr=0.004, speedup=2.0))


def test_intervals_that_touch_do_not_tell_speeds_apart() -> None:
    slow = Figures(accuracy=0.9, speedup=2.0, speedup_low=1.9, speedup_high=2.1)
    assert not surely_faster(Figures(accuracy=0.9, speedup=2.2, speedup_low=2.1, speedup_high=2.3), slow)
    assert surely_faster(Figures(accuracy=0.9, speedup=2.2, speedup_low=2.11, speedup_high=2.3), slow)


def test_faster_but_perhaps_less_accurate_does_not_dominate() -> None:
    accurate = Figures(accuracy=0.9, accuracy_stderr=0.01, speedup=2.0)
    faster = Figures(accuracy=0.899, accuracy_stderr=0.01, speedup=3.0)
    assert not surely_dominates(faster, accurate)
    assert contenders([accurate, faster]) == [0, 1]


@pytest.mark.parametrize("error", [-1.0, math.nan, math.inf])
def test_errors_that_are_no_numbers_count_as_none(error: float) -> None:
    odd = Figures(accuracy=0.9, accuracy_stderr=error, speedup=2.0, speedup_low=error, speedup_high=error)
    assert odd == Figures(accuracy=0.9, speedup=2.0)


def _proposal(number: int = 3) -> Proposal:
    params = SPACE.uniform(0.5)
    return Proposal(number=number, params=params, plan=SPACE.plan(params))


def test_figures_of_a_result_take_the_deciding_rig_s_interval() -> None:
    result = result_of(
        _proposal(),
        speedup=2.0,
        speedup_low=1.6,
        accuracy_stderr=0.01,
        measurements={"cuda": {"speedup": 9.0, "speedup_high": 9.9}, "cpu": {"speedup": 2.0, "speedup_high": 2.3}},
    )
    found = Figures.of(result)
    assert found is not None
    assert (found.speedup_low, found.speedup_high, found.accuracy_stderr) == (1.6, 2.3, 0.01)
    bare = Figures.of(result_of(_proposal(), speedup=2.0, speedup_low=1.6))
    assert bare is not None
    assert bare.speedup_high == pytest.approx(2.5)
    assert Figures.of(result_of(_proposal(), "failed")) is None
    assert Figures.of(result_of(_proposal(), speedup=0.0)) is None


def test_the_table_says_who_cannot_be_told_apart() -> None:
    best = {1: Figures(accuracy=0.9, accuracy_stderr=0.01, speedup=2.0), 4: Figures(accuracy=0.5, speedup=4.0)}
    others = {2: Figures(accuracy=0.895, accuracy_stderr=0.01, speedup=2.0), 3: Figures(accuracy=0.4, speedup=4.0)}
    assert tied_with(best, others) == {1: [2], 4: []}
