"""A plan is not refused by one pair: on a busy machine a measurement can be off by more than its interval says."""

from __future__ import annotations

from collections.abc import Callable

from evaluators import Measurement
from search.budget import Budget

#: Measurements before a plan is over budget; the calmest of them decides.
LOOKS = 3


def looked_at_again(measure: Callable[[], Measurement], budget: Budget) -> Measurement:
    """A measurement that keeps the budget, or of up to `LOOKS` the one taken when the machine was calmest.

    The dense network is timed beside the candidate each time, on the same core: where it was fastest, least disturbed.
    What is over the budget by far is so at once, and is not looked at again.
    """
    taken = [measure()]
    while len(taken) < LOOKS and not budget.met_by(taken[-1]) and _close(taken[-1], budget):
        taken.append(measure())
    if budget.met_by(taken[-1]):
        return taken[-1]
    return min(taken, key=lambda m: m.dense_latency_ms)


def _close(measured: Measurement, budget: Budget) -> bool:
    """Whether so much noise has been seen that it could explain the miss: half as fast again."""
    return budget.excess(measured.latency_high_ms, measured.speedup_low) < 0.5
