"""A plan is refused by the calmest of several measurements, and accepted by the first that keeps the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluators import Measurement
from search.budget import Budget
from search.second_look import LOOKS, looked_at_again
from tests.search.test_budget import MEASURED

BUDGET = Budget(speedup=2.0)


def _taken(speedup: float, dense_ms: float = 1.0) -> Measurement:
    return replace(
        MEASURED,
        speedup=speedup,
        speedup_low=0.99 * speedup,
        speedup_high=1.01 * speedup,
        dense_latency_ms=dense_ms,
        latency_ms=dense_ms / speedup,
        latency_low_ms=0.99 * dense_ms / speedup,
        latency_high_ms=1.01 * dense_ms / speedup,
    )


@pytest.mark.parametrize(
    ("speedups", "looks", "decides"),
    [
        ([2.5], 1, 2.5),
        ([1.7, 2.5], 2, 2.5),
        ([1.7, 1.8, 1.9], LOOKS, 1.8),
        ([1.2], 1, 1.2),
    ],
    ids=["within", "noise", "surely over", "over by far"],
)
def test_how_often_is_looked_and_what_decides(speedups: list[float], looks: int, decides: float) -> None:
    # the second one is taken when the machine is calmest
    taken = iter([_taken(s, dense_ms) for s, dense_ms in zip(speedups, (1.2, 1.0, 1.1), strict=False)])
    count = 0

    def measure() -> Measurement:
        nonlocal count
        count += 1
        return next(taken)

    assert looked_at_again(measure, BUDGET).speedup == decides
    assert count == looks
