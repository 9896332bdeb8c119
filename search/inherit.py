"""Whose weights a trial begins with: those of the nearest finished, less pruned plan, or those of its own plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from admm.plan import PruningPlan
from search.result import TrialResult


def nearest_start(
    plan: PruningPlan, results: Mapping[int, TrialResult], has_weights: Callable[[int], bool]
) -> TrialResult | None:
    """Of the complete trials that remove no more than `plan` anywhere, and less somewhere, the one that removes most.

    What a trial removes is told by its MACs, and where these are equal by its accuracy. None where there is no such
    trial with its weights at hand: the dense network it is then.
    """
    found = [
        result
        for number, result in results.items()
        if result.status == "complete" and contains(plan, result.requested) and has_weights(number)
    ]
    return min(found, key=lambda r: (r.macs or 0, -(r.accuracy or 0.0), r.number), default=None)


def same_plan(
    plan: PruningPlan, stretch: float, results: Mapping[int, TrialResult], has_weights: Callable[[int], bool]
) -> TrialResult | None:
    """Of the complete trials of this very plan, trained for less than `stretch`, the one trained most."""
    digest = plan.digest()
    found = [
        result
        for number, result in results.items()
        if result.status == "complete"
        and result.plan_digest == digest
        and result.stretch < stretch
        and has_weights(number)
    ]
    return max(found, key=lambda r: (r.stretch, -r.number), default=None)


def contains(plan: PruningPlan, other: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether `plan` removes all that `other` removes, and more, while `other` removes anything at all."""
    asked = [(layer, structure, s) for layer, of in other.items() for structure, s in of.items() if s > 0.0]
    if not asked or any(s > plan.sparsity(layer, structure) for layer, structure, s in asked):
        return False
    known = {(layer, structure): s for layer, structure, s in asked}
    return any(
        sparsity > known.get((layer, structure), 0.0) for layer in plan for structure, sparsity in plan[layer].items()
    )
