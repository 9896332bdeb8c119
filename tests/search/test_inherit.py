"""Whose weights a plan begins with: those of the nearest finished trial that removes no more anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admm.plan import PruningPlan
from search.inherit import Starts
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


def _starts(results: Iterable[TrialResult], has: Callable[[int], bool] = lambda number: True) -> Starts:
    starts = Starts(has)
    for result in results:
        starts.add(result)
    return starts


def _contains(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the first removes all that the second removes, and more, while the second removes anything at all."""
    return all(b <= a for a, b in zip(one, other, strict=True)) and one != other and any(other)


@given(steps=STEPS, known=st.lists(STEPS, max_size=100, unique=True), gone=st.sets(st.integers(0, 99)))
def test_the_nearest_one_with_its_weights_is_taken(
    steps: tuple[int, ...], known: list[tuple[int, ...]], gone: set[int]
) -> None:
    results = [_result(n, s, accuracy=0.9 - 0.001 * (n % 3)) for n, s in enumerate(known)]
    found = _starts(results, lambda number: number not in gone).nearest(_plan(steps))
    inside = [r for r, s in zip(results, known, strict=True) if _contains(steps, s) and r.number not in gone]
    expected = min(inside, key=lambda r: (r.macs or 0, -(r.accuracy or 0.0), r.number), default=None)
    assert found == expected


def test_layers_that_only_one_of_two_plans_names() -> None:
    other = PruningPlan({f"layer{i}": {"filter": 0.5} for i in range(40)})
    results = [
        replace(_result(0, (1, 0, 0)), requested={"conv1": {"filter": 0.25}}),
        replace(_result(1, (1, 0, 0)), requested=other.to_dict()),
    ]
    starts = _starts(results)
    assert starts.nearest(PruningPlan({"conv1": {"filter": 0.25}})) is None
    assert starts.nearest(PruningPlan({"conv1": {"filter": 0.25}, "new": {"shape": 0.1}})) == results[0]
    assert starts.nearest(PruningPlan({**other.to_dict(), "new": {"shape": 0.1}})) == results[1]
    assert starts.nearest(other) is None
    assert starts.nearest(PruningPlan()) is None


@pytest.mark.parametrize("status", ["stopped", "failed", "infeasible"])
def test_only_a_finished_trial_with_its_weights_is_one_to_begin_with(status: str) -> None:
    plan = _plan((2, 2, 2))
    whole = {0: _result(0, (1, 1, 1))}
    assert _starts(whole.values(), lambda number: False).nearest(plan) is None
    broken = result_of(Proposal(number=0, params={}, plan=_plan((1, 1, 1))), status)  # type: ignore[arg-type]
    assert _starts([broken]).nearest(plan) is None
    assert _starts(whole.values()).nearest(plan) == whole[0]


def test_a_plan_goes_on_from_where_it_was_trained_most() -> None:
    steps = (1, 2, 3)
    results = {n: _result(n, steps, stretch=s) for n, s in enumerate((1.0, 2.0, 3.0))}
    results[4] = _result(4, (1, 2, 2), stretch=2.9)

    def begun(stretch: float, has: frozenset[int] = frozenset(range(5))) -> int | None:
        found = _starts(results.values(), has.__contains__).same_plan(_plan(steps), stretch)
        return None if found is None else found.number

    assert [begun(1.0), begun(2.0), begun(3.0), begun(4.0)] == [None, 0, 1, 2]
    assert begun(3.0, frozenset({0, 2})) == 0
    assert begun(4.0, frozenset()) is None
    assert _starts(results.values()).twins(_plan(steps)) == (0, 1, 2)
