"""Whose weights a plan begins with: those of the nearest finished trial that removes no more anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admm.plan import PruningPlan
from search.inherit import contains, nearest_start, same_plan
from search.result import TrialResult
from search.sampler import Proposal
from tests.search.fabricated import SPACE, result_of

NAMES = [d.name for d in SPACE.dimensions]
STEPS = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4))


def _plan(steps: tuple[int, ...]) -> PruningPlan:
    return SPACE.plan(dict(zip(NAMES, steps, strict=True)))


def _result(number: int, steps: tuple[int, ...], **changes: object) -> TrialResult:
    params = dict(zip(NAMES, steps, strict=True))
    macs = 1000 - 10 * sum(steps)
    return result_of(Proposal(number=number, params=params, plan=_plan(steps)), macs=macs, **changes)


@given(one=STEPS, other=STEPS)
def test_a_plan_contains_what_removes_no_more_anywhere_and_less_somewhere(
    one: tuple[int, ...], other: tuple[int, ...]
) -> None:
    expected = all(b <= a for a, b in zip(one, other, strict=True)) and one != other and any(other)
    assert contains(_plan(one), _plan(other).to_dict()) is expected


@given(steps=STEPS, known=st.lists(STEPS, max_size=12, unique=True))
def test_the_nearest_one_is_taken(steps: tuple[int, ...], known: list[tuple[int, ...]]) -> None:
    results = {n: _result(n, s) for n, s in enumerate(known)}
    start = nearest_start(_plan(steps), results, lambda number: True)
    inside = [sum(s) for s in known if contains(_plan(steps), _plan(s).to_dict())]
    assert (start is None) == (not inside)
    if start is not None:
        assert sum(known[start.number]) == max(inside)
        assert contains(_plan(steps), start.requested)


@pytest.mark.parametrize("status", ["stopped", "failed", "infeasible"])
def test_only_a_finished_trial_with_its_weights_is_one_to_begin_with(status: str) -> None:
    plan = _plan((2, 2, 2))
    whole = {0: _result(0, (1, 1, 1))}
    assert nearest_start(plan, whole, lambda number: False) is None
    broken = result_of(Proposal(number=0, params={}, plan=_plan((1, 1, 1))), status)  # type: ignore[arg-type]
    assert nearest_start(plan, {0: broken}, lambda number: True) is None
    assert nearest_start(plan, whole, lambda number: True) == whole[0]


def test_a_plan_goes_on_from_where_it_was_trained_most() -> None:
    steps = (1, 2, 3)
    results = {n: _result(n, steps, stretch=s) for n, s in enumerate((1.0, 2.0, 3.0))}
    results[4] = _result(4, (1, 2, 2), stretch=2.9)

    def begun(stretch: float, has: frozenset[int] = frozenset(range(5))) -> int | None:
        found = same_plan(_plan(steps), stretch, results, has.__contains__)
        return None if found is None else found.number

    assert [begun(1.0), begun(2.0), begun(3.0), begun(4.0)] == [None, 0, 1, 2]
    assert begun(3.0, frozenset({0, 2})) == 0
    assert begun(4.0, frozenset()) is None
