"""What is trained for longer in the end: the front of the search's own schedule, within the budget."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.finals import final_plans
from search.front import front_results
from search.result import Baseline, TrialResult
from search.sampler import Proposal
from tests.search.fabricated import SPACE, result_of

BASELINE = Baseline(accuracy=1.0, accuracy_stderr=0.0, latency_ms=1.0, macs=1, params=1, weights=1)


def _results(steps: list[tuple[int, int, int]]) -> dict[int, TrialResult]:
    names = [d.name for d in SPACE.dimensions]
    results = {}
    for number, chosen in enumerate(steps):
        params = dict(zip(names, chosen, strict=True))
        results[number] = result_of(Proposal(number=number, params=params, plan=SPACE.plan(params)))
    return results


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20)


@given(steps=STEPS, most=st.integers(1, 6), speedup=st.sampled_from([None, 1.1, 1.5]))
def test_they_are_spread_over_the_front_within_the_budget(
    steps: list[tuple[int, int, int]], most: int, speedup: float | None
) -> None:
    results = _results(steps)
    budget = Budget(speedup=speedup) if speedup is not None else None
    chosen = final_plans(BASELINE, results, budget=budget, most=most)
    fitting = {n: r for n, r in results.items() if budget is None or budget.holds(r)}
    whole = front_results(BASELINE, fitting)
    assert len(chosen) == min(most, len(whole)) == len({r.number for r in chosen})
    assert all(r in whole for r in chosen)
    assert chosen[:1] == whole[:1]  # the most accurate one
    # what was trained for longer meanwhile changes nothing
    longer = {n + 1000: replace(r, number=n + 1000, source="final", accuracy=1.5) for n, r in results.items()}
    assert final_plans(BASELINE, results | longer, budget=budget, most=most) == chosen
