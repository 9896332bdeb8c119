"""The running tally says what a look at all results would say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.front import front_results, status_counts
from search.result import STATUSES, Baseline, TrialResult
from search.sampler import Proposal
from search.tally import Tally
from tests.search.fabricated import SPACE, result_of

BASELINE = Baseline(accuracy=0.5, accuracy_stderr=0.01, latency_ms=1.0, macs=10, params=10, weights=10)
GRID = st.integers(1, 6).map(lambda i: i / 4)
OUTCOMES = st.tuples(
    st.sampled_from(STATUSES),
    st.integers(0, 4).map(lambda i: i / 4),
    GRID,
    st.sampled_from(["tpe", "final"]),
    st.sampled_from([None, 7]),
)


def _results(outcomes: list[Any]) -> dict[int, TrialResult]:
    plan = SPACE.plan(SPACE.uniform(0.5))
    results = {}
    for number, (status, accuracy, speedup, source, weights_of) in enumerate(outcomes):
        proposal = Proposal(number=number, params=SPACE.uniform(0.5), plan=plan, source=source)
        changes: dict[str, Any] = {"speedup": speedup, "speedup_low": speedup, "weights_of": weights_of}
        if status == "complete":
            changes["accuracy"] = accuracy
        results[number] = result_of(proposal, status, **changes)
    return results


@given(outcomes=st.lists(OUTCOMES, max_size=25), budget=st.sampled_from([None, Budget(speedup=1.0)]))
def test_it_counts_as_a_look_at_all_of_them_does(outcomes: list[Any], budget: Budget | None) -> None:
    results = _results(outcomes)
    tally = Tally(BASELINE, budget, results.values())
    for result in results.values():
        tally.add(result)  # once more: nothing is counted twice
    assert {status: tally.count(status) for status in STATUSES} == status_counts(results)
    assert tally.spent == sum(r.spent for r in results.values())
    assert tally.twins == sum(r.weights_of is not None for r in results.values())
    assert tally.finals == sum(r.source == "final" for r in results.values())
    assert tally.front == len(front_results(BASELINE, results))
    complete = [r for r in results.values() if r.status == "complete" and (budget is None or budget.holds(r))]
    assert tally.best == max(complete, key=lambda r: r.dominates_key[0], default=None)
