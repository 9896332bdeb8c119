"""Which plans are trained once more when the search is over: the front, on the long schedule."""

from __future__ import annotations

from collections.abc import Mapping

from search.budget import Budget
from search.front import front_results
from search.objectives import LATENCY_ALONE, Objectives
from search.result import Baseline, TrialResult


def final_plans(
    baseline: Baseline,
    results: Mapping[int, TrialResult],
    *,
    budget: Budget | None,
    most: int,
    objectives: Objectives = LATENCY_ALONE,
) -> list[TrialResult]:
    """At most `most` trials of the search proper, spread over their front: within the budget, if there is one.

    Final trials themselves change nothing, so that a search that goes on chooses the same ones again.
    """
    own = {n: r for n, r in results.items() if r.source != "final"}
    if budget is not None:
        own = {n: r for n, r in own.items() if budget.holds(r)}
    chosen = front_results(baseline, own, objectives)
    if len(chosen) <= most:
        return chosen
    # the slowest is the most accurate one: with a budget, the first to be wanted
    return [chosen[round(i * (len(chosen) - 1) / max(most - 1, 1))] for i in range(most)]
